"""What a few evaluations of the network tell before the bound is evaluated with many.

At each of a number of log-SNRs, pairs of draws of the noise for the same images give

* the coefficients of the control variate (`control_variate.py`), by regression: differences within
  pairs give those of the noise, means of pairs those of the level;
* the density over log-SNR that suits what remains: proportional to its standard deviation, which
  minimises the sum over bins of variance / density.

The draws are not those of the bound, so that it is as unbiased as without.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scoremle.core.keys import example_keys, normal, split
from scoremle.core.sde import SDE
from scoremle.core.times import log_snr_edges
from scoremle.likelihood.bound import MATCHINGS
from scoremle.likelihood.control_variate import Control, FittedGaussian, noise_features
from scoremle.numerics import sum_data
from scoremle.types import Data, NoiseFn, PerExample, PRNGKey, Scalar, Times

__all__ = ["fit_control"]

# Of each example: a residual, features of its noise, and the Gaussian's mean residual.
Drawn = tuple[PerExample, Float[Array, "b features"], PerExample]

# Of the density, this share is even over log-SNR: no weight exceeds its inverse.
EVEN = 0.1
# Directions of the features whose spread is less than this share of the greatest can't be told
# from one another.
RCOND = 1e-2


def fit_control(
    noise: NoiseFn,
    sde: SDE,
    x: Data,
    key: PRNGKey,
    *,
    eps: Scalar,
    gaussian: FittedGaussian,
    matching: str = "denoising",
) -> Control:
    """The control variate for bounds with this network, by a pilot on the examples ``x``.

    Takes two network evaluations for each example and bin. A hundred examples are enough.

    Args:
        noise: the noise prediction eps(x, t).
        sde: what noise is added when.
        x: training examples, not those whose bound is wanted.
        key: draws times and noise.
        eps: the smallest time.
        gaussian: fitted to training examples.
        matching: "denoising" or "sliced", as of the bound.

    Raises ValueError for a log-SNR that each dimension has of its own.
    """
    edges = log_snr_edges(sde, eps)
    deviations = gaussian.deviations(x)
    key_place, key_bins, key_last = jax.random.split(key, 3)
    # Each bin is covered evenly, one place for each example.
    place = (jnp.arange(len(x)) + jax.random.uniform(key_place, (len(edges) - 1, 1))) / len(x)
    lam = edges[:-1, None] + jnp.diff(edges)[:, None] * place

    def draw(matching: str, lam: Times, key: PRNGKey) -> Drawn:
        key_z, key_v = split(example_keys(key, len(x)))
        z = normal(key_z, x)
        t = jnp.clip(sde.time_of_log_snr(lam), eps, 1.0)
        x_t = sde.perturb(x, t, z)
        residual = sum_data(MATCHINGS[matching](noise, sde, x_t, t, z, key_v)[1])
        features = noise_features(gaussian, lam, x, deviations, z)
        return residual, features, gaussian.mean_residual(lam, deviations)

    @partial(jax.jit, static_argnums=0)
    def pairs(matching: str, lam: Float[Array, "rows n"], key: PRNGKey) -> Drawn:
        keys = jax.random.split(key, 2 * len(lam))
        drawn = jax.lax.map(lambda row: draw(matching, *row), (jnp.repeat(lam, 2, axis=0), keys))
        return jax.tree.map(lambda a: a.reshape(len(lam), 2, *a.shape[1:]), drawn)

    within = _numbers(pairs(matching, lam, key_bins))
    at_data = _numbers(pairs("denoising", jnp.full((1, len(x)), edges[-1]), key_last))
    slopes, spread = _noise_fit(*within[:2])
    last_slopes, _ = _noise_fit(*at_data[:2])
    shares = spread / spread.sum()
    return Control(
        gaussian=gaussian,
        edges=edges,
        levels=jnp.asarray(_level_fit(within[0], within[2]), x.dtype),
        slopes=jnp.asarray(np.concatenate([slopes, last_slopes]), x.dtype),
        shares=jnp.asarray((1 - EVEN) * shares + EVEN / len(shares), x.dtype),
    )


def _numbers(drawn: tuple[Array, ...]) -> list[np.ndarray]:
    return [np.asarray(a, np.float64) for a in jax.device_get(drawn)]


def _noise_fit(residual: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the features of the noise, and the standard deviation that they leave.

    For each row, by differences within pairs, to which the level of an image adds nothing.
    """
    gaps, causes = residual[:, 0] - residual[:, 1], features[:, 0] - features[:, 1]
    slopes = np.stack([_regression(x, y) for x, y in zip(causes, gaps, strict=True)])
    left = gaps - np.einsum("rnf,rf->rn", causes, slopes)
    return slopes, np.sqrt(np.square(left).mean(axis=1) / 2)


def _level_fit(residual: np.ndarray, mean_residual: np.ndarray) -> np.ndarray:
    """Constant and coefficient of the Gaussian's mean residual in the level, [rows 2]."""
    rows = zip(mean_residual[:, 0], residual.mean(axis=1), strict=True)
    return np.stack([_regression(np.stack([np.ones_like(m), m], axis=1), y) for m, y in rows])


def _regression(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    scale = np.sqrt(np.square(x).mean(axis=0)) + np.finfo(np.float64).tiny
    return np.linalg.lstsq(x / scale, y, rcond=RCOND)[0] / scale
