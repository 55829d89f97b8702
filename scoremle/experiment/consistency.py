"""Every estimator on one checkpoint, and what must hold between their numbers.

Each takes the same images in the same order, so that two estimators are compared image by image:
the spread of the differences is their error, which is far smaller than that of the means. Where a
mean is corrected for its solver, so is the difference.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, stdtrit

from scoremle.evaluation.statistics import paired_difference
from scoremle.evaluation.tables import difference_in_cells

# Standard errors of a difference that are not a contradiction, where there are many images.
TOLERANCE = 4.0

FAULT = "two estimators of one number contradict each other"
FLOW = "the flow dequantizer is worse than uniform noise: train it longer"
# First, relation, second: what must hold of two estimators, wherever both were measured; and what
# it means if it doesn't.
RELATIONS = (
    ("exact_k10", "<=", "exact", FAULT),
    ("exact_variational_k10", "<=", "exact_variational", FAULT),
    ("exact_variational", "<=", "exact", FLOW),
    ("bound_variational", "<=", "bound", FLOW),
    ("bound_sliced", "==", "bound", FAULT),
    ("exact_trace", "==", "exact", FAULT),
)


@dataclass(frozen=True)
class Verdict:
    """A relation, and the mean difference (first minus second, bits/dim) that judged it.

    ``meaning`` is of a failure, and empty where it holds.
    """

    words: str
    difference: float
    stderr: float
    holds: bool
    meaning: str

    def __str__(self) -> str:
        mark = "holds" if self.holds else "FAILS"
        gap = " ± ".join(difference_in_cells(self.difference, self.stderr))
        line = f"{mark}  {self.words}: difference {gap}"
        return line if self.holds else f"{line} ({self.meaning})"


def verdicts(bpd: Mapping[str, Float[np.ndarray, " n"]]) -> list[Verdict]:
    """The relations between the estimators that there are, from bits/dim of the same images."""
    found = []
    for first, relation, second, meaning in RELATIONS:
        if first in bpd and second in bpd and len(bpd[first]) > 1:
            mean, stderr, images = paired_difference(bpd[second], bpd[first])
            excess = abs(mean) if relation == "==" else mean
            # Student's: the error of few images is not known well itself.
            holds = bool(excess <= stdtrit(images - 1, ndtr(TOLERANCE)) * stderr)
            words = f"{first} {relation} {second}"
            found.append(Verdict(words, mean, stderr, holds, "" if holds else meaning))
    return found
