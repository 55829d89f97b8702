"""The shape k of the largest importance weights: can their mean be trusted?

Beyond a high cutoff, weights w are distributed as a generalised Pareto one of some shape k, and
have moments of order below 1/k. So k >= 1/2 means that the variance is infinite, and k >= 1 the
mean. With theta = -k / scale, the likelihood of n exceedances x is, at its best scale,

    l(theta) = n (log(-theta / k(theta)) - k(theta) - 1),     k(theta) = mean log(1 - theta x)

The estimate of theta is its mean over a grid, weighted by exp l (Zhang and Stephens, Technometrics
51, 2009). That of k is drawn towards 1/2 as by ten more exceedances, and the tail has the largest
fifth or 3 sqrt(n) of the weights, as in Pareto smoothed importance sampling (Vehtari, Simpson,
Gelman, Yao and Gabry, arXiv 1507.02646).
"""

import math

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

# Fewer exceedances give no shape.
FEWEST = 5
GRID = 30
PRIOR_K, PRIOR_SIZE = 0.5, 10
# Less, as a share of the largest weight, would have no inverse among floats.
SMALLEST = 1e-300
# A mean of weights of a larger shape converges too slowly to be of use, however many there are.
LARGEST_K = 0.7
# Beyond it they have no variance, which their standard error would need.
LARGEST_OF_ERRORS = 0.5


def pareto_k(log_weights: Float[np.ndarray, " n"]) -> float:
    """The shape of the tail of weights: infinite where too few are in it.

    It is minus infinite where the tail ends at once: all its weights but fewer than five are the
    same, and none is more than twice that. A quarter of Pareto's tail is, if k is 1/2.
    """
    n = len(log_weights)
    size = int(min(n / 5, 3 * math.sqrt(n)))
    weights = np.sort(np.exp(log_weights - np.max(log_weights)))
    cutoff = weights[-size - 1]
    exceedances = weights[weights > cutoff] - cutoff
    if len(exceedances) >= FEWEST:
        return _fit(exceedances)
    return -math.inf if size >= FEWEST and weights[-1] <= 2 * cutoff else math.inf


def largest_trusted(n: int) -> float:
    """The largest k with which the mean of n weights is of use, for n of 2 or more."""
    return min(LARGEST_K, 1 - 1 / math.log10(n))


def _fit(x: Float[np.ndarray, " n"]) -> float:
    """k of exceedances in rising order."""
    n, points = len(x), GRID + math.isqrt(len(x))
    quartile = max(x[int(n / 4 + 0.5) - 1], SMALLEST)
    theta = 1 / x[-1] + (1 - np.sqrt(points / (np.arange(points) + 0.5))) / (3 * quartile)
    theta[theta == 0] = np.spacing(1 / x[-1])  # at 0, of an exponential tail, are limits alone
    k = np.mean(np.log1p(-theta[:, None] * x), axis=1)
    best = theta @ softmax(n * (np.log(-theta / k) - k - 1))
    k_of_best = np.mean(np.log1p(-best * x))
    return float((n * k_of_best + PRIOR_SIZE * PRIOR_K) / (n + PRIOR_SIZE))
