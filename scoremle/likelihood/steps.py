"""The bound of a chain of steps: what DDPM, improved diffusion and VDM report of their models.

A chain has noise at the times t_0 < ... < t_T and goes back by Gaussians. With s the time before
t, integers k with values y, and the posterior q(x_s | x_t, y), which is Gaussian too,

    -log P(k) <= L_T + sum_t L_t + L_0,      L_T = KL( q(x_T | y) || prior )

    L_t = KL( q(x_s | x_t, y) || p(x_s | x_t) )
        = sum_i 1/2 [ rho (e^(lambda_s - lambda_t) - 1) (eps - z)^2 + rho - 1 - log rho ]

(Ho et al., arXiv 2006.11239, equation 5; for any alpha and sigma.) The mean of p is that of q with
the network's estimate of the data in place of y; rho is the variance of q over that of p. The
variance of q, sigma_s^2 (1 - e^(lambda_t - lambda_s)), is the least that p may have, and the same
with sigma_t the greatest (DDPM's beta):

    small     rho = 1: at VDM's times its loss of T steps (Kingma et al., arXiv 2107.00630)
    large     rho = sigma_s^2 / sigma_t^2
    learned   rho = (sigma_s^2 / sigma_t^2)^((v + 1) / 2), v from the network for each pixel
              (Nichol and Dhariwal, arXiv 2102.09672, equation 15)

L_0 is -log p(k | x_0) by `InformedDecoder` at t_0. There q has no variance, and p has the
least one of the step that follows, or where it is learned one from that to sigma_0^2
(`LearnedScale`). The latter decodes with the ODE, too: `learned_decoder`. Its normal
probabilities are those of the published code, by a tanh and no less than 1e-12: where estimates
are off by several scales, these differ from the exact ones by some hundredths of a bit. VDM has
`DiscreteDecoder`.

A model with a discrete schedule has a chain of its own. Some of its steps, evenly spaced and with
both ends, are a chain too (``timestep_respacing`` of Nichol and Dhariwal, arXiv 2102.09672). Any
other schedule is cut into steps as VDM has them (Kingma et al., arXiv 2107.00630): even in
log-SNR, with the least variance, and nothing clipped.

Where a network was trained on integers without noise, as VDM's, the chain begins with a noise
under which the levels can still be distinguished, and the decoder uses the levels alone. Other
networks were trained on dequantized data, or in steps that begin later, and predict little of that
noise: their chain begins where it is half a bin, and the decoder is around the network's estimate.
"""

import math
from dataclasses import replace
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from scoremle.core.arguments import as_array, check_choice, check_count, shown
from scoremle.core.dequantize import Dequantizer, truncation_start
from scoremle.core.keys import example_keys, fold_in, normal, split
from scoremle.core.pixels import Pixels
from scoremle.core.pytree import describe, frozen_pytree, known, static
from scoremle.core.schedules import Discrete, Schedule
from scoremle.core.sde import SDE
from scoremle.core.times import even_times, log_snr_edges, unit_draws
from scoremle.errors import UserError
from scoremle.likelihood.decoders import Decoder, DiscreteDecoder, InformedDecoder, log_mass
from scoremle.likelihood.elbo import (
    ELBO,
    by_bin,
    decoder_draws,
    prior_divergence,
    variance_of_mean,
)
from scoremle.likelihood.image_model import ImageModel
from scoremle.likelihood.images import Estimator, ImageValues, of_bound
from scoremle.likelihood.scales import LearnedScale
from scoremle.numerics import dims_of, expand, predict_ranged, sum_data
from scoremle.types import Data, IntImages, Keys, NoiseFn, PerExample, Times

__all__ = ["BySteps", "ReverseChain", "chain_of", "has_last_step", "learned_decoder"]

# Of a chain's decoder, in units of the noise where it begins: an estimate by many pixels is nearer
# than by one. 0.6 is better for digits by 0.02 bits/dim, worse for Fashion-MNIST by 0.01.
SCALE = 0.8

# Where the logarithm of the variance lies between the least, 0, and the greatest, 1.
FIXED = {"small": 0.0, "large": 1.0}
# Of the published approximation of the normal distribution, and its least log-probability.
CUBIC, LEAST = 0.044715, math.log(1e-12)


@frozen_pytree
class ReverseChain:
    """The steps back, as far as they depend on the model.

    Args:
        noise: eps(x, t), with ``both`` for "learned" variance.
        sde: the SDE that it belongs to.
        points: of the integers, in units of the data.
        times: of the chain, rising.
        variance: "small", "large" or "learned".
        clip: keep the estimate of the data within the points.
    """

    noise: NoiseFn
    sde: SDE
    points: Float[Array, " levels"]
    times: Float[Array, " n"]
    variance: str = static()
    clip: bool = static()

    def outputs(self, x: Data, t: Times) -> tuple[Data, Data | None]:
        """eps, and v of a learned range.

        Args:
            x: [b *d] noisy data.
            t: [b] times.
        """
        prediction, v = predict_ranged(self.noise, x, t)
        if self.clip:
            alpha, sigma = expand(self.sde.alpha(t), x), expand(self.sde.sigma(t), x)
            estimate = (x - sigma * prediction) / alpha
            within = jnp.clip(estimate, self.points[0], self.points[-1])
            clipped = (x - alpha * within) / sigma
            prediction = jnp.where(estimate == within, prediction, clipped)
        return prediction, v

    def step(self, s: Times, t: Times, error: Data, v: Data | None) -> PerExample:
        """L_t, by a draw of the ``error`` of the predicted noise; from t to itself it is zero.

        Args:
            s: [b] times after the step back.
            t: [b] times before it.
            error: [b *d] the predicted noise less the noise.
            v: [b *d] the network's output for its variance, if it has one.
        """
        log_rho = self._log_rho(s, t, error, v)
        gain = expand(jnp.expm1(self.sde.log_snr(s) - self.sde.log_snr(t)), error)
        cost = jnp.exp(log_rho) * gain * jnp.square(error) + jnp.expm1(log_rho) - log_rho
        return sum_data(cost) / 2

    def back(self, s: Times, t: Times, x: Data) -> tuple[Data, Data]:
        """Mean and standard deviation of p(x_s | x_t).

        Args:
            s: [b] times after the step back.
            t: [b] times before it.
            x: [b *d] data at t.
        """
        prediction, v = self.outputs(x, t)
        growth = expand(jnp.expm1(self.sde.log_snr(t) - self.sde.log_snr(s)), x)
        ratio = expand(self.sde.alpha(t) / self.sde.alpha(s), x)
        mean = (x + expand(self.sde.sigma(t), x) * growth * prediction) / ratio
        log_variance = expand(2 * jnp.log(self.sde.sigma(s)), x) + jnp.log(-growth)
        scale = jnp.exp((log_variance - self._log_rho(s, t, x, v)) / 2)
        return mean, jnp.broadcast_to(scale, x.shape)

    def _log_rho(self, s: Times, t: Times, like: Data, v: Data | None) -> Array:
        """log of the variance of q over that of p."""
        log_ratio = 2 * (jnp.log(self.sde.sigma(s)) - jnp.log(self.sde.sigma(t)))
        learned = self.variance == "learned"
        share: Any = (cast(Data, v) + 1) / 2 if learned else FIXED[self.variance]
        return share * expand(log_ratio, like)

    def decoder(self) -> InformedDecoder:
        """DDPM's, at the first time; a fixed variance is the least of the step that follows."""
        scale = _last_scale(self.sde, self.times)
        if self.variance != "learned":
            return InformedDecoder(self.points, jnp.exp(scale.log_least / 2), published_log_mass)
        return InformedDecoder(self.points, scale, published_log_mass)


def _last_scale(sde: SDE, times: Float[Array, " n"]) -> LearnedScale:
    """Learned scale between the variances of a chain's step to the integers."""
    log_greatest = 2 * jnp.log(sde.sigma(times[0]))
    gap = jnp.diff(sde.log_snr(times[:2]))[0]
    return LearnedScale(log_greatest + jnp.log(-jnp.expm1(gap)), log_greatest)


def learned_decoder(
    noise: NoiseFn, sde: SDE, eps: float, points: Float[Array | np.ndarray, " levels"]
) -> InformedDecoder | None:
    """The decoder of L_0 of a model's own chain, whose scale its network gives.

    None: the network has no variance, or the smallest time is not the first of the steps of its
    schedule, and v there is none of a step to the integers.

    Args:
        noise: the noise prediction.
        sde: the SDE that it belongs to.
        eps: the smallest time.
        points: those of the integers, in units of the data.
    """
    if not (hasattr(noise, "both") and has_last_step(sde, eps)):
        return None
    first = jnp.asarray(eps)
    scale = _last_scale(sde, jnp.stack([first, 2 * first]))
    return InformedDecoder(points, scale, published_log_mass)


def has_last_step(sde: SDE, eps: float) -> bool:
    """Whether the last reverse step of a schedule's own chain goes from t = eps to the data.

    Args:
        sde: the model's.
        eps: its smallest time.
    """
    schedule = sde.schedule
    return isinstance(schedule, Discrete) and math.isclose(eps, schedule.eps)


def published_log_mass(below: Data, above: Data) -> Data:
    """log of nearly the standard normal probability between two numbers."""

    def log_cdf(x: Data) -> Data:
        # (1 + tanh(y)) / 2 is a logistic function.
        return jax.nn.log_sigmoid(2 * math.sqrt(2 / math.pi) * (x + CUBIC * x**3))

    return jnp.maximum(log_mass(log_cdf, below, above), LEAST)


def step_bound(
    noise: NoiseFn,
    sde: SDE,
    integers: IntImages,
    key: Keys,
    *,
    points: Float[Array | np.ndarray, " levels"],
    times: Float[Array | np.ndarray, " n"],
    variance: str = "small",
    clip: bool = True,
    draws: int | None = None,
    decoder: Decoder | None = None,
) -> ELBO:
    """The bound of a chain on the log-probability of integers, in nats.

    Its stated error comes from the differences of neighbouring steps, and is too large where
    there are so few that the terms themselves change from one to the next.

    Args:
        noise: the noise prediction; for "learned" variance one with ``both``, as `RangedNoise`.
        sde: the SDE that it belongs to.
        integers: images.
        key: one, or one for each image.
        points: those of the integers, in units of the data.
        times: those of the chain, rising: all of a model's steps, or any of them.
        variance: "small", "large" or "learned".
        clip: keep the estimate of the data within the points, as published.
        draws: how many steps are drawn, evenly in log-SNR; None: each is taken once.
        decoder: from the first time to the integers; None: by the variance there.

    Raises UserError for another variance, fewer than two times, no draws, and a schedule that
    has a log-SNR for each dimension.
    """
    _check_chain(variance, times, draws)
    if variance == "learned" and not hasattr(noise, "both"):
        raise UserError("this network has no variance: take variance='small' or 'large'")
    _check_common(sde)
    points = jnp.asarray(points, float)
    y, times = points[integers], jnp.asarray(times, points.dtype)
    edges, shares = log_snr_edges(sde, times[0]), -jnp.diff(sde.log_snr(times))
    shares = shares / jnp.sum(shares)
    chain = ReverseChain(noise, sde, points, times, variance, clip)
    decoder = decoder or chain.decoder()
    key_index, key_rows = split(example_keys(key, len(y)))
    index = _steps(key_index, shares, draws)
    # What is drawn for the decoder is a step from the first time to itself, at no cost.
    count, last_draws = len(index), decoder_draws(decoder, len(index))
    first = jnp.broadcast_to(times[0], (last_draws, len(y)))
    before, after = (jnp.concatenate([ends[index], first]) for ends in (times[:-1], times[1:]))

    def row(inputs: tuple[Array, Times, Times]) -> tuple[PerExample, PerExample]:
        number, s, t = inputs
        z = normal(fold_in(key_rows, number), y)
        prediction, v = chain.outputs(sde.perturb(y, t, z), t)
        error, nothing = prediction - z, jnp.zeros(len(y), y.dtype)
        last = decoder.drawn(error, nothing, sde, integers, t, v)
        return chain.step(s, t, error, v), last

    terms, last = jax.lax.map(row, (jnp.arange(len(after)), before, after))
    terms, last = terms[:count], last[count:]
    samples = terms / shares[index]
    if draws is None:
        spread = _variance_of_sum(samples, shares)
    else:
        terms, spread = samples / draws, variance_of_mean(samples, stratified=True)
    rest = decoder.known(sde, y, integers, jnp.broadcast_to(times[0], len(y)))
    profile = by_bin(terms, sde.log_snr(after[:count]), edges)
    return ELBO.of_terms(
        prior_divergence(sde, y, times[-1]), jnp.sum(profile, axis=1), rest, last, spread,
        evaluations=jnp.full(len(y), len(after)), profile=profile, bounds="probability",
    )  # fmt: skip


def _steps(
    keys: Key[Array, " b"], shares: Float[Array, " T"], draws: int | None
) -> Int[Array, "k b"]:
    """The numbers of the steps to take for each image: all, or drawn by their shares, in order."""
    if draws is None:
        return jnp.broadcast_to(jnp.arange(len(shares))[:, None], (len(shares), len(keys)))
    u = jax.vmap(lambda key: jnp.sort(unit_draws(key, draws, True)), out_axes=1)(keys)
    ends = jnp.cumsum(shares)
    return jnp.minimum(jnp.searchsorted(ends, u, side="right"), len(shares) - 1)


def _variance_of_sum(samples: Float[Array, "T b"], shares: Float[Array, " T"]) -> PerExample:
    """Variance of the sum of shares times samples, by the gaps between neighbours; NaN for one."""
    if len(samples) < 2:
        return jnp.full(samples.shape[1], jnp.nan, samples.dtype)
    gaps = jnp.square(jnp.diff(samples, axis=0)) / 2
    around = jnp.concatenate([gaps[:1], gaps]) + jnp.concatenate([gaps, gaps[-1:]])
    return jnp.matmul(jnp.square(shares), around, precision="highest") / 2


def _check_common(sde: SDE) -> None:
    """Raises UserError for a schedule that has a log-SNR for each dimension."""
    if sde.schedule.per_dimension:
        raise UserError(
            "the steps of a chain have one log-SNR, and here each dimension has its own: take the"
            " bound of continuous time"
        )


def _check_chain(variance: str, times: Any, draws: int | None) -> None:
    check_choice("variance", variance, (*FIXED, "learned"))
    if draws is not None:
        check_count("draws", draws)
    if times is None or not known(times):
        return
    times = np.asarray(as_array(times, "times"))
    if times.ndim != 1 or len(times) < 2:
        raise UserError(f"times of a chain must be two or more, not {shown(times)}")
    if not (times[0] >= 0 and times[-1] <= 1 and (np.diff(times) > 0).all()):
        raise UserError("times of a chain must rise, from 0 or later to 1 at most")


@frozen_pytree(eq=False)
class BySteps(Estimator):
    """Estimator by the bound of a chain, as the authors of a model report it.

    Args:
        times: those of the chain; None: the steps of the model's discrete schedule. Of a sequence
            of labels, (labels + 1) / T; of VDM with T steps, numpy.arange(T + 1) / T.
        variance: "small", "large" or "learned".
        clip: keep the estimate of the data within the range of the pixels.
        draws: how many steps are drawn for each image; None: each is taken once.
        decoder: from the first time to the integers; None: DDPM's L_0.

    Values: those of ``ByElbo``. Raises UserError for a model whose schedule has no steps, another
    variance, times that do not rise, and no draws.
    """

    dequantizes: ClassVar[bool] = False

    times: Float[Array | np.ndarray, " n"] | None = None
    variance: str = static(default="small")
    clip: bool = static(default=True)
    draws: int | None = static(default=None)
    decoder: Decoder | None = None

    def __post_init__(self) -> None:
        _check_chain(self.variance, self.times, self.draws)

    @property
    def title(self) -> str:
        kind = "learned" if self.variance == "learned" else f"fixed {self.variance}"
        clipped = ", estimates clipped" if self.clip else ""
        count = ""
        if self.times is not None:  # L_0 is a step, and a decoder is none
            count = f"{len(self.times) - (self.decoder is not None)} "
        informed = ", informed decoder" if isinstance(self.decoder, InformedDecoder) else ""
        return f"variational bound of a chain of {count}steps, {kind} variance{clipped}{informed}"

    def describe(self) -> dict[str, Any]:
        decoder = self.decoder
        return {
            "estimator": self.title,
            "model": "chain",
            "times": describe(self.times),
            "draws": self.draws,
            "reconstruction": decoder and type(decoder).__name__.removesuffix("Decoder"),
            **(decoder.describe() if isinstance(decoder, InformedDecoder) else {}),
        }

    def __call__(
        self, model: ImageModel, dequantizer: Dequantizer, x: IntImages, keys: Key[Array, " b"]
    ) -> ImageValues:
        found = step_bound(
            model.noise, model.sde, x, keys,
            points=self.points_of(model), times=self.times_of(model.sde.schedule),
            variance=self.variance, clip=self.clip, draws=self.draws,
            decoder=self.decoder,
        )  # fmt: skip
        bits = dims_of(x) * jnp.log(2.0)
        return {"bpd": -found.log_prob / bits, **of_bound(found, bits)}

    def points_of(self, model: ImageModel) -> Float[Array | np.ndarray, " levels"]:
        """The reals of the integers: those of the decoder, if it has any, or of the model.

        Args:
            model: one of images.
        """
        return getattr(self.decoder, "points", model.points)

    def first(self, sde: SDE) -> float:
        """The time where the chain ends at the integers.

        Args:
            sde: the model's.
        """
        return float(self.times_of(sde.schedule)[0])

    def times_of(self, schedule: Schedule) -> Float[Array | np.ndarray, " n"]:
        """The times of the chain: those given, or the steps of a discrete schedule.

        Args:
            schedule: the model's.

        Raises UserError for a schedule without steps of its own.
        """
        if self.times is not None:
            return self.times
        if not isinstance(schedule, Discrete):
            raise UserError(
                f"{type(schedule).__name__} has no steps of its own: give BySteps the times of"
                " the chain"
            )
        return np.arange(1, schedule.steps + 1) / schedule.steps


def chain_of(
    steps: int,
    sde: SDE,
    eps: float,
    pixels: Pixels,
    own: BySteps | None = None,
    *,
    points: Float[np.ndarray, " levels"] | None = None,
) -> BySteps:
    """The bound of a chain of so many steps.

    Args:
        steps: how many: of a discrete schedule its own, of another those between times.
        sde: the noise at each time.
        eps: the smallest time.
        pixels: what the images are.
        own: of the model's own chain, if it is known: its variance, and whether it clips.
        points: of the integers that the network was trained on without noise; None: it was
            trained on dequantized ones.

    Raises UserError for fewer than two steps, for more than a discrete schedule has, and for a
    schedule that has a log-SNR for each dimension.
    """
    if steps < 2:
        raise UserError(f"a chain has two steps or more, not {steps}")
    _check_common(sde)
    schedule = sde.schedule
    if not isinstance(schedule, Discrete):
        if points is not None:
            start = truncation_start(sde, eps, pixels)
            decoder: Decoder = DiscreteDecoder(points)
        else:
            start = truncation_start(sde, eps, pixels, half=1)
            scale = SCALE * jnp.exp(-sde.common_log_snr(start) / 2)
            decoder = InformedDecoder(pixels.points, scale)
        times = np.asarray(even_times(sde, start, steps)[::-1])
        return BySteps(times, clip=False, decoder=decoder)
    if steps > schedule.steps:
        raise UserError(f"the chain has {schedule.steps} steps, not {steps}")
    labels = np.round(np.linspace(0, schedule.steps - 1, steps))
    return replace(own or BySteps(), times=(labels + 1) / schedule.steps)
