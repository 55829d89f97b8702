"""Mode eval with ``eval.enable_sampling``: samples of checkpoints, and their quality.

Samples are drawn in rounds, each a file, and their features in batches, each a file: whatever a
run had finished when it was killed is not done again. Sample j has a key of its own, as an image
of a split has. Quality is measured if ``eval.inception``
names the weights of the Inception network and ``eval.stats`` the features of a data set; both are
read before anything else begins.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

import scoremle
from scoremle.core.keys import image_keys
from scoremle.errors import UserError
from scoremle.evaluation import pictures
from scoremle.experiment.build import Experiment
from scoremle.files import write_npz
from scoremle.quality import metrics
from scoremle.quality.features import Extractor, Reference, extract, load_inception, read_reference
from scoremle.resumable import Arrays, fingerprint, in_parts

__all__ = ["Judge", "Sampling", "judge"]

Facts = dict[str, Any]

GRID_SAMPLES = 64
# Two for each split of the class score and each subset of the kernel distance.
FEWEST_IMAGES = 20
PUBLISHED_NAMES = ("FID", "KID", "IS")
OTHER_NAMES = ("Fréchet distance", "kernel distance", "class score")


@dataclass(frozen=True)
class Judge:
    """What quality is measured by."""

    extractor: Extractor
    reference: Reference

    def __call__(self, pool: np.ndarray, logits: np.ndarray) -> dict[str, Facts]:
        """Each measure's value, standard error and numbers of images."""
        published = self.extractor.is_published_inception
        frechet, kernel, score = PUBLISHED_NAMES if published else OTHER_NAMES
        n, m = len(pool), len(self.reference.pool)
        distance = metrics.kernel_distance(pool, self.reference.pool)
        classes = metrics.class_score(logits)
        shares = metrics.precision_recall(pool, self.reference.pool)
        of_shares = (shares.samples, shares.reference)
        return {
            frechet: _measure(metrics.frechet_distance(pool, self.reference.pool), None, n, m),
            kernel: _measure(*distance, n, m),
            score: _measure(*classes, n, 0),
            "precision": _measure(shares.precision, None, *of_shares),
            "recall": _measure(shares.recall, None, *of_shares),
        }


def _measure(value: float, stderr: float | None, samples: int, reference: int) -> Facts:
    return {"value": value, "stderr": stderr, "samples": samples, "reference_images": reference}


def judge(experiment: Experiment, options: Any) -> Judge | None:
    """What the fields name; None if samples alone are wanted. Raises UserError early."""
    if not options.inception:
        if options.stats:
            raise UserError(
                "eval.stats needs eval.inception: weights that scoremle convert-inception wrote"
            )
        return None
    if not options.stats:
        raise UserError(
            "eval.inception needs eval.stats, features of a data set; make them with: "
            f"scoremle stats {experiment.data.name} --weights={options.inception} --out=STATS.npz"
        )
    if options.num_samples < FEWEST_IMAGES:
        raise UserError(f"quality needs eval.num_samples of at least {FEWEST_IMAGES}")
    extractor = load_inception(Path(options.inception))
    reference = read_reference(Path(options.stats), extractor)
    if len(reference.pool) < FEWEST_IMAGES:
        raise UserError(f"{options.stats} has fewer than {FEWEST_IMAGES} images")
    ours = list(experiment.data.shape)
    if reference.facts.get("shape", ours) != ours:
        raise UserError(
            f"{options.stats} has features of images of shape {reference.facts['shape']}, but the "
            f"samples have {ours}: make it anew with --image_size={ours[0]}"
        )
    return Judge(extractor, reference)


@dataclass(frozen=True)
class Sampling:
    """What is the same for all checkpoints; ``options`` are the fields ``eval.*``."""

    experiment: Experiment
    options: Any
    folder: Path
    judge: Judge | None

    @cached_property
    def _draw(self) -> Any:
        return jax.jit(self.experiment.draw, static_argnums=2)

    def run(self, params: Any, checkpoint: Facts) -> dict[str, Facts]:
        """Draws and writes ``eval.num_samples`` samples; the result by its name, if any."""
        facts = {**self._facts, **checkpoint}
        name = f"samples_ckpt_{checkpoint['checkpoint']}"
        parts = self.folder / "parts" / f"{name}_{fingerprint(facts)}"
        samples = self._samples(params, parts, name)
        self._write(self.folder / f"{name}.npz", samples)
        if not self.judge:
            return {}
        result = {"kind": "quality", **self._quality(self.judge, samples, parts, name), **facts}
        return {f"quality_ckpt_{checkpoint['checkpoint']}": result}

    def _samples(self, params: Any, parts: Path, label: str) -> np.ndarray:
        key, size = jax.random.key(self.experiment.seed), self._size

        def draw(_: int, index: Int[np.ndarray, " size"]) -> Arrays:
            return {"samples": self._draw(params, image_keys(key, index), size)}

        # Whole rounds, so that the last one is the same whatever number is asked for.
        whole = -(-self.options.num_samples // size) * size
        drawn = in_parts(draw, whole, size=size, folder=parts, label=label, unit="sample")
        return drawn["samples"][0, : self.options.num_samples]

    def _write(self, path: Path, samples: np.ndarray) -> None:
        write_npz(path, {"samples": samples})
        grid = path.with_suffix(".png")
        pictures.write_grid(grid, samples[:GRID_SAMPLES], self.experiment.pixels.levels)
        print(f"{len(samples)} samples: {path}, some of them: {grid}", flush=True)

    def _quality(self, judge: Judge, samples: np.ndarray, parts: Path, name: str) -> Facts:
        extractor = judge.extractor
        features = extract(
            extractor,
            samples,
            self.experiment.pixels.levels,
            folder=parts / f"features_{fingerprint(extractor.facts)}",
            label=f"features of {name}",
        )
        return {
            **extractor.facts,
            "measures": judge(features["pool_3"], features["logits"]),
            "reference": judge.reference.facts,
        }

    @property
    def _size(self) -> int:
        """Samples of a round."""
        return min(self.options.batch_size, self.options.num_samples)

    @property
    def _facts(self) -> Facts:
        """All that a sample depends on but the checkpoint; their number is not among it.

        The Langevin corrector takes norms over a round, which is then part of what a sample is.
        """
        experiment, config = self.experiment, self.experiment.config
        method, corrector = (config["sampling"][n].lower() for n in ("method", "corrector"))
        of_round = {"round_size": self._size} if (method, corrector) == ("pc", "langevin") else {}
        return {
            "dataset": experiment.data.name,
            "levels": experiment.data.levels,
            "sde": experiment.sde.describe(),
            "sampling": config["sampling"],
            "nodes": config["eval"]["nodes"],
            "num_scales": config["model"]["num_scales"],
            "precision": config["model"]["dtype"],
            "seed": experiment.seed,
            **of_round,
            "version": scoremle.__version__,
        }
