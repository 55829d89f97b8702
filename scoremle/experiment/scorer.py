"""Scores batches of images, for whoever moves the images: Ray, Spark, or a loop of Python.

A batch is a dict of arrays, and so is what is given back. Randomness belongs to an image by its
index, so that no value depends on how images are batched, sharded, or spread over machines.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt64

from scoremle.core.arguments import as_index, check_count, check_kind, check_seed
from scoremle.errors import UserError
from scoremle.experiment.models import load
from scoremle.likelihood.image_model import pixels_of
from scoremle.likelihood.images import Estimator
from scoremle.likelihood.scores import INDEX, SCORE_COLUMNS
from scoremle.model import BATCH_SIZE, ScoreModel

__all__ = ["Scorer"]

IMAGE, NAME, CONDITION = "image", "name", "condition"


class Scorer:
    """Maps a batch of images to their likelihoods: a dict of arrays to a dict of arrays.

    A batch holds ``image``, [n h w c] integers, and ``index``, a whole number of each image below
    2**64, or ``name``, of which 64 bits of SHA-256 are the index. It may hold ``condition``, a row
    for each image. What is given back holds ``index``, ``name`` if it was there, and the fields of
    ``Scores``: nats for ``log_prob``, bits/dim for the others.

    The model is loaded when a Scorer is made. A pickled Scorer holds the place of its model alone,
    and loads it again where it arrives.

    Args:
        model: what ``load`` takes, or a function without arguments that returns a ScoreModel.
        estimator: None: the model's own.
        passes: independent passes, whose spread gives the error.
        seed: of all randomness.
        batch_size: how many images the compiled program takes at once; no value depends on it.

    Raises UserError as ``load`` does; when called, for a batch without images, or with neither
    ``index`` nor ``name``, and as ``ScoreModel.score`` does.

    Example:
        >>> scorer = scoremle.Scorer("digits", batch_size=2)
        >>> batch = {"image": np.zeros((2, 8, 8, 1), np.uint8), "name": np.asarray(["a", "b"])}
        >>> found = scorer(batch)
        >>> print(found["name"], found["bpd"].shape, found["index"].dtype)
        ['a' 'b'] (2,) uint64
    """

    def __init__(
        self,
        model: str | Path | Callable[[], ScoreModel],
        *,
        estimator: Estimator | None = None,
        passes: int = 1,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        if isinstance(model, ScoreModel):
            raise UserError("a Scorer takes the place of a model, or a function: lambda: model")
        check_seed(seed)
        check_count("passes", passes)
        check_count("batch_size", batch_size)
        self._place = model
        self._options: dict[str, Any] = {
            "estimator": estimator, "passes": passes, "seed": seed, "batch_size": batch_size,
        }  # fmt: skip
        self.model = model() if callable(model) else load(model)
        check_kind("what model() gives", self.model, ScoreModel, "scoremle.load('digits')")

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Scorer, **self._options), (self._place,)

    def __repr__(self) -> str:
        return f"Scorer({self.model!r})"

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if IMAGE not in batch:
            held = ", ".join(batch) or "nothing"
            raise UserError(f"a batch must hold {IMAGE!r}; it holds {held}")
        index = index_of(batch)
        condition = _stacked(batch[CONDITION]) if CONDITION in batch else None
        images = _stacked(batch[IMAGE])
        if not len(images):  # a block of nothing need not have their shape
            images = np.zeros((0, *self.model.shape), pixels_of(self.model).dtype)
        scores = self.model.score(images, condition=condition, index=index, **self._options)
        names = {NAME: np.asarray(batch[NAME])} if NAME in batch else {}
        return {INDEX: index, **names, **{name: getattr(scores, name) for name in SCORE_COLUMNS}}


def index_of(batch: Mapping[str, Any]) -> UInt64[np.ndarray, " n"]:
    """The index of each image: as it is given, or of its name.

    Raises UserError if the batch has neither, or no whole numbers from 0 to 2**64 - 1.
    """
    if INDEX in batch:
        return as_index(batch[INDEX])
    if NAME not in batch:
        raise UserError(
            f"a batch must hold {INDEX!r}, a whole number of each image, or {NAME!r}: the"
            " randomness of an image belongs to it"
        )
    digests = (hashlib.sha256(str(name).encode(errors="surrogateescape")) for name in batch[NAME])
    return np.asarray([int.from_bytes(d.digest()[:8], "little") for d in digests], np.uint64)


def _stacked(rows: Any) -> np.ndarray:
    """One array of a column; pandas may hold an array in each row of it."""
    array = np.asarray(rows)
    return np.stack(list(array)) if array.dtype == object and len(array) else array
