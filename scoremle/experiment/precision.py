"""The cost of computing in less than float32: a few images measured both ways."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scoremle.likelihood.score_images import Scored
from scoremle.model import ScoreModel

IMAGES = 16


def cost_of_precision(
    score: Callable[..., Scored], asked: ScoreModel, full: ScoreModel, parts: Path
) -> dict[str, Any]:
    """Compares bits/dim with those in float32 with exact products, of the same noise.

    Args:
        score: ``score_images`` of the first ``IMAGES`` images, but for the model.
        asked: the model in the precision that was asked for.
        full: the same in float32.
        parts: the folder of finished parts of both.

    Gives the mean in bits/dim, its standard error over the images, the largest difference in size,
    and the number of images.
    """
    first, second = "precision as asked", "precision float32"
    less = score(asked, parts=parts / first, label=first)
    with jax.default_matmul_precision("highest"):
        whole = score(full, parts=parts / second, label=second)
    gaps = less.values["bpd"][0] - whole.values["bpd"][0]
    error = float(gaps.std(ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else None
    largest = float(gaps[np.abs(gaps).argmax()])
    return {"mean": float(gaps.mean()), "stderr": error, "largest": largest, "images": len(gaps)}
