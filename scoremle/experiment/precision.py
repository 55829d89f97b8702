"""What it costs to compute in less than float32: a few images measured both ways."""

import jax
import numpy as np

from scoremle.evaluation import metrics
from scoremle.experiment.correction import Measure
from scoremle.experiment.estimators import Facts

__all__ = ["cost_of_precision"]

IMAGES = 16


def cost_of_precision(
    asked: metrics.Metric, in_float32: metrics.Metric, images: np.ndarray, measure: Measure
) -> Facts:
    """How much higher bits/dim are than in float32 with exact products, of the same noise.

    Args:
        asked: bits/dim, in the precision that was asked for.
        in_float32: the same, of a network in float32.
        images: of which the first few are measured.
        measure: measures them, with noise of its own.

    Gives the mean in bits/dim, its standard error over the images, the largest in size, and how
    many images these are of.
    """
    few = images[:IMAGES]
    less, _ = measure(asked, few, 1, "precision as asked")
    with jax.default_matmul_precision("highest"):
        full, _ = measure(in_float32, few, 1, "precision float32")
    (gaps,) = less["bpd"] - full["bpd"]
    error = float(gaps.std(ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else None
    largest = float(gaps[np.abs(gaps).argmax()])
    return {"mean": float(gaps.mean()), "stderr": error, "largest": largest, "images": len(gaps)}
