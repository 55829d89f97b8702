"""The cost of computing in less than float32: a few images measured both ways."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scoremle.experiment.measurements import Measurement
from scoremle.model import ScoreModel

IMAGES = 16


def cost_of_precision(
    asked: Measurement, full: ScoreModel, images: np.ndarray, seed: int, parts: Path
) -> dict[str, Any]:
    """Compares bits/dim with those in float32 with exact products, of the same noise.

    Args:
        asked: in the precision that was asked for.
        full: the model in float32.
        images: of which the first ``IMAGES`` are measured.
        seed: of the noise.
        parts: the folder of finished parts of both.

    Gives the mean in bits/dim, its standard error over the images, the largest difference in size,
    and the number of images.
    """
    first, second = "precision as asked", "precision float32"
    few = images[:IMAGES]
    less = asked.score(few, seed=seed, parts=parts / first, label=first)
    with jax.default_matmul_precision("highest"):
        in_full = replace(asked, model=full)
        whole = in_full.score(few, seed=seed, parts=parts / second, label=second)
    gaps = less.values["bpd"][0] - whole.values["bpd"][0]
    error = float(gaps.std(ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else None
    largest = float(gaps[np.abs(gaps).argmax()])
    return {"mean": float(gaps.mean()), "stderr": error, "largest": largest, "images": len(gaps)}
