"""Fit of the control variate by a few evaluations of the network, before the bound takes many.

At each of a number of log-SNRs, pairs of draws of the noise for the same images give

* the coefficients of the control variate (`control_variate.py`), by regression: differences within
  pairs give those of the noise, means of pairs those of the level;
* the density over log-SNR that suits what remains: proportional to its standard deviation, which
  minimises the sum over bins of variance / density.

The images are none of those that the Gaussian was fitted on, which it overfits. The variance that
coefficients from one half of them leave is measured on the other half; unless it is smaller than
without a control variate, the bound takes none. The draws are not those of the bound, which
therefore stays unbiased.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Key

from scoremle.core.arguments import as_data, check_choice
from scoremle.core.keys import as_key, example_keys, normal, split
from scoremle.core.prediction import check_model
from scoremle.core.programs import OfModels
from scoremle.core.sde import SDE
from scoremle.core.times import log_snr_edges, times_at
from scoremle.likelihood.control_variate import Control, FittedGaussian, noise_features
from scoremle.likelihood.elbo import MATCHINGS
from scoremle.numerics import as_pytree, dims_of, sum_data
from scoremle.progress import progress
from scoremle.types import Data, NoiseFn, PerExample, PRNGKey, Scalar, Times

__all__ = ["fit_control"]

# For each example: a residual, features of its noise, and the Gaussian's mean residual.
Drawn = tuple[PerExample, Float[Array, "b features"], PerExample]

# Of examples that are also for the Gaussian, every fourth is for the coefficients, so many at
# most. Fewer than two do not show whether coefficients generalise.
PILOT_SHARE, PILOT_EXAMPLES, FEWEST = 4, 128, 2
# Pairs of draws in each bin, or one for each example where these are more.
PAIRS = 128
# Of the density, this share is even over log-SNR: no weight exceeds its inverse.
EVEN = 0.1
# Directions of the features whose spread is less than this share of the greatest count as
# rounding.
RCOND = 1e-2


def fit_control(
    noise: NoiseFn,
    sde: SDE,
    x: Data,
    key: PRNGKey,
    *,
    eps: Scalar,
    gaussian: FittedGaussian | None = None,
    matching: str = "denoising",
    label: str = "",
) -> Control:
    """The control variate for bounds with this network, fitted on the examples ``x``.

    Takes two network evaluations for each of 128 pairs in each bin, or for each example of a
    given Gaussian, where these are more.

    Args:
        noise: the noise prediction eps(x, t).
        sde: the SDE that it belongs to.
        x: data of the kind that will be measured, but others.
        key: draws the noise.
        eps: the smallest time.
        gaussian: one fitted on others than ``x``; None: fitted on three quarters of ``x`` or
            more, which should be as many as there are (up to ``most_examples``).
        matching: that of the bound.
        label: under which progress is shown, if there is one.

    From fewer than eight examples, or two beside a given Gaussian, nothing is fitted: the
    control changes nothing then.

    Raises UserError for a log-SNR that each dimension has of its own, a network for another SDE,
    another matching, and data that are not finite reals.
    """
    check_choice("matching", matching, MATCHINGS)
    x, key = as_data(x), as_key(key)
    check_model(noise, sde, eps, x.shape[1:])
    if gaussian is None:
        count = min(len(x) // PILOT_SHARE, PILOT_EXAMPLES)
        if count < FEWEST:
            return _none(sde, x, eps)
        gaussian, x = FittedGaussian.fit(x[count:]), x[:count]
    if len(x) < FEWEST:
        return _none(sde, x, eps)
    edges = log_snr_edges(sde, eps)
    groups = np.arange(max(PAIRS, len(x))) % len(x) % 2
    x = x[jnp.arange(len(groups)) % len(x)]
    key_within, key_bins, key_last = jax.random.split(key, 3)
    # Each bin is covered evenly, a part of it for each example.
    within = (jnp.arange(len(x)) + jax.random.uniform(key_within, (len(edges) - 1, 1))) / len(x)
    lam = edges[:-1, None] + jnp.diff(edges)[:, None] * within
    model = as_pytree(noise), sde, gaussian, x, eps
    slopes, levels = list[Fit](), list[Fit]()
    with progress(label, len(lam), "bin") as advance:
        for of_bin, keys in zip(lam, jax.random.split(key_bins, (len(lam), 2)), strict=True):
            residual, features, means = _numbers(_pair(*model, of_bin, keys, matching))
            slopes.append(_noise_fit(residual, features, groups, WITHOUT))
            levels.append(_level_fit(residual, means, groups))
            advance(len(levels))
    ends = jnp.full(len(x), edges[-1])
    last = _pair(*model, ends, jax.random.split(key_last), "denoising")
    residual, features, _ = _numbers(last)
    at_data = _noise_fit(residual, features, groups, WITHOUT_AT_DATA)
    spread = np.sqrt([fit.left for fit in slopes])
    shares = spread / spread.sum()
    return Control(
        gaussian=gaussian,
        edges=edges,
        levels=jnp.asarray([fit.coefficients for fit in levels], x.dtype),
        slopes=jnp.asarray([fit.coefficients for fit in (*slopes, at_data)], x.dtype),
        shares=jnp.asarray((1 - EVEN) * shares + EVEN / len(shares), x.dtype),
    )


# Coefficients of the features that make the bound the one without a control, in which
# (||z||^2 - D) / 2 is subtracted at t = eps (`elbo.py`).
WITHOUT, WITHOUT_AT_DATA = np.zeros(4), np.array([0.0, 1.0, 0.0, 0.0])


def _none(sde: SDE, x: Data, eps: Scalar) -> Control:
    """The control that changes nothing."""
    edges, dims = log_snr_edges(sde, eps), dims_of(x)
    bins = len(edges) - 1
    nothing = FittedGaussian(jnp.zeros(dims), jnp.zeros((dims, 0)), jnp.zeros(0))
    slopes = np.stack([*[WITHOUT] * bins, WITHOUT_AT_DATA])
    return Control(
        gaussian=nothing,
        edges=edges,
        levels=jnp.zeros((bins, 2)),
        slopes=jnp.asarray(slopes, x.dtype),
        shares=jnp.full(bins, 1 / bins),
    )


@OfModels
def _pair(
    noise: NoiseFn, sde: SDE, gaussian: FittedGaussian, x: Data, eps: Scalar, lam: Times,
    keys: Key[Array, "2"], matching: str,
) -> tuple[Float[Array, "2 n"], Float[Array, "2 n p"], Float[Array, "2 n"]]:  # fmt: skip
    """Two draws at a log-SNR of each example, by a key each."""
    deviations = gaussian.deviations(x)
    t = times_at(sde, eps, lam)

    def draw(key: PRNGKey) -> Drawn:
        key_z, key_v = split(example_keys(key, len(x)))
        z = normal(key_z, x)
        x_t = sde.perturb(x, t, z)
        residual = sum_data(MATCHINGS[matching](noise, sde, x_t, t, z, key_v)[1])
        features = noise_features(gaussian, lam, x, deviations, z)
        return residual, features, gaussian.mean_residual(lam, deviations)

    return jax.lax.map(draw, keys)


def _numbers(drawn: tuple[Array, ...]) -> list[np.ndarray]:
    return [np.asarray(a, np.float64) for a in jax.device_get(drawn)]


class Fit(NamedTuple):
    """Coefficients, and the mean square that they leave of held-out examples."""

    coefficients: Float[np.ndarray, " p"]
    left: float


def _noise_fit(
    residual: Float[np.ndarray, "2 n"],
    features: Float[np.ndarray, "2 n p"],
    groups: Integer[np.ndarray, " n"],
    without: Float[np.ndarray, " p"],
) -> Fit:
    """Coefficients of the features of the noise, and the variance that they leave.

    By differences within pairs, to which the level of an image adds nothing.
    """
    causes, gaps = features[0] - features[1], residual[0] - residual[1]
    fit = _better(causes, gaps, groups, without)
    return fit._replace(left=fit.left / 2)


def _level_fit(
    residual: Float[np.ndarray, "2 n"],
    mean_residual: Float[np.ndarray, "2 n"],
    groups: Integer[np.ndarray, " n"],
) -> Fit:
    """Constant and coefficient of the Gaussian's mean residual in the level."""
    m, level = mean_residual[0], residual.mean(axis=0)
    return _better(
        np.stack([np.ones_like(m), m], axis=1), level, groups, np.array([level.mean(), 0.0])
    )


def _better(
    x: Float[np.ndarray, "n p"],
    y: Float[np.ndarray, " n"],
    groups: Integer[np.ndarray, " n"],
    without: Float[np.ndarray, " p"],
) -> Fit:
    """The regression of y on x, if its residuals on held-out halves are smaller than those of the
    coefficients ``without``; else these."""
    left = 0.0
    for group in (0, 1):
        held_out = groups == group
        others = _regression(x[~held_out], y[~held_out])
        left += np.square(y[held_out] - x[held_out] @ others).sum() / len(y)
    if left < (bare := np.square(y - x @ without).mean()):
        return Fit(_regression(x, y), left)
    return Fit(without, bare)


def _regression(x: Float[np.ndarray, "n p"], y: Float[np.ndarray, " n"]) -> np.ndarray:
    scale = np.sqrt(np.square(x).mean(axis=0)) + np.finfo(np.float64).tiny
    return np.linalg.lstsq(x / scale, y, rcond=RCOND)[0] / scale
