"""Statistics of values of images: differences, profiles, errors of few passes."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import digamma, polygamma, stdtrit

from scoremle.core.arguments import as_reals
from scoremle.errors import UserError
from scoremle.likelihood.mean import PassValues, standard_error

__all__ = ["Difference", "error_of_few", "half_interval", "paired_difference", "profile"]

# Decimals of the profile in results.json.
PROFILE_DIGITS = 6
COVERAGE = 0.95
# So few variances do not show their common value. Above so many degrees of freedom a t
# distribution is a normal one.
FEWEST_VARIANCES, MOST_FREEDOM = 4, 1e4
# The first few halve x, where it is small; the last ones double its digits.
NEWTON_STEPS = 20


class Difference(NamedTuple):
    """Difference of two values: its mean over images, and the standard error of that mean.

    The error is NaN for one image.

    Args:
        mean: over images, in the unit of the values.
        stderr: of that mean.
        images: how many.
    """

    mean: float
    stderr: float
    images: int


def paired_difference(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]
) -> Difference:
    """The second less the first, image by image: what both have in common cancels.

    Args:
        first: [n] values of images.
        second: [n] those of the same images.

    Raises UserError unless there is a value of each for one image or more.
    """
    first, second = as_reals(first, "first"), as_reals(second, "second")
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise UserError(
            f"first and second must be [n] of the same images, not {first.shape} and"
            f" {second.shape}"
        )
    gap = second - first
    stderr = standard_error(gap.var(ddof=1), len(gap)) if len(gap) > 1 else float("nan")
    return Difference(float(gap.mean()), stderr, len(gap))


def profile(values: PassValues, edges: Float[np.ndarray, " edges"]) -> dict[str, list[float]]:
    """Profile of the bits over noise levels: bits/dim for each unit of log-SNR, by bins.

    Its integral is the diffusion term. The standard errors are over images.

    Args:
        values: with a column ``profile`` [passes n bins].
        edges: of the bins, in log-SNR.
    """
    density = values["profile"].mean(axis=0) / np.diff(edges)
    columns = {
        "log_snr_edges": edges,
        "bits_per_dim": density.mean(axis=0),
        "stderr": density.std(axis=0, ddof=1) / np.sqrt(len(density)) if len(density) > 1 else [],
    }
    return {name: [round(float(v), PROFILE_DIGITS) for v in c] for name, c in columns.items()}


def half_interval(stderr: float, images: int) -> float:
    """Half of the interval that covers the truth in 95 % of cases: Student's, for few images.

    Args:
        stderr: of a mean over the images, by their spread.
        images: how many; for one it is NaN.
    """
    return float(stdtrit(images - 1, (1 + COVERAGE) / 2)) * stderr


def error_of_few(stderr: Float[np.ndarray, " n"], passes: int) -> Float[np.ndarray, " n"]:
    """Errors of means over a few passes, of which the double covers 95 %.

    A standard error by the spread of four values is itself off by 40 %. All images together
    estimate it better (``moderated``); the uncertainty left widens it, as Student's t does.

    Args:
        stderr: of each mean, by the spread of its own passes; NaN where one of them failed, which
            moves no other's error.
        passes: how many; for one the error is unknown.
    """
    found, known = np.full_like(stderr, np.nan), np.isfinite(stderr)
    if passes < 2:
        return found
    variance, freedom = moderated(np.square(stderr[known]), passes - 1)
    found[known] = np.sqrt(variance) * float(stdtrit(freedom, (1 + COVERAGE) / 2)) / 2
    return found


def moderated(
    variance: Float[np.ndarray, " n"], freedom: int
) -> tuple[Float[np.ndarray, " n"], float]:
    """Variances of few values each, shrunk to their common value; and their degrees of freedom.

    The true ones are taken to be s0^2 d0 over chi-square of d0 degrees of freedom; d0 and s0 come
    from the mean and the spread of log(variance). The freedom of the result is that of the values
    and d0 together, or that of all values where it is less, as where the variances spread no more
    than so few values make them.

    Args:
        variance: of each, from values of its own.
        freedom: of each of them, one less than its number of values.

    Source: Smyth, Linear models and empirical Bayes methods (2004), sections 5 and 6.
    """
    if len(variance) < FEWEST_VARIANCES or not (variance > 0).all():
        return variance, float(freedom)
    half, pooled = freedom / 2, freedom * len(variance)
    logs = np.log(variance) - float(digamma(half)) + math.log(half)
    beyond = float(logs.var(ddof=1) - polygamma(1, half))
    if beyond <= polygamma(1, MOST_FREEDOM / 2):
        return np.full_like(variance, variance.mean()), float(pooled)
    prior = 2 * _inverse_trigamma(beyond)
    common = math.exp(logs.mean() + float(digamma(prior / 2)) - math.log(prior / 2))
    shrunk = (prior * common + freedom * variance) / (prior + freedom)
    return shrunk, min(prior + freedom, float(pooled))


def _inverse_trigamma(value: float) -> float:
    """x whose trigamma is this, by Newton's method on its inverse (Smyth, appendix).

    scipy.optimize is slow to import, and this is computed at each call of ``scoremle score``.
    """
    x = 0.5 + 1 / value
    for _ in range(NEWTON_STEPS):
        trigamma = float(polygamma(1, x))
        x += trigamma * (1 - trigamma / value) / float(polygamma(2, x))
    return x
