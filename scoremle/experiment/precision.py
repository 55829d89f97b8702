"""The cost of computing in less than float32: a few images measured both ways."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from scoremle.model import ScoreModel

IMAGES = 16


def cost_of_precision(
    measure: Callable[[ScoreModel, str], Float[np.ndarray, " n"]],
    asked: ScoreModel,
    full: ScoreModel,
) -> dict[str, Any]:
    """Compares bits/dim with those in float32 with exact products, of the same noise.

    Args:
        measure: gives bits/dim of the first ``IMAGES`` images by a model, under a label.
        asked: the model in the precision that was asked for.
        full: the same in float32.

    Gives the mean in bits/dim, its standard error over the images, the largest difference in size,
    and the number of images.
    """
    less = measure(asked, "precision as asked")
    with jax.default_matmul_precision("highest"):
        gaps = less - measure(full, "precision float32")
    error = float(gaps.std(ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else None
    largest = float(gaps[np.abs(gaps).argmax()])
    return {"mean": float(gaps.mean()), "stderr": error, "largest": largest, "images": len(gaps)}
