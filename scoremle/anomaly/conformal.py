"""Split conformal p-values, and the examples that stand out at a rate of false discoveries.

If an example is like n references, each place of its score among theirs is equally likely, with
ties broken at random. So with K uniform in {0, ..., number of equal ones}

    p = (1 + number of greater ones + K) / (n + 1)

is uniform on {1, ..., n + 1} / (n + 1), whatever the score is (Vovk, Gammerman, Shafer 2005). That
is so on average over reference sets; for one set the share of p <= k / (n + 1) follows the law
Beta(k, n + 1 - k). Many examples that share their references may be listed by Benjamini and
Hochberg's procedure all the same (Bates et al., arXiv 2104.08279).
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64
from scipy.stats import false_discovery_control

OfExamples = Float[np.ndarray, " m"]
# No references would reach a smaller rate of false discoveries.
LEAST_RATE = 1e-10
# A share of a rate by which rounding may move an adjusted p-value.
ROUNDING = 1e-9
# By which share of a value, or of the median one, rounding in float32 may move a statistic. The
# greatest reference sets no scale: it may be an odd one, beside which all others would be equal.
OF_A_NETWORK = 1e-5


def p_values(
    scores: OfExamples, reference: Float[np.ndarray, " n"], ties: UInt64[np.ndarray, " m"] | None
) -> OfExamples:
    """The p-value of each score; a large score is unusual.

    Args:
        scores: of the examples.
        reference: scores of others, which are known to belong, in ascending order.
        ties: random words, by which ties are broken; None: an equal reference counts as greater,
            and p is too large where there are ties.
    """
    left, right = places(reference, scores)
    equal = right - left
    above = equal if ties is None else (ties % (equal + 1).astype(np.uint64)).astype(int)
    return (1.0 + len(reference) - right + above) / (len(reference) + 1)


def places(
    reference: Float[np.ndarray, " n"], values: OfExamples
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """Numbers of the reference that are below each value, and that are not above it.

    What differs by rounding is equal: a network rounds one example alone otherwise than among
    others.

    Args:
        reference: in ascending order.
        values: of the examples.
    """
    usual = np.median(np.abs(reference)) if len(reference) else 0.0
    few = OF_A_NETWORK * np.maximum(np.abs(values), usual)
    return (
        np.searchsorted(reference, values - few, "left"),
        np.searchsorted(reference, values + few, "right"),
    )


def suspects(p: OfExamples, rate: float) -> tuple[OfExamples, Bool[np.ndarray, " m"]]:
    """Adjusted p-values, and the examples that stand out.

    Args:
        p: p-values.
        rate: the expected share of false ones among those that are listed is at most this.
    """
    adjusted = np.asarray(false_discovery_control(p)) if len(p) else p
    return adjusted, adjusted <= rate * (1 + ROUNDING)


def fewest_together(references: int, examples: int, rate: float) -> int:
    """The least number of examples that can stand out at once, with so many references.

    The least p-value is 1 / (n + 1), and k of m examples stand out if theirs are at most k rate/m.
    """
    return math.ceil(examples / (rate * (references + 1)) * (1 - ROUNDING))


def fewest_references(examples: int, rate: float) -> int:
    """The fewest references by which one of the examples can stand out."""
    return math.ceil(examples / rate * (1 - ROUNDING)) - 1
