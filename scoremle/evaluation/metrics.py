"""Metrics of images under a model, measured over a whole split.

A metric is a function of parameters, a batch of integer images and a key for each of them, which
gives values per image. The keys of a split are those of its images (``core/keys.py``), by seed,
pass and index: a value depends neither on the batch size nor on the other images.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int, UInt8

from scoremle import devices
from scoremle.core.keys import image_keys
from scoremle.evaluation.statistics import Values
from scoremle.resumable import Arrays, in_parts
from scoremle.types import IntImages, Keys, PerExample

__all__ = ["Metric", "evaluate"]

Params = Any
Metric = Callable[[Params, IntImages, Keys], dict[str, PerExample]]


def evaluate(
    metric: Metric,
    params: Params,
    images: UInt8[np.ndarray, "n h w c"],
    *,
    batch_size: int,
    repeats: int,
    seed: int,
    parts: Path | None = None,
    label: str = "",
    share: slice = slice(None),
) -> tuple[Values, float]:
    """Values [repeats n] of a metric, and the seconds an image that they took.

    All devices share each batch, of ``batch_size`` images or as many more as divide over them. A
    compiled metric gets fewer where memory does not suffice. Finished parts lie in ``parts``;
    progress is told under ``label``. Where only a ``share`` of the images is worked on, values of
    the others are zero, unless their parts are there.
    """

    def work(repeat: int, index: Int[np.ndarray, " size"]) -> Arrays:
        keys = image_keys(jax.random.fold_in(jax.random.key(seed), repeat), index)
        return _timed(measure, spread, images[index], keys)

    spread, size = devices.replicate(params), devices.filled(batch_size)
    # Other metrics may mix the images of a batch; several processes would have to agree.
    halves = hasattr(metric, "lower") and jax.process_count() == 1
    measure = devices.within_memory(metric) if halves else metric
    rows = in_parts(
        work, len(images), size=size, least=jax.device_count() if halves else size,
        passes=repeats, folder=parts, label=label, describe=_mean_so_far, share=share,
    )  # fmt: skip
    # The first batch compiles: the lower median over batches is what an image costs.
    pace = float(np.quantile(np.unique(rows.pop("seconds")), 0.5, method="lower"))
    return {name: column.astype(np.float64) for name, column in rows.items()}, pace


def _timed(metric: Metric, params: Params, batch: np.ndarray, keys: Keys) -> Arrays:
    """The values of a batch, and the seconds that each image took."""
    began = time.monotonic()
    values = devices.fetch(metric(params, *devices.split_rows((batch, keys))))
    seconds = (time.monotonic() - began) / len(batch)
    return {"seconds": np.full(len(batch), seconds), **values}


def _mean_so_far(rows: Arrays, done: Bool[np.ndarray, "repeats n"]) -> str:
    """The mean over images and its error, from the passes that there are of each."""
    name = "bpd" if "bpd" in rows else "loss"
    there = done.any(axis=0)
    images = rows[name][:, there].mean(axis=0, dtype=np.float64, where=done[:, there])
    error = f" +- {images.std(ddof=1) / np.sqrt(len(images)):.4f}" if len(images) > 1 else ""
    return f"{name} {images.mean():.4f}{error}"
