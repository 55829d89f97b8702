"""Scores of one's own images: measured in parts that outlive a kill, and the mean corrected."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Integer

import scoremle
from scoremle.bounded import MAX_TEXT
from scoremle.core.dequantize import Uniform
from scoremle.core.pytree import describe
from scoremle.devices import compiled
from scoremle.errors import UserError
from scoremle.evaluation import metrics, statistics
from scoremle.experiment.correction import DIFFERENCES, Measure, correct
from scoremle.experiment.estimators import Facts, Task
from scoremle.experiment.own_model import is_own
from scoremle.experiment.scoring import Prepared
from scoremle.files import named, read_bytes
from scoremle.likelihood.images import Estimator, ImageModel, OdeDifference, Values
from scoremle.model import ScoreModel, Scores
from scoremle.resumable import content_hash, fingerprint
from scoremle.training.checksums import tree_hash
from scoremle.types import IntImages, Keys

__all__ = ["Scored", "facts_of_values", "folder_of_parts", "measure", "measure_share"]

# Images in a batch, and values in all of them: a batch is what a kill loses.
BATCH_SIZE, BATCH_VALUES = 256, 2**18


@dataclass(frozen=True)
class Scored:
    """Of each image its scores; of the images whose value is finite the mean, as results say it.

    The values of single images are those of the coarsest level.
    """

    scores: Scores
    mean: Facts


def folder_of_parts(
    above: Path, found: Prepared, place: str, images: Integer[np.ndarray, "n h w c"], seed: int
) -> Path:
    """Where finished parts lie: a name that stands for all that a value depends on.

    Args:
        above: the folder that it is in.
        found: what measures.
        place: of the model, as it was named.
        images: all that are scored.
        seed: of everything random.
    """
    facts = facts_of_values(found, place, seed)
    return above / fingerprint(
        {**facts, "images": content_hash(images), "shape": list(images.shape)}
    )


def facts_of_values(found: Prepared, place: str, seed: int) -> Facts:
    """The facts that a value depends on, besides its image and its pass.

    Args:
        found: what measures.
        place: of the model, as it was named.
        seed: of everything random.
    """
    model = found.model
    return {
        "model": tree_hash(model),
        "place": place,
        "code": hashlib.sha256(_code(place)).hexdigest(),
        "sde": model.sde.describe(),
        "eps": model.eps,
        "pixels": describe(model.pixels),
        "estimator": describe(found.estimator),
        "seed": seed,
        "version": scoremle.__version__,
    }


def _code(place: str) -> bytes:
    """Of a model that is a function of a file."""
    return read_bytes(named(Path(place.rpartition(":")[0])), MAX_TEXT) if is_own(place) else b""


def measure(
    found: Prepared,
    images: Integer[np.ndarray, "n h w c"],
    *,
    seed: int,
    passes: int,
    parts: Path,
) -> Scored:
    """Scores by independent passes; what an interrupted run has left in ``parts`` is taken.

    The key of an image is by its place: the values are those of ``ScoreModel.score``. Raises
    UserError if no value is finite.
    """

    measured = _measuring(found, seed, parts)
    values, _ = measured(_metric(found.estimator), images, passes)
    finite = np.isfinite(values["bpd"]).all(axis=0)
    if not finite.any():
        raise UserError("no image has bits/dim that are a finite number: check the model")
    of_mean = {name: column[:, finite] for name, column in values.items()}
    mean: Facts = {**statistics.summary(of_mean, "bpd"), **statistics.means(of_mean)}
    if found.levels is not None and finite.sum() > 1:
        mean |= _corrected(found, images[finite], of_mean, mean, measured, seed)
    return Scored(Scores.of_passes(values, found.model.dims), mean)


def measure_share(
    found: Prepared,
    images: Integer[np.ndarray, "n h w c"],
    share: slice,
    *,
    seed: int,
    passes: int,
    parts: Path,
) -> None:
    """Leaves the scores of a share of the images in ``parts``, where ``measure`` takes them."""
    if images[share].size:
        _measuring(found, seed, parts, share)(_metric(found.estimator), images, passes)


def _measuring(
    found: Prepared, seed: int, parts: Path, share: slice = slice(None)
) -> Measure:
    def measured(
        metric: metrics.Metric, images: np.ndarray, repeats: int, apart: str = ""
    ) -> tuple[statistics.Values, float]:
        return metrics.evaluate(
            metric if found.estimator.on_host else compiled(metric),
            found.model,
            images,
            batch_size=_batch(len(images), found.model.dims),
            repeats=repeats,
            seed=seed ^ (DIFFERENCES if apart else 0),
            parts=parts / apart,
            label=f"scores {apart}".strip(),
            share=share,
        )

    return measured


def _batch(count: int, dims: int) -> int:
    """A power of two: not every number of images is another program."""
    most = max(1, min(BATCH_SIZE, BATCH_VALUES // dims))
    return min(1 << (most.bit_length() - 1), 1 << (count - 1).bit_length())


def _metric(estimator: Estimator) -> metrics.Metric:
    def metric(model: ScoreModel, x: IntImages, keys: Keys) -> Values:
        return estimator(cast(ImageModel, model), Uniform(), x, keys)  # it has pixels

    return metric


def _corrected(
    found: Prepared,
    images: np.ndarray,
    values: statistics.Values,
    mean: Facts,
    measured: Measure,
    seed: int,
) -> Facts:
    """The mean with its solver's error corrected, and its errors part by part."""

    def difference(coarse: int, fine: int, halved: bool) -> metrics.Metric:
        return _metric(OdeDifference(found.estimator, coarse, fine, halved))

    task = Task(
        "scores", "bpd", _metric(found.estimator), {}, levels=found.levels, difference=difference
    )
    return correct(task, images, values, mean, measured, seed=seed, tolerance=found.tolerance)

