"""Statistics of a metric's values: means over images and passes, with their errors."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import digamma, polygamma, stdtrit

from scoremle.likelihood.levels import Corrected

__all__ = [
    "Difference", "Values", "difference", "error_of_few", "means", "moderated", "profile",
    "summary", "with_correction",
]  # fmt: skip

# A column may have more axes; ``profile`` has one, over log-SNR.
Values = dict[str, Float[np.ndarray, "repeats n *more"]]

# Decimals of the profile in results.json.
PROFILE_DIGITS = 6
COVERAGE = 0.95
# Fewer variances can't tell what they have in common; more freedom is as good as infinite.
FEWEST_VARIANCES, MOST_FREEDOM = 4, 1e4


def summary(values: Values, name: str) -> dict[str, float | int | None]:
    """The mean over images of ``values[name]`` and its errors.

    ``stderr`` is over images, after the mean over passes. ``noise_stderr`` is the part of it that
    comes from dequantization and estimation, from the spread over passes; None with a single pass.
    """
    v = values[name]
    repeats, n = v.shape
    return {
        "mean": float(v.mean()),
        "stderr": _error(v.mean(axis=0).var(ddof=1), n) if n > 1 else None,
        "noise_stderr": _error(v.var(axis=0, ddof=1).mean(), v.size) if repeats > 1 else None,
        "images": n,
        "passes": repeats,
    }


class Difference(NamedTuple):
    """How much one value is above another: the mean over images and its standard error.

    The error is NaN of one image.
    """

    mean: float
    stderr: float
    images: int


def difference(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]
) -> Difference:
    """The second less the first, image by image: what both have in common cancels."""
    gap = second - first
    stderr = _error(gap.var(ddof=1), len(gap)) if len(gap) > 1 else float("nan")
    return Difference(float(gap.mean()), stderr, len(gap))


def _error(variance: np.floating, count: int) -> float:
    return float(np.sqrt(variance / count))


def means(values: Values) -> dict[str, float | None]:
    """What else is known, averaged over images: the terms of a bound, errors, evaluations.

    Errors are also given of the mean: random ones shrink with the number of images, the solver's
    may all have one sign and do not.
    """
    found: dict[str, float | None] = {}
    for name, v in values.items():
        if name not in ("bpd", "loss", "profile"):
            found[f"mean_{name}"] = float(v.mean()) if np.isfinite(v).all() else None
    for name in ("probe_stderr", "draw_stderr"):
        if name in values:
            v = values[name]
            of_mean = np.sqrt(np.square(v).mean() / v.size)
            found[f"{name}_of_mean"] = float(of_mean) if np.isfinite(of_mean) else None
    return found


def with_correction(
    result: Mapping[str, Any],
    found: Corrected,
    finest_bias: float,
    nodes: Sequence[int],
    differences: Sequence[Float[np.ndarray, " m"]],
) -> dict[str, Any]:
    """What a correction of the mean changes in a result: the value, and its errors part by part.

    ``errors`` are standard errors: of the ``images``, the ``probes``, the ``draws`` (of the
    dequantization noise), the ``solver`` (the correction's), ``all`` together, and of the mean as
    one of ``this_set`` of images, without their part. None where it takes a second pass to tell.
    ``finest_bias`` bounds what none of them has: the error of the finest level.
    """
    noise, probes = result["noise_stderr"], result.get("probe_stderr_of_mean")
    this_set = None if noise is None else float(np.hypot(noise, found.correction_stderr))
    return {
        "mean": found.mean,
        "stderr": found.stderr,
        "uncorrected_mean": result["mean"],
        "correction": found.correction,
        "errors": {
            "images": _without(result["stderr"], noise),
            "probes": probes,
            "draws": _without(noise, probes),
            "solver": found.correction_stderr,
            "all": found.stderr,
            "this_set": this_set,
            "finest_bias": finest_bias,
        },
        "level_nodes": list(nodes),
        "level_images": [result["images"], *map(len, differences)],
    }


def _without(whole: float | None, part: float | None) -> float | None:
    """The standard error that is left without a part; zero where the part seems larger."""
    if whole is None or part is None:
        return None
    return float(np.sqrt(max(whole**2 - part**2, 0)))


def profile(values: Values, edges: Float[np.ndarray, " edges"]) -> dict[str, list[float]]:
    """Which noise levels cost the bits: bits/dim for each unit of log-SNR, over its bins.

    Its integral is the diffusion term. The standard errors are over images.
    """
    density = values["profile"].mean(axis=0) / np.diff(edges)
    columns = {
        "log_snr_edges": edges,
        "bits_per_dim": density.mean(axis=0),
        "stderr": density.std(axis=0, ddof=1) / np.sqrt(len(density)) if len(density) > 1 else [],
    }
    return {name: [round(float(v), PROFILE_DIGITS) for v in c] for name, c in columns.items()}


def error_of_few(stderr: Float[np.ndarray, " n"], passes: int) -> Float[np.ndarray, " n"]:
    """Errors of means over a few passes, of which the double covers 95 %.

    A standard error by the spread of four values is itself off by 40 %. All the images together
    know it better (``moderated``); what is left unknown widens it, as Student's t does.

    Args:
        stderr: of each mean, by the spread of its own passes.
        passes: how many; of one, nothing is known.
    """
    if passes < 2:
        return np.full_like(stderr, np.nan)
    variance, freedom = moderated(np.square(stderr), passes - 1)
    return np.sqrt(variance) * float(stdtrit(freedom, (1 + COVERAGE) / 2)) / 2


def moderated(
    variance: Float[np.ndarray, " n"], freedom: int
) -> tuple[Float[np.ndarray, " n"], float]:
    """Variances of few values each, drawn towards what all have in common; and their freedom.

    The true ones are taken to be s0^2 d0 over chi-square of d0 degrees of freedom; d0 and s0 come
    from the mean and the spread of log(variance). The freedom of the result is that of the values
    and d0 together: infinite where the variances spread no more than so few values make them.

    Args:
        variance: of each, from values of its own.
        freedom: of each of them, one less than its number of values.

    Source: Smyth, Linear models and empirical Bayes methods (2004), sections 5 and 6.
    """
    if len(variance) < FEWEST_VARIANCES or not (variance > 0).all():
        return variance, float(freedom)
    half = freedom / 2
    logs = np.log(variance) - float(digamma(half)) + math.log(half)
    beyond = float(logs.var(ddof=1) - polygamma(1, half))
    if beyond <= polygamma(1, MOST_FREEDOM / 2):
        return np.full_like(variance, variance.mean()), math.inf
    prior = 2 * brentq(lambda x: float(polygamma(1, x)) - beyond, 1e-6, MOST_FREEDOM)
    common = math.exp(logs.mean() + float(digamma(prior / 2)) - math.log(prior / 2))
    return (prior * common + freedom * variance) / (prior + freedom), prior + freedom
