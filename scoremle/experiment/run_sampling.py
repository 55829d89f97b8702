"""Mode eval with ``eval.enable_sampling``: samples of checkpoints, and their quality.

Samples are drawn in rounds, each a file, and their features in batches, each a file: whatever a
run had finished when it was killed is not done again. Sample j has a key of its own, as an image
of a split has. Quality is measured if ``eval.inception`` names the weights of the Inception
network and ``eval.stats`` the features of a data set; both are read before anything else begins.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Int

import scoremle
from scoremle import devices, xla
from scoremle.core.keys import image_keys, key_of
from scoremle.data import ImageSet
from scoremle.errors import UserError
from scoremle.evaluation import pictures
from scoremle.experiment.build import Experiment
from scoremle.experiment.networks import Params
from scoremle.files import inside, write_npz
from scoremle.numerics import check_finite_values
from scoremle.quality import metrics
from scoremle.quality.features import Extractor, Reference, extract, load_inception, read_reference
from scoremle.resumable import Arrays, fingerprint, resumable_map
from scoremle.terminal import say
from scoremle.types import IntImages, Keys

GRID_SAMPLES = 64
# Two for each split of the class score and each subset of the kernel distance.
FEWEST_IMAGES = 20
PUBLISHED_NAMES = ("FID", "KID", "IS")
OTHER_NAMES = ("Fréchet distance", "kernel distance", "class score")


@dataclass(frozen=True)
class Judge:
    """Measures the quality of samples."""

    extractor: Extractor
    reference: Reference

    def __call__(self, samples: np.ndarray, levels: int, parts: Path, name: str) -> dict[str, Any]:
        """The quality of samples; finished parts of their features are kept in ``parts``."""
        of_extractor = self.extractor.identity
        features = extract(
            self.extractor, samples, levels, label=f"features of {name}",
            folder=parts / f"features_{fingerprint(of_extractor)}",
        )  # fmt: skip
        measures = self.measures(features["pool_3"], features["logits"])
        return {**of_extractor, "measures": measures, "reference": self.reference.facts}

    def measures(self, pool: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
        """Each measure's value, standard error and numbers of images."""
        published = self.extractor.is_published_inception
        frechet, kernel, score = PUBLISHED_NAMES if published else OTHER_NAMES
        n, m = len(pool), len(self.reference.pool)
        moments = metrics.frechet_distance(pool, self.reference.pool)
        distance = metrics.kernel_distance(pool, self.reference.pool)
        classes = metrics.class_score(logits)
        shares = metrics.precision_recall(pool, self.reference.pool)
        of_shares = (shares.samples, shares.reference)
        return {
            frechet: _measure(*moments, n, m),
            kernel: _measure(*distance, n, m),
            score: _measure(*classes, n, 0),
            "precision": _measure(*shares.precision, *of_shares),
            "recall": _measure(*shares.recall, *of_shares),
        }


def _measure(value: float, stderr: float, samples: int, reference: int) -> dict[str, Any]:
    return {"value": value, "stderr": stderr, "samples": samples, "reference_images": reference}


def judge(evaluation: Any, data: ImageSet) -> Judge | None:
    """Opens the judge that the fields name; None without them. Raises UserError early."""
    if not evaluation.inception:
        if evaluation.stats:
            raise UserError(
                "eval.stats needs eval.inception: weights that scoremle convert-inception wrote"
            )
        return None
    if not evaluation.stats:
        raise UserError(
            "eval.inception needs eval.stats, features of a data set; make them with: "
            f"scoremle stats {data.name} --weights={evaluation.inception} --out=STATS.npz"
        )
    if evaluation.num_samples < FEWEST_IMAGES:
        raise UserError(f"quality needs eval.num_samples of at least {FEWEST_IMAGES}")
    extractor = load_inception(Path(evaluation.inception))
    reference = read_reference(Path(evaluation.stats), extractor)
    if len(reference.pool) < FEWEST_IMAGES:
        raise UserError(f"{evaluation.stats} has fewer than {FEWEST_IMAGES} images")
    for name, ours in (("shape", list(data.shape)), ("levels", data.levels)):
        if (theirs := reference.facts.get(name, ours)) != ours:
            raise UserError(
                f"{evaluation.stats} has features of images of {name} {theirs}, but the samples"
                f" have {ours}: make it anew, by scoremle stats with --image-size or with the"
                " --path of images that were prepared like those of the training"
            )
    return Judge(extractor, reference)


@dataclass(frozen=True)
class SamplingRun:
    """Sampling with the settings that all checkpoints share."""

    experiment: Experiment
    folder: Path
    judge: Judge | None

    @cached_property
    def _draw(self) -> Any:
        sampler, model_of = self.experiment.sampler, self.experiment.model_of

        def draw(params: Params, keys: Keys) -> tuple[IntImages, Bool[Array, " n"]]:
            return sampler.images(model_of(params), keys)

        return devices.within_memory(xla.compiled(draw))

    def run(self, params: Params, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Draws and writes the samples of a checkpoint; the result by its name, if any."""
        facts = {**self._facts, **checkpoint}
        name = f"samples_ckpt_{checkpoint['checkpoint']}"
        parts = inside(self.folder, "parts", f"{name}_{fingerprint(facts)}", writing=True)
        samples = self._samples(params, parts, name)
        self._write(self.folder / f"{name}.npz", samples, checkpoint["step"])
        if not self.judge:
            return {}
        found = self.judge(samples, self.experiment.data.levels, parts, name)
        return {f"quality_ckpt_{checkpoint['checkpoint']}": {"kind": "quality", **found, **facts}}

    def _samples(self, params: Params, parts: Path, label: str) -> np.ndarray:
        key, size = key_of(self.experiment.seed), self._size
        number = self.experiment.evaluation.num_samples
        params = devices.replicate(params)

        def draw(_: int, index: Int[np.ndarray, " size"]) -> Arrays:
            keys = devices.shared(image_keys(key, index))
            images, finite = devices.to_numpy(self._draw(params, keys))
            check_finite_values(finite, index, "sample")
            return {"samples": images}

        # Whole rounds, so that the last one is the same for any number of samples.
        whole = -(-number // size) * size
        drawn = resumable_map(
            draw, whole, size=size, least=size if self.experiment.sampler.mixes else 1,
            folder=parts, label=label, unit="sample",
        )  # fmt: skip
        return drawn["samples"][0, :number]

    def _write(self, path: Path, samples: np.ndarray, step: int) -> None:
        write_npz(path, {"samples": samples})
        grid = path.with_suffix(".png")
        shown, data = samples[:GRID_SAMPLES], self.experiment.data
        caption = f"{len(shown)} of {len(samples)} samples of {data.name} at step {step:,}"
        pictures.write_grid(grid, shown, data.levels, caption=caption)
        say(f"{len(samples)} samples of step {step}: {path}, some of them: {grid}")

    @property
    def _size(self) -> int:
        """Samples of a round: as given where they depend on one another, else over all devices."""
        size = min(self.experiment.evaluation.batch_size, self.experiment.evaluation.num_samples)
        return size if self.experiment.sampler.mixes else devices.round_up(size)

    @property
    def _facts(self) -> dict[str, Any]:
        """Facts that a sample depends on, without the checkpoint and the number of samples."""
        data, model, config = self.experiment.data, self.experiment.model, self.experiment.config
        # A sampler that mixes the samples of a round makes its size one of their facts.
        of_round = {"round_size": self._size} if self.experiment.sampler.mixes else {}
        return {
            "dataset": data.name,
            "levels": data.levels,
            "sde": model.sde.describe(),
            "sampling": config["sampling"],
            "precision": self.experiment.precision,
            "seed": self.experiment.seed,
            **of_round,
            "version": scoremle.__version__,
        }
