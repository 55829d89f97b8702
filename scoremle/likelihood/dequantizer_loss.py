"""What the training of a flow dequantizer minimises, per example, in nats.

    E[ log q(u | x) + bound(y) ],        bound(y) >= -log p(y),   y = pixels.encode(x, u)

The bound is that of `bound.py` for a score model that does not change, from one draw of each of
its expectations, in one call of the network (Song, Durkan et al., arXiv 2101.09258, section 4.3).
"""

import math

import jax
import jax.numpy as jnp

from scoremle.core.dequantize import Dequantizer
from scoremle.core.loss import denoising_residual
from scoremle.core.pixels import Pixels
from scoremle.core.sde import SDE
from scoremle.core.times import TimeSampler
from scoremle.likelihood.bound import prior_divergence
from scoremle.numerics import sum_data
from scoremle.types import Data, IntImages, NoiseFn, PerExample, PRNGKey

__all__ = ["dequantization_loss", "one_draw_bound"]

LOG_2PI = math.log(2 * math.pi)


def dequantization_loss(
    noise: NoiseFn,
    sde: SDE,
    pixels: Pixels,
    dequantizer: Dequantizer,
    x: IntImages,
    key: PRNGKey,
    *,
    eps: float,
    times: TimeSampler,
    offset: bool,
) -> PerExample:
    """A bound on minus the log-density of integer images, but for the constant of ``pixels``."""
    key_u, key_bound = jax.random.split(key)
    u, log_q = dequantizer(key_u, x)
    y = pixels.encode(x, u)
    return log_q + one_draw_bound(noise, sde, y, key_bound, eps=eps, times=times, offset=offset)


def one_draw_bound(
    noise: NoiseFn,
    sde: SDE,
    y: Data,
    key: PRNGKey,
    *,
    eps: float,
    times: TimeSampler,
    offset: bool,
) -> PerExample:
    """An unbiased estimate of the bound on -log p(y), or without ``offset`` on -log p_eps."""
    batch, dims = y.shape[0], y[0].size
    key_t, key_z = jax.random.split(key)
    t, density = times(key_t, batch)
    ends = jnp.full_like(t, eps)
    # Beside the draw at t one at eps, for the step from there to the data.
    calls = 2 if offset else 1
    z = jax.random.normal(key_z, (calls * batch, *y.shape[1:]), y.dtype)
    all_t = jnp.concatenate([t, ends][:calls])
    residuals = denoising_residual(noise, sde, jnp.concatenate([y] * calls), all_t, z)
    bound = prior_divergence(sde, y) + sde.likelihood_weight(t) / density * residuals[:batch]
    if not offset:
        return bound + dims * ((1 + LOG_2PI) / 2 + jnp.log(sde.sigma(ends)))
    known = (dims - sum_data(jnp.square(z[batch:]))) / 2
    return bound + residuals[batch:] + known + dims * (LOG_2PI - sde.log_snr(ends)) / 2
