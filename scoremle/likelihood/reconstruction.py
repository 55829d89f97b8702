"""The exact discrete decoder: a bound on integers themselves, without dequantization.

An integer k stands at a point y_k. From z = alpha y + sigma e, the noisy image at t = eps, each
pixel is decoded by Bayes' rule with equal prior odds,

    p(k | z) = softmax_k( -(z / alpha - y_k)^2 / (2 s^2) ),       s = sigma / alpha,

which takes the place of the reconstruction in the bound of `bound.py`, so that it is one on the
probability of integers (Kingma et al., arXiv 2107.00630, equation 8). E[-log p(k | z)] is an
integral over one normal variable for each k: a table, without random error.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from scoremle.core.sde import SDE
from scoremle.core.times import TimeSampler
from scoremle.likelihood.bound import Bound, likelihood_bound
from scoremle.numerics import sum_data
from scoremle.types import IntImages, NoiseFn, PRNGKey

__all__ = ["decoding_cost", "discrete_bound"]

# The trapezoidal rule over the normal variable. It converges as fast as for the normal density.
REACH, NODES = 10.0, 401


def decoding_cost(
    points: Float[np.ndarray, " levels"], log_snr: float
) -> Float[np.ndarray, " levels"]:
    """E[-log p(k | z)] in nats for each level k, in float64."""
    e = np.linspace(-REACH, REACH, NODES)
    weights = np.exp(-np.square(e) / 2)
    weights /= weights.sum()
    gaps = (points[:, None] - points) * math.exp(log_snr / 2)  # [k j]
    # The exponent of level j beside that of the right one, k, is -gap^2 / 2 - gap e.
    costs = [logsumexp(-g[:, None] * (g[:, None] / 2 + e), axis=0) for g in gaps]
    return np.array(costs) @ weights


def discrete_bound(
    noise: NoiseFn,
    sde: SDE,
    x: IntImages,
    key: PRNGKey,
    *,
    points: Float[np.ndarray, " levels"],
    eps: float,
    times: TimeSampler,
    draws: int,
    matching: str = "denoising",
) -> Bound:
    """A lower bound on log P(x) in nats of integer images; ``points`` are the y_k."""
    with jax.ensure_compile_time_eval():
        log_snr = float(sde.log_snr(jnp.asarray(eps)))
    cost = decoding_cost(np.asarray(points, float), log_snr)
    y = jnp.asarray(points, float)[x]
    bound = likelihood_bound(
        noise, sde, y, key,
        eps=eps, times=times, draws=draws, matching=matching, offset=False,
    )  # fmt: skip
    reconstruction = sum_data(jnp.asarray(cost, y.dtype)[x])
    log_prob = -(bound.prior + bound.diffusion + reconstruction)
    return dataclasses.replace(bound, log_prob=log_prob, reconstruction=reconstruction)
