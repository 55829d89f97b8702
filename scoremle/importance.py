"""The importance-weighted bound: several draws of the dequantization noise for one image.

    -log P(x) <= E[ -log 1/K sum_k w_k ],      w_k = p(y_k) / q(u_k | x)

It falls with K, towards -log P(x) (Burda et al., arXiv 1509.00519). The draws are streamed, so
that memory does not grow with K.

log p(y_k) is known up to the noise n_k of a trace estimate, unbiased; but the logarithm of a mean
of exponentials is not linear in it. With shares a_k = w_k / sum w, to second order,

    log sum a_k exp(n_k)  =  sum a_k n_k  +  1/2 (sum a_k n_k^2 - (sum a_k n_k)^2)

The first term has mean zero; the second makes the bound optimistic, for independent n_k of
variance v by 1/2 sum a_k (1 - a_k) v, which is v/2 for many even shares. Here all draws of an
image share their probes. Most of n_k is then the same for all k, and drops out of the second term.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scoremle.arrays import PerExample, PRNGKey
from scoremle.likelihood import Likelihood

__all__ = ["ImportanceBound", "importance_bound"]

# A key to the likelihood of dequantized images and log q(u | x).
Draw = Callable[[PRNGKey], tuple[Likelihood, PerExample]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImportanceBound:
    """log 1/K sum w of each example in nats, with what makes it uncertain.

    ``draw_stderr``: from the draws, to first order (NaN for one). ``probe_stderr``: the part of
    the traces' noise. ``probe_bias``: by how much that noise raises ``log_prob`` on average, an
    estimate that holds while it is small. Both are NaN where one random probe can't tell.
    ``effective_draws`` = 1 / sum a^2. ``solver_error`` is the mean over draws, with their shares.
    """

    log_prob: PerExample
    draw_stderr: PerExample
    probe_stderr: PerExample
    probe_bias: PerExample
    effective_draws: PerExample
    solver_error: PerExample
    evaluations: Int[Array, " b"]


class _Sums(NamedTuple):
    """Sums over draws in units of the greatest weight so far, exp(top)."""

    top: PerExample
    weights: PerExample
    squares: PerExample
    deviations: Float[Array, "m b"]
    variances: PerExample
    errors: PerExample
    evaluations: Int[Array, " b"]


def importance_bound(draw: Draw, key: PRNGKey, samples: int) -> ImportanceBound:
    """The bound from ``samples`` draws; ``draw`` uses the same probes each time."""
    keys = jax.random.split(key, samples)
    like, _ = jax.eval_shape(draw, keys[0])
    zero = jnp.zeros(like.log_prob.shape, like.log_prob.dtype)
    start = _Sums(
        jnp.full_like(zero, -jnp.inf), zero, zero,
        jnp.zeros(like.probe_deviations.shape, zero.dtype), zero, zero,
        jnp.zeros(like.evaluations.shape, like.evaluations.dtype),
    )  # fmt: skip
    sums, _ = jax.lax.scan(lambda sums, k: (_add(sums, *draw(k)), None), start, keys)
    return _bound(sums, samples)


def _add(sums: _Sums, found: Likelihood, log_q: PerExample) -> _Sums:
    log_weight = found.log_prob - log_q
    top = jnp.maximum(sums.top, log_weight)
    old, w = jnp.exp(sums.top - top), jnp.exp(log_weight - top)
    return _Sums(
        top=top,
        weights=sums.weights * old + w,
        squares=sums.squares * old**2 + w**2,
        deviations=sums.deviations * old + w * found.probe_deviations,
        variances=sums.variances * old + w * jnp.square(found.probe_stderr),
        errors=sums.errors * old + w * found.solver_error,
        evaluations=sums.evaluations + found.evaluations,
    )


def _bound(sums: _Sums, samples: int) -> ImportanceBound:
    share_squares = sums.squares / jnp.square(sums.weights)
    spread = (samples * share_squares - 1) / (samples - 1 or jnp.nan)
    probe_variance = jnp.sum(jnp.square(sums.deviations / sums.weights), axis=0)
    return ImportanceBound(
        log_prob=sums.top + jnp.log(sums.weights / samples),
        draw_stderr=jnp.sqrt(jnp.maximum(spread, 0)),
        probe_stderr=jnp.sqrt(probe_variance),
        probe_bias=(sums.variances / sums.weights - probe_variance) / 2,
        effective_draws=1 / share_squares,
        solver_error=sums.errors / sums.weights,
        evaluations=sums.evaluations,
    )
