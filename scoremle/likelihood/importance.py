"""The importance-weighted bound: several draws of the dequantization noise for one image.

    -log P(x) <= E[ -log 1/K sum_k w_k ],      w_k = p(y_k) / q(u_k | x)

It falls with K, towards -log P(x) (Burda et al., arXiv 1509.00519). The draws are streamed: of
each a few numbers are kept, so that memory does not grow with K.

log p(y_k) is known up to the noise n_k of a trace estimate, unbiased; but the logarithm of a mean
of exponentials is not linear in it. With shares a_k = w_k / sum w, to second order,

    log sum a_k exp(n_k)  =  sum a_k n_k  +  1/2 (sum a_k n_k^2 - (sum a_k n_k)^2)

The first term has mean zero; the second makes the bound optimistic, for independent n_k of
variance v by 1/2 sum a_k (1 - a_k) v, which is v/2 for many even shares. Here all draws of an
image share their probes. Most of n_k is then the same for all k, and drops out of the second term.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scoremle.core.arguments import check_count, check_kind
from scoremle.core.keys import as_keys, split
from scoremle.core.pytree import frozen_pytree
from scoremle.errors import UserError
from scoremle.likelihood.record import Likelihood
from scoremle.types import Keys, PerExample

__all__ = ["importance_bound", "jackknife"]

# A key for each image to the likelihood of dequantized images and log q(u | x).
DrawLikelihood = Callable[[Keys], tuple[Likelihood, PerExample]]


@frozen_pytree(eq=False)
class ImportanceBound:
    """log 1/K sum w of each example in nats, with what makes it uncertain.

    ``draw_stderr``: from the draws, by the jackknife (NaN for one draw); where ``effective_draws``
    = 1 / sum a^2 is near one, it is a sign of that and no more. ``probe_stderr``: the part of the
    traces' noise. ``probe_bias``: by how much that noise raises ``log_prob`` on average, an
    estimate that holds while it is small. Both are NaN where one random probe is not enough.
    ``solver_error`` is the mean over draws, with their shares.
    """

    log_prob: PerExample
    draw_stderr: PerExample
    probe_stderr: PerExample
    probe_bias: PerExample
    effective_draws: PerExample
    solver_error: PerExample
    evaluations: Int[Array, " b"]


def importance_bound(draw: DrawLikelihood, keys: Keys, samples: int) -> ImportanceBound:
    """The importance-weighted bound on log P of images, in nats but for a constant of the pixels.

    Args:
        draw: from keys to the likelihood of dequantized images and log q(u | x); it uses the same
            probes each time.
        keys: one for each image, or one of which ``draw`` makes its own.
        samples: how many draws.

    Raises UserError for no draws, and an invalid ``draw``.

    Example:
        >>> sde, pixels, x = scoremle.VP(), scoremle.Pixels(8), jnp.asarray([[1, 6]])
        >>> def draw(keys):
        ...     u, log_q = scoremle.Uniform()(keys, x)
        ...     return scoremle.ode_log_likelihood(  # of data N(0, I)
        ...         lambda x, t: sde.sigma(t)[:, None] * x, sde, pixels.encode(x, u), keys,
        ...         eps=1e-3, divergence=scoremle.Exact(),
        ...     ), log_q
        >>> bound = scoremle.importance_bound(draw, jax.random.key(0), samples=64)
        >>> print(f"{scoremle.bits_per_dim(bound.log_prob, pixels, 2)[0]:.1f}")  # of exactly 3.61
        3.6
    """

    def one(keys: Keys) -> tuple[Array, ...]:
        drawn = draw(keys)
        such = "a likelihood and log q, as the example has them"
        check_kind("what draw gives", drawn, tuple, such)
        found, log_q = drawn
        check_kind("the first that draw gives", found, Likelihood, such)
        if np.shape(log_q) not in ((), found.log_prob.shape):
            shape = found.log_prob.shape
            raise UserError(f"draw must give log q of shape {shape}, not {np.shape(log_q)}")
        log_weight = found.log_prob - log_q
        return log_weight, found.probe_deviations, found.solver_error, found.evaluations

    check_kind("draw", draw, Callable, "the function of the example")
    check_count("samples", samples)
    keys = as_keys(keys, "keys")
    log_weights, deviations, errors, evaluations = jax.lax.map(one, split(keys, samples))
    total = jax.nn.logsumexp(log_weights, axis=0)
    shares = jnp.exp(log_weights - total)
    together = jnp.einsum("kb,kmb->mb", shares, deviations, precision="highest")
    probe_variance = jnp.sum(jnp.square(together), axis=0)
    apart = jnp.einsum("kb,kmb->b", shares, jnp.square(deviations), precision="highest")
    return ImportanceBound(
        log_prob=total - math.log(samples),
        draw_stderr=jackknife(log_weights),
        probe_stderr=jnp.sqrt(probe_variance),
        probe_bias=(apart - probe_variance) / 2,
        effective_draws=1 / jnp.sum(jnp.square(shares), axis=0),
        solver_error=jnp.sum(shares * errors, axis=0),
        evaluations=jnp.sum(evaluations, axis=0),
    )


def jackknife(log_weights: Float[Array, "k b"]) -> PerExample:
    """Standard error of the logarithm of the mean weight, from leaving out each draw in turn.

    Args:
        log_weights: [k b] log p - log q of each draw, in nats.
    """
    k = len(log_weights)
    if k == 1:
        return jnp.full_like(log_weights[0], jnp.nan)
    log_weights = log_weights - jnp.max(log_weights, axis=0)  # sums are rounded by size
    none = jnp.full_like(log_weights[:1], -jnp.inf)
    before = jnp.concatenate([none, jax.lax.cumlogsumexp(log_weights)[:-1]])
    behind = jnp.concatenate([jax.lax.cumlogsumexp(log_weights, reverse=True)[1:], none])
    others = jnp.logaddexp(before, behind)
    return jnp.std(others, axis=0) * math.sqrt(k - 1)
