"""The correction of a mean for its solver, as an experiment makes it (`likelihood/levels.py`)."""

from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np

from scoremle.data import permutation
from scoremle.errors import UserError
from scoremle.evaluation import metrics, statistics
from scoremle.experiment.estimators import Facts, Task
from scoremle.likelihood.levels import bias_bound, corrected

__all__ = ["DIFFERENCES", "Measure", "correct"]

# In this the seed of differences differs from that of the evaluation; and the key of their order.
DIFFERENCES = 2**32 - 4
# The solver may add this share of the noise's standard error, where that is more than its limit.
NOISE_SHARE = 0.25


@runtime_checkable
class Measure(Protocol):
    """Values of images in so many passes, and the seconds that each took.

    ``apart`` names what is measured with noise of its own.
    """

    def __call__(
        self, metric: metrics.Metric, images: np.ndarray, repeats: int, apart: str = ""
    ) -> tuple[statistics.Values, float]: ...


def correct(
    task: Task,
    images: np.ndarray,
    values: statistics.Values,
    result: Facts,
    measure: Measure,
    *,
    seed: int,
    tolerance: float,
) -> Facts:
    """The mean at the finest level, by differences on some of the images, in random order.

    Args:
        task: with levels.
        images: all of them.
        values: of each, at the coarsest level.
        result: what these say.
        measure: measures differences.
        seed: of the order.
        tolerance: bits/dim, what the solver may add to the standard error; a quarter of that of
            the noise, where that is more.

    Raises UserError for a difference that is not finite.
    """
    assert task.levels is not None and task.difference is not None
    nodes, n = task.levels.nodes, len(images)
    noise = result["noise_stderr"] or result.get("probe_stderr_of_mean") or 0.0
    sizes = task.levels.sizes(n, max(tolerance, NOISE_SHARE * noise))
    order = permutation(n, seed, DIFFERENCES)
    differences, bias = [], task.levels.bias
    for size, (coarse, fine) in zip(sizes, pairwise(nodes), strict=True):
        last, apart = fine == nodes[-1], f"nodes {coarse} to {fine}"
        found, _ = measure(task.difference(coarse, fine, last), images[order[:size]], 1, apart)
        if not all(np.isfinite(column).all() for column in found.values()):
            raise UserError(f"{task.name}, {apart}: a value is not finite{task.hint}")
        differences.append(found[task.column][0])
        bias = bias_bound(found["halving"][0]) if last else bias
    mean = corrected(values[task.column].mean(axis=0), order, differences)
    return statistics.with_correction(result, mean, bias, nodes, differences)
