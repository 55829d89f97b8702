"""The ELBO, the variational bound on log p(x): what maximum-likelihood training minimises.

    ELBO = -(prior + diffusion + reconstruction) <= log p(x)

    prior           KL( p(x_1 | x) || prior ), closed form
    diffusion       1/2 int_{lambda_1}^{lambda_eps} E ||eps(x_t, t) - z||^2 d lambda
    reconstruction  E[ -log p(data | x_eps) ]: `decoders.py` has the choices

This is theorem 3 of Song, Durkan et al. (arXiv 2101.09258) with its step from t = eps to the data,
put in the three terms of Kingma et al. (arXiv 2107.00630): -E log prior(x_1) and the deterministic
integral D (log sigma_eps - log sigma_1) pair off with entropies, so that only two expectations
need samples. By Stein's identity E[eps . z] = sigma E[div eps], the sliced form has the integrand
1/2 E[||eps||^2 - 2 sigma div eps + D] in place of the denoising residual.

A control variate (`control_variate.py`), subtracted from the integrand and given back in closed
form, and times drawn with the density that goes with it, make the error several times smaller.
"""

import math
from collections.abc import Callable
from dataclasses import field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scoremle.core.arguments import as_array, as_data, check_choice, check_count, check_kind
from scoremle.core.keys import example_keys, fold_in, normal, per_example, split
from scoremle.core.prediction import check_model
from scoremle.core.pytree import frozen_pytree, known, static
from scoremle.core.sde import SDE
from scoremle.core.times import TIME_SAMPLER, TimeSampler, bin_of, log_snr_edges
from scoremle.errors import UserError
from scoremle.likelihood.control_variate import Control
from scoremle.likelihood.decoders import Decoder, GaussianDecoder
from scoremle.numerics import dims_of, expand, predict_ranged, sum_data, sum_over, within_forms
from scoremle.types import Data, DataLike, IntImages, Keys, NoiseFn, PerExample, Scalar, Times

__all__ = ["ELBO", "decoder_draws", "elbo"]

# Draws for the reconstruction term, as a share of those for the diffusion term, whose error is
# much the larger; and the fewest that can give a standard error of their own.
LAST_SHARE = 32
MIN_LAST_DRAWS = 4


@frozen_pytree(eq=False)
class ELBO:
    """The ELBO of each example, a lower bound on log p(x) in nats, and the terms it is made of.

    ``log_prob = -(prior + diffusion + reconstruction)``. ``bounds``: on the logarithm of
    a density, or of the probability of integers. ``stderr`` is its Monte-Carlo standard
    error, NaN for too few draws. ``evaluations`` counts network evaluations.
    ``profile`` splits the diffusion term by log-SNR, over the bins of ``times.log_snr_edges``;
    None where the log-SNR is not one number at each t.
    """

    log_prob: PerExample
    prior: PerExample
    diffusion: PerExample
    reconstruction: PerExample
    stderr: PerExample
    evaluations: Int[Array, " b"]
    profile: Float[Array, "b bins"] | None = field(repr=False)
    bounds: Literal["density", "probability"] = static()

    @classmethod
    def of_terms(
        cls, prior: PerExample, diffusion: PerExample, known: PerExample,
        drawn: Float[Array, "k b"], variance: PerExample, **rest: Any,
    ) -> "ELBO":
        """The bound of its terms, with the error that their draws leave.

        Args:
            prior: the divergence at the last time.
            diffusion: the estimate of the terms between the two ends.
            known: the part of the decoder's term that is not drawn.
            drawn: draws of the rest of it.
            variance: of ``diffusion``.
            rest: the other fields.
        """
        if len(drawn):
            known = known + jnp.mean(drawn, axis=0)
            variance = variance + variance_of_mean(drawn, stratified=False)
        log_prob = -(prior + diffusion + known)
        return cls(log_prob, prior, diffusion, known, jnp.sqrt(variance), **rest)


def prior_divergence(sde: SDE, x: Data, t: Scalar = 1.0) -> PerExample:
    """KL( p(x_t | x) || N(0, prior_std^2 I) ) in nats."""
    last = jnp.full(x.shape[0], t, x.dtype)
    std = jnp.asarray(sde.prior_std, x.dtype)
    ratio = jnp.square(sde.sigma(last) / std)
    mean = expand(sde.alpha(last) / std, x) * x
    return (sum_data(jnp.square(mean)) + sum_over(ratio - 1 - jnp.log(ratio), x)) / 2


# The network's prediction, and v if it predicts a range of variances.
Outputs = tuple[Data, Data | None]
# (noise, sde, x_t, t, z, keys) -> the network's output, and the integrand in each dimension
Matching = Callable[[NoiseFn, SDE, Data, Times, Data, Keys], tuple[Outputs, Data]]


def denoising(
    noise: NoiseFn, sde: SDE, x_t: Data, t: Times, z: Data, keys: Keys
) -> tuple[Outputs, Data]:
    """1/2 (eps - z)^2."""
    prediction, v = predict_ranged(noise, x_t, t)
    return (prediction, v), jnp.square(prediction - z) / 2


def sliced(
    noise: NoiseFn, sde: SDE, x_t: Data, t: Times, z: Data, keys: Keys
) -> tuple[Outputs, Data]:
    """1/2 (eps^2 + 1) - sigma w Jw with random signs w: in expectation the denoising one."""
    w = per_example(jax.random.rademacher, keys, x_t.shape[1:], x_t.dtype)
    noise = within_forms(noise)
    prediction, jw, v = jax.jvp(lambda y: predict_ranged(noise, y, t), (x_t,), (w,), has_aux=True)
    form = expand(sde.sigma(t), w) * w * jw
    return (prediction, v), (jnp.square(prediction) + 1) / 2 - form


MATCHINGS: dict[str, Matching] = {"denoising": denoising, "sliced": sliced}


def variance_of_mean(samples: Float[Array, "k b"], stratified: bool) -> PerExample:
    """Variance of the mean of ``k`` draws in order of time; NaN for too few draws.

    Stratified draws are compared within pairs of neighbours, which a trend in time hardly moves
    apart; the last of an odd number with its neighbour, too. The trend itself causes the error of
    the rule of even steps: with one random offset for all, to first order 1/k of its rise times a
    uniform number of variance 1/12 (Euler, Maclaurin).
    """
    k = samples.shape[0]
    if k < 2:
        return jnp.full(samples.shape[1], jnp.nan, samples.dtype)
    if not stratified:
        return jnp.var(samples, axis=0, ddof=1) / k
    # The square of a gap is the variance of both draws.
    gaps = jnp.square(jnp.diff(samples, axis=0))
    noise = jnp.sum(gaps[::2], axis=0) + (gaps[-1] if k % 2 else 0)
    return noise / k**2 + jnp.square((samples[-1] - samples[0]) / k) / 12


def decoder_draws(decoder: Decoder | type[Decoder], draws: int) -> int:
    """The number of draws of the decoder.

    Args:
        decoder: or its class.
        draws: those of the diffusion term.
    """
    return max(MIN_LAST_DRAWS, draws // LAST_SHARE) if decoder.random else 0


def elbo(
    noise: NoiseFn,
    sde: SDE,
    x: DataLike,
    key: Keys,
    *,
    eps: Scalar,
    times: TimeSampler,
    draws: int,
    matching: str = "denoising",
    decoder: Decoder = GaussianDecoder(),
    integers: IntImages | None = None,
    control: Control | None = None,
) -> ELBO:
    """The ELBO, a lower bound on log p(x) in nats, by ``draws`` network evaluations and a few.

    The times of one example are drawn together, so that a stratified sampler stratifies within the
    example. A random ``decoder`` takes a 32nd as many more (at least four).

    Args:
        noise: the noise prediction eps(x, t).
        sde: the SDE that it belongs to.
        x: data; for the probability of integers, their points.
        key: one, or one for each example.
        eps: the smallest time, where the decoder begins.
        times: how the times of the diffusion term are drawn, from ``eps`` to 1.
        draws: how many of them.
        matching: "denoising" or "sliced".
        decoder: from t = eps to the data; it decides what is bounded.
        integers: what ``x`` encodes, where the decoder is of integers.
        control: a control variate, fitted on other examples. It leaves the mean as it is and
            lowers the error.

    Raises UserError for what can't be had: no draws, eps outside [0, 1), a network for another
    SDE, times or a control from another eps, another matching, data that are not finite reals,
    integers that ``decoder`` has no points for, or integers or a prediction of another shape.

    Example:
        >>> sde, x = scoremle.VP(), jnp.asarray([[1.0, 0.0]])
        >>> found = scoremle.elbo(  # of data N(0, I)
        ...     lambda x, t: sde.sigma(t)[:, None] * x, sde, x, jax.random.key(0),
        ...     eps=1e-3, times=scoremle.UniformLogSNR(sde, 1e-3, stratified=True), draws=1000,
        ... )
        >>> truth = -1 / 2 - np.log(2 * np.pi)
        >>> print(bool(found.log_prob[0] < truth + 3 * found.stderr[0]), found.bounds)
        True density
    """
    x = as_data(x)
    check_model(noise, sde, eps, x.shape[1:])
    check_count("draws", draws)
    check_kind("times", times, *TIME_SAMPLER)
    check_kind("decoder", decoder, Decoder, "GaussianDecoder()")
    check_kind("control", control, Control | None, "fit_control(...)")
    check_start(sde, eps, times, control)
    if integers is not None:
        integers = _levels(integers, x.shape, getattr(decoder, "points", None))
    key_t, key_rows = split(example_keys(key, len(x)))
    t, density = jax.vmap(lambda k: times(k, draws), out_axes=1)(key_t)
    order = jnp.argsort(t, axis=0)
    t, density = (jnp.take_along_axis(a, order, axis=0).astype(x.dtype) for a in (t, density))
    return elbo_at(
        noise, sde, x, key_rows,
        eps=eps, t=t, density=density, stratified=times.stratified, matching=matching,
        decoder=decoder, integers=integers, control=control,
        last_draws=decoder_draws(decoder, draws),
    )  # fmt: skip


def _levels(integers: Any, shape: tuple[int, ...], points: Any) -> IntImages:
    """Integers of a shape. Raises UserError for others, and for one that has no point."""
    found = as_array(integers, "integers")
    if np.shape(found) != shape or not jnp.issubdtype(found.dtype, jnp.integer):
        raise UserError(
            f"integers must be whole numbers with the shape of x, {shape}, not {found.dtype} with"
            f" {np.shape(found)}"
        )
    if points is not None and known(found) and np.size(found):
        here, levels = np.asarray(found), len(points)
        least, most = int(here.min()), int(here.max())
        if least < 0 or most >= levels:
            beyond = least if least < 0 else most
            raise UserError(f"integers must lie in 0..{levels - 1}, but one is {beyond}")
    return jnp.asarray(found)


def check_start(
    sde: SDE, eps: Scalar, times: TimeSampler | None, control: Control | None
) -> None:
    """Raises UserError for times or a control variate from another eps, as far as they are known.

    Args:
        sde: the noise at each time.
        eps: the smallest time.
        times: how the times are drawn; None: from eps.
        control: a control variate, if there is one.
    """
    first = getattr(times, "eps", eps)
    if known(first, eps) and not math.isclose(first, eps, rel_tol=1e-6):
        raise UserError(f"times must begin at eps, {eps:g}, and not at {first:g}")
    if control is None or sde.schedule.per_dimension or not known(control, sde, eps):
        return
    with jax.ensure_compile_time_eval():
        if not np.allclose(control.edges, log_snr_edges(sde, eps), rtol=1e-4, atol=1e-4):
            raise UserError(
                f"the control variate is of another smallest time than {eps:g}, or of another"
                " SDE: fit it anew"
            )


def elbo_at(
    noise: NoiseFn,
    sde: SDE,
    x: Data,
    key: Keys,
    *,
    eps: Scalar,
    t: Float[Array, "k b"],
    density: Float[Array, "k b"],
    stratified: bool,
    last_draws: int,
    decoder: Decoder = GaussianDecoder(),
    matching: str = "denoising",
    integers: IntImages | None = None,
    control: Control | None = None,
    at_once: bool = False,
) -> ELBO:
    """The ELBO by given times ``t`` of the diffusion term, in order, and their density.

    ``last_draws`` are those of the decoder; ``at_once`` makes all draws one batch of the
    network.
    """
    check_choice("matching", matching, MATCHINGS)
    if control is not None and sde.log_snr(t).ndim > 2:
        raise UserError("a control variate needs a log-SNR that is one number at each t")
    draws, batch = t.shape
    keys = example_keys(key, batch)
    ends = jnp.full(batch, eps, x.dtype)
    controlled = None if control is None else control.at(x)
    rest = decoder.known(sde, x, integers, ends)

    def row(inputs: tuple[Array, Times, Times]) -> tuple[PerExample, PerExample]:
        number, t, density = inputs
        key_z, key_v = split(fold_in(keys, number))
        z = normal(key_z, x)
        (prediction, v), integrand = MATCHINGS[matching](
            noise, sde, sde.perturb(x, t, z), t, z, key_v
        )
        weight = expand(sde.likelihood_weight(t), x) / expand(density, x)
        sample = sum_data(weight * integrand)
        if controlled is None:
            centred = (sum_data(jnp.square(z)) - dims_of(x)) / 2
        else:
            sample = sample - weight.reshape(batch) * controlled.draw(sde.log_snr(t), z)
            centred = controlled.draw_at_data(z)
        return sample, decoder.drawn(prediction - z, centred, sde, integers, t, v)

    rows = (
        jnp.arange(draws + last_draws),
        jnp.concatenate([t, jnp.broadcast_to(ends, (last_draws, batch))]),
        jnp.concatenate([density, jnp.ones((last_draws, batch), density.dtype)]),
    )
    # A gradient through a loop is slow on a CPU: a loss takes its few draws at once.
    samples, last = jax.vmap(row)(rows) if at_once else jax.lax.map(row, rows)
    samples, last = samples[:draws], last[draws:]

    diffusion, profile = jnp.mean(samples, axis=0), None
    if (log_snr := sde.log_snr(t)).ndim == 2:
        profile = by_bin(samples / draws, log_snr, log_snr_edges(sde, eps))
        if controlled is not None:
            profile = profile + controlled.integrals()
        diffusion = jnp.sum(profile, axis=1)
    return ELBO.of_terms(
        prior_divergence(sde, x), diffusion, rest, last, variance_of_mean(samples, stratified),
        evaluations=jnp.full(batch, draws + last_draws), profile=profile, bounds=decoder.bounds,
    )  # fmt: skip


def by_bin(
    samples: Float[Array, "k b"], log_snr: Float[Array, "k b"], edges: Float[Array, " n"]
) -> Float[Array, "b bins"]:
    """The sum of each example's samples in each bin."""

    def one(samples: Float[Array, " k"], log_snr: Float[Array, " k"]) -> Float[Array, " bins"]:
        return jnp.zeros(len(edges) - 1, samples.dtype).at[bin_of(edges, log_snr)].add(samples)

    return jax.vmap(one, in_axes=1)(samples, log_snr)
