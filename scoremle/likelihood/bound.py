"""The variational bound on -log p(x): what maximum-likelihood training minimises.

    -log p(x) <= prior + diffusion + reconstruction

    prior           KL( p(x_1 | x) || prior ), closed form
    diffusion       1/2 int_{lambda_1}^{lambda_eps} E ||eps(x_t, t) - z||^2 d lambda
    reconstruction  E[ -log q(x | x_eps) ],   q = N((x_eps - sigma eps) / alpha, (sigma/alpha)^2 I)

This is theorem 3 of Song, Durkan et al. (arXiv 2101.09258) with its step from t = eps to the data,
put in the three terms of Kingma et al. (arXiv 2107.00630): -E log prior(x_1) and the deterministic
integral D (log sigma_eps - log sigma_1) pair off with entropies, so that only two expectations
need samples. By Stein's identity E[eps . z] = sigma E[div eps], the sliced form has the integrand
1/2 E[||eps||^2 - 2 sigma div eps + D] in place of the denoising residual.

A control variate (`control.py`), subtracted from the integrand and given back in closed form, and
times drawn with the density that goes with it, make the error several times smaller.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scoremle.core.divergence import Hutchinson
from scoremle.core.loss import denoising_residual
from scoremle.core.sde import SDE
from scoremle.core.times import TimeSampler, log_snr_edges
from scoremle.likelihood.control_variate import Control, Controlled, bin_of
from scoremle.numerics import as_data, check_eps, expand, predict, sum_data
from scoremle.types import Data, NoiseFn, PerExample, PRNGKey, Times

__all__ = ["MATCHINGS", "Bound", "likelihood_bound"]

LOG_2PI = math.log(2 * math.pi)
# Draws for the reconstruction term, as a share of those for the diffusion term, whose error is
# much the larger; and the fewest that can give a standard error of their own.
LAST_SHARE = 32
MIN_LAST_DRAWS = 4


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bound:
    """A lower bound on each example's log-likelihood, in nats, and the terms it is made of.

    ``log_prob = -(prior + diffusion + reconstruction)``. ``stderr`` is its Monte-Carlo standard
    error, NaN where there were too few draws to tell. ``evaluations`` counts network evaluations.
    ``profile`` splits the diffusion term by log-SNR, over the bins of ``times.log_snr_edges``.
    """

    log_prob: PerExample
    prior: PerExample
    diffusion: PerExample
    reconstruction: PerExample
    stderr: PerExample
    evaluations: Int[Array, " b"]
    profile: Float[Array, "b bins"]


def prior_divergence(sde: SDE, x: Data) -> PerExample:
    """KL( p(x_1 | x) || N(0, prior_std^2 I) ) in nats."""
    one = jnp.ones(x.shape[0], x.dtype)
    ratio = jnp.square(sde.sigma(one) / sde.prior_std)
    mean = expand(sde.alpha(one) / sde.prior_std, x) * x
    return (sum_data(jnp.square(mean)) + x[0].size * (ratio - 1 - jnp.log(ratio))) / 2


def sliced_residual(
    noise: NoiseFn, sde: SDE, x: Data, t: Times, z: Data, key: PRNGKey
) -> PerExample:
    """1/2 (||eps||^2 - 2 sigma v.Jv + D) at x_t: in expectation the denoising residual."""
    estimator = Hutchinson()
    x_t = sde.perturb(x, t, z)
    value, div = estimator(lambda y: predict(noise, y, t), x_t, estimator.draw(key, x_t))
    return (sum_data(jnp.square(value)) + x[0].size) / 2 - sde.sigma(t) * div[0]


MATCHINGS = {
    "denoising": lambda noise, sde, x, t, z, key: denoising_residual(noise, sde, x, t, z),
    "sliced": sliced_residual,
}


def variance_of_mean(samples: Float[Array, "k b"], stratified: bool) -> PerExample:
    """Variance of the mean of ``k`` draws in order of time; NaN where there are too few to tell.

    Stratified draws are compared within pairs of neighbours, which a trend in time leaves alike.
    What the trend does is the error of the rule of even steps: with one random offset for all, to
    first order 1/k of its rise times a uniform number of variance 1/12 (Euler and Maclaurin).
    """
    k = samples.shape[0]
    if k < 2:
        return jnp.full(samples.shape[1], jnp.nan, samples.dtype)
    if not stratified:
        return jnp.var(samples, axis=0, ddof=1) / k
    pairs = k // 2
    gaps = samples[0 : 2 * pairs : 2] - samples[1 : 2 * pairs : 2]
    noise = jnp.mean(jnp.square(gaps), axis=0) / (2 * k)
    return noise + jnp.square((samples[-1] - samples[0]) / k) / 12


def likelihood_bound(
    noise: NoiseFn,
    sde: SDE,
    x: Data,
    key: PRNGKey,
    *,
    eps: float,
    times: TimeSampler,
    draws: int,
    matching: str = "denoising",
    offset: bool = True,
    control: Control | None = None,
) -> Bound:
    """A lower bound on log p(x) in nats, by ``draws`` network evaluations for the diffusion term.

    The times of one example are drawn together, so that a stratified sampler stratifies within the
    example. The reconstruction term takes a 32nd as many more (at least four). Without
    ``offset`` the bound is on log p_eps, as the published one without its correction: the entropy
    of the kernel at t = eps stands for the reconstruction. ``matching`` is "denoising" or
    "sliced". A ``control``, fitted on other images, leaves the mean as it is and lowers the error.
    Raises ValueError for what can't be had: no draws, eps outside (0, 1), another matching,
    integer ``x``, or a prediction of another shape.
    """
    check_eps(eps)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, not {draws}")
    if matching not in MATCHINGS:
        raise ValueError(f"matching must be one of {', '.join(MATCHINGS)}, not {matching!r}")
    x = as_data(x)
    batch, dims = x.shape[0], x[0].size
    key_t, key_diffusion, key_reconstruction = jax.random.split(key, 3)
    t, density = jax.vmap(lambda k: times(k, draws), out_axes=1)(jax.random.split(key_t, batch))
    order = jnp.argsort(t, axis=0)
    t, density = (jnp.take_along_axis(a, order, axis=0).astype(x.dtype) for a in (t, density))
    weight, log_snr = sde.likelihood_weight(t) / density, sde.log_snr(t)
    known = None if control is None else control.at(x)

    def term(inputs: tuple[Times, Times, PRNGKey]) -> PerExample:
        t, log_snr, key_draw = inputs
        key_z, key_v = jax.random.split(key_draw)
        z = jax.random.normal(key_z, x.shape, x.dtype)
        value = MATCHINGS[matching](noise, sde, x, t, z, key_v)
        return value if known is None else value - known.draw(log_snr, z)

    keys = jax.random.split(key_diffusion, draws)
    samples = weight * jax.lax.map(term, (t, log_snr, keys))
    variance = variance_of_mean(samples, times.stratified)
    profile = _by_bin(samples / draws, log_snr, log_snr_edges(sde, eps))
    if known is not None:
        profile = profile + known.integrals()
    diffusion, prior = jnp.sum(profile, axis=1), prior_divergence(sde, x)

    ends = jnp.full(batch, eps, x.dtype)
    more = max(MIN_LAST_DRAWS, draws // LAST_SHARE) if offset else 0
    if offset:
        last = _residual_at_data(noise, sde, x, ends, key_reconstruction, more, known)
        reconstruction = jnp.mean(last, axis=0) + dims * (LOG_2PI - sde.log_snr(ends)) / 2
        variance = variance + variance_of_mean(last, stratified=False)
    else:
        reconstruction = dims * ((1 + LOG_2PI) / 2 + jnp.log(sde.sigma(ends)))
    return Bound(
        log_prob=-(prior + diffusion + reconstruction),
        prior=prior,
        diffusion=diffusion,
        reconstruction=reconstruction,
        stderr=jnp.sqrt(variance),
        evaluations=jnp.full(batch, draws + more),
        profile=profile,
    )


def _by_bin(
    samples: Float[Array, "k b"], log_snr: Float[Array, "k b"], edges: Float[Array, " n"]
) -> Float[Array, "b bins"]:
    """The sum of each example's samples in each bin."""

    def one(samples: Float[Array, " k"], log_snr: Float[Array, " k"]) -> Float[Array, " bins"]:
        return jnp.zeros(len(edges) - 1, samples.dtype).at[bin_of(edges, log_snr)].add(samples)

    return jax.vmap(one, in_axes=1)(samples, log_snr)


def _residual_at_data(
    noise: NoiseFn,
    sde: SDE,
    x: Data,
    t: Times,
    key: PRNGKey,
    draws: int,
    known: Controlled | None,
) -> Float[Array, "k b"]:
    """1/2 ||eps - z||^2 at t = eps, less what is known of the noise in it (all of mean zero)."""

    def one(key_draw: PRNGKey) -> PerExample:
        z = jax.random.normal(key_draw, x.shape, x.dtype)
        excess = (sum_data(jnp.square(z)) - x[0].size) / 2
        return denoising_residual(noise, sde, x, t, z) - (
            excess if known is None else known.draw_at_data(z)
        )

    return jax.lax.map(one, jax.random.split(key, draws))
