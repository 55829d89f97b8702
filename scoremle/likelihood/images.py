"""Bits/dim of integer images, and the errors of that number: dequantized, encoded, measured.

    -log2 P(x) / D,       log P(x) >= log p(y) - log q(u | x) + D log dy/du,     y = encode(x, u)

There are two ways to log p: the probability-flow ODE and the variational bound. Each is a record
of how it is done, called with a model, a dequantizer, images and a key for each of them. Values
are per image; all but the numbers of evaluations and of effective draws are in bits/dim. A bias is
estimate minus truth: to be subtracted.

A model that was trained down to t = eps, where noise is still wider than half a level, has
no distribution of integers k by itself. Its estimate of the data there gives one: p(k | z), the
decoder `InformedDecoder` of `decoders.py`. With the density of the ODE at t = eps,

    P(k) = int p_eps(z) p(k | z) dz >= exp E_q[ log p_eps(z) + log p(k | z) - log q(z) ],

    q(z) = N(alpha y_k, sigma^2 I)

(the expectation of -log q is the entropy, D/2 log(2 pi e sigma^2)): *ODE bound, informed decoder*.
It is a bound and never exact: the first line is a normalised distribution over the integers, and
several draws z close in on its P(k), importance weighted as in `importance.py`. The noise
itself, not only its entropy, stays in the weight, because it pairs off with that in log p_eps.
Neither clean nor uniformly dequantized data may take the place of z: they do not lie at t = eps.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from scoremle.core.arguments import check_choice, check_count, check_kind, check_part
from scoremle.core.bijectors import AtTime
from scoremle.core.condition import conditioned
from scoremle.core.dequantize import (
    Dequantizer,
    Flow,
    TruncatedNormal,
    Uniform,
    truncation_start,
)
from scoremle.core.divergence import DivergenceEstimator, Hutchinson
from scoremle.core.keys import normal, split
from scoremle.core.pixels import bits_per_dim
from scoremle.core.pytree import describe, frozen_pytree, static
from scoremle.core.sde import check_time
from scoremle.core.times import TIME_SAMPLER, TimeSampler, evenly
from scoremle.errors import UserError
from scoremle.likelihood.control_variate import Control
from scoremle.likelihood.decoders import (
    LOG_2PI,
    Decoder,
    DiscreteDecoder,
    GaussianDecoder,
    InformedDecoder,
)
from scoremle.likelihood.elbo import ELBO, MATCHINGS, check_start, elbo
from scoremle.likelihood.flow import DIVERGENCE, SOLVER, along_flow
from scoremle.likelihood.image_model import ImageModel, pixels_of
from scoremle.likelihood.importance import DrawLikelihood, ImportanceBound, importance_bound
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.likelihood.record import Likelihood
from scoremle.numerics import dims_of, predict_ranged, sum_data, sum_over
from scoremle.solvers.base import Solver
from scoremle.solvers.multistep import Multistep, Planned
from scoremle.types import Data, Images, IntImages, Keys, PerExample, Scalar

__all__ = [
    "ByElbo", "ByOde", "Estimator", "ImageValues", "in_words", "measure", "number_in_words",
    "title_of",
]  # fmt: skip

# Words for the noise of each dequantizer.
NOISES = {Uniform: "uniform", TruncatedNormal: "truncated normal", Flow: "variational"}

# bpd, and what belongs to it, by name; ``profile`` has an axis over log-SNR.
ImageValues = dict[str, PerExample | Float[Array, "b bins"]]


@runtime_checkable
class Estimator(Protocol):
    """Measures bits/dim of images by a key for each. One ``on_host`` is not to be compiled.

    ``title`` names the number that it gives, and ``describe()`` is its entry in results. One that
    ``dequantizes`` takes noise for the integers; another has a decoder or a loss of its own.
    """

    @property
    def on_host(self) -> bool:
        return False

    @property
    def dequantizes(self) -> bool:
        return True

    @property
    def title(self) -> str: ...

    def describe(self) -> dict[str, Any]:
        return describe(self)

    def __call__(
        self, model: Any, dequantizer: Dequantizer, x: IntImages, keys: Key[Array, " b"]
    ) -> ImageValues: ...


def number_in_words(
    estimator: Estimator, dequantizer: Dequantizer, model: Any, label: str = ""
) -> str:
    """Words for the number that an estimator gives of a model: with ``title_of``, and the noise.

    Args:
        estimator: of the number.
        dequantizer: its noise, if the estimator takes any.
        model: of the images.
        label: a number; "": none.
    """
    known = (words for kind, words in NOISES.items() if isinstance(dequantizer, kind))
    noise = next(known, type(dequantizer).__name__)
    return in_words(title_of(estimator, model, label), noise * estimator.dequantizes)


def title_of(estimator: Estimator, model: Any, label: str = "") -> str:
    """The title of an estimator, with the label and the code of the images, if there are any.

    Args:
        estimator: of a number.
        model: of the images; a code makes the number a bound.
        label: a number; "": none.
    """
    coder = getattr(model, "coder", None)
    of_label = f", label {label}" * bool(label)
    return estimator.title + of_label + (f", {coder.title}" if coder else "")


def in_words(estimator: str, dequantizer: str = "") -> str:
    """Words for a number: the estimator, and the noise that it is given; a loss has its own.

    Args:
        estimator: its title.
        dequantizer: its name; "": the number has no dequantization.
    """
    name = "no" if dequantizer == "none" else dequantizer
    return f"{estimator}, {name} dequantization" if name else estimator


@frozen_pytree
class ByOde:
    """Estimator by the probability-flow ODE, importance weighted over several ``samples``.

    Args:
        divergence: how traces are estimated.
        solver: how the ODE is solved.
        samples: draws of the dequantization noise, all in one bound for each image.
        decoder: from the model's smallest time to the integers, in place of a dequantizer; the
            draws are then of the noise there.

    Raises UserError for no draws, and what is not a divergence, solver or informed decoder.

    Values: ``bpd``, its ``probe_stderr`` and ``solver_error``, ``nfe``; of one sample also two
    tests that its latent is white noise: the mean square of its elements over that of the prior
    (``latent_square``), and the mean product of those beside or above each other
    (``latent_neighbours``); of several ``draw_stderr``, ``probe_bias`` and ``effective_draws``.

    Example:
        >>> sde = scoremle.VP()
        >>> model = scoremle.ScoreModel(  # of data N(0, I)
        ...     lambda x, t: sde.sigma(t)[:, None, None, None] * x, sde,
        ...     eps=1e-3, shape=(1, 2, 1), pixels=scoremle.Pixels(8),
        ... )
        >>> images = np.asarray([1, 6], np.uint8).reshape(1, 1, 2, 1)
        >>> scores = model.score(images, estimator=scoremle.ByOde(scoremle.Exact(), samples=64))
        >>> print(f"{scores.bpd[0]:.1f}")  # of exactly 3.61
        3.6
    """

    divergence: DivergenceEstimator = Hutchinson()
    solver: Solver | PublishedRK45 = Multistep()
    samples: int = static(default=1)
    decoder: InformedDecoder | None = None

    def __post_init__(self) -> None:
        check_part("divergence", self.divergence, *DIVERGENCE)
        check_part("solver", self.solver, *SOLVER)
        check_count("samples", self.samples)
        check_kind("decoder", self.decoder, InformedDecoder | None, "InformedDecoder.at(...)")

    @property
    def on_host(self) -> bool:
        return isinstance(self.solver, PublishedRK45)

    @property
    def dequantizes(self) -> bool:
        return self.decoder is None

    @property
    def title(self) -> str:
        if self.decoder:
            many = "s" * (self.samples > 1)
            return f"ODE bound, {self.decoder.title}, {self.samples} draw{many}"
        if self.samples == 1:
            return "exact by the ODE"
        return f"importance-weighted bound by the ODE, {self.samples} draws"

    def describe(self) -> dict[str, Any]:
        return {
            "estimator": self.title,
            "model": "ODE",
            "importance_samples": self.samples,
            "solver": describe(self.solver),
            "divergence": describe(self.divergence),
            "probes": getattr(self.divergence, "probes", None),
            # A finished part of an earlier version has no such columns.
            "latents": ["square", "neighbours"] if self.samples == 1 else [],
            **(self.decoder.describe() if self.decoder else {}),
        }

    def __call__(
        self, model: ImageModel, dequantizer: Dequantizer, x: IntImages, keys: Key[Array, " b"]
    ) -> ImageValues:
        key_u, key_probe = split(keys)
        pixels = pixels_of(model)

        def dequantized(keys: Keys) -> tuple[Likelihood, PerExample]:
            """log p(y) of y = z / alpha, for a z at the dequantizer's time, or at the smallest."""
            u, log_q = dequantizer(keys, x)
            start = dequantizer.start
            at = AtTime(model.sde, model.eps if start is None else start)
            z, log_det = at.forward(pixels.encode(x, u))
            found = self._log_density(model, z, key_probe, at.t)
            return replace(found, log_prob=found.log_prob + log_det), log_q

        decoded = partial(self._decoded, model, x, key_probe)
        log_prob, values = _by_draws(
            decoded if self.decoder else dequantized, key_u, self.samples, dims_of(x),
            prior_std=model.sde.prior_std,
        )  # fmt: skip
        if self.decoder:
            return {"bpd": -log_prob / (dims_of(x) * jnp.log(2.0)), **values}
        return {"bpd": bits_per_dim(log_prob, pixels, dims_of(x)), **values}

    def _log_density(self, model: ImageModel, z: Data, key: Keys, t: Scalar) -> Likelihood:
        """log p_t(z)."""
        return along_flow(
            model.noise, model.sde, z, key,
            eps=t, divergence=self.divergence, solver=self.solver,
        )[1]  # fmt: skip

    def _decoded(
        self, model: ImageModel, x: IntImages, key_probe: Keys, keys: Keys
    ) -> tuple[Likelihood, PerExample]:
        """log p_eps(z), and log q(z) minus log p(x | z), of a draw z of the noise at t = eps."""
        decoder = cast(InformedDecoder, self.decoder)
        y, t = decoder.encode(x), jnp.full(len(x), model.eps)
        noise = normal(keys, y)
        z = model.sde.perturb(y, t, noise)
        found = self._log_density(model, z, key_probe, model.eps)
        prediction, v = predict_ranged(model.noise, z, t)
        log_decoded = decoder.log_prob(prediction - noise, model.sde, x, t, v)
        log_sigma = jnp.log(model.sde.sigma(t))
        log_q = -sum_data(jnp.square(noise)) / 2 - sum_over(LOG_2PI / 2 + log_sigma, y)
        return replace(found, evaluations=found.evaluations + 1), log_q - log_decoded


@frozen_pytree
class OdeDifference(Estimator):
    """Difference in bits/dim between solvers of ``fine`` and ``coarse`` steps, by the same noise.

    Both have the same dequantization noise and the same probes, held along the path: new ones at
    other steps would not cancel. What the noise of probes does to the logarithm of several draws
    is nearly the same in both, and cancels too: ``probe_bias`` stays one of the values. Values:
    ``bpd``, the difference; and ``halving``, the value at ``fine`` steps less that at half as
    many, if it is ``halved``. ``of`` is how images are measured: by the ODE.
    """

    title: ClassVar[str] = "difference of two numbers of steps"

    of: Estimator
    coarse: int = static()
    fine: int = static()
    halved: bool = static(default=False)

    def __call__(
        self, model: ImageModel, dequantizer: Dequantizer, x: IntImages, keys: Key[Array, " b"]
    ) -> ImageValues:
        half = self.fine // 2

        def value(solver: Planned) -> PerExample:
            by_ode = replace(cast(Any, self.of), solver=solver)
            return by_ode(model, dequantizer, x, keys)["bpd"]

        counts = sorted({self.fine, self.coarse, half if self.halved else self.coarse})
        plans = [Planned.of(steps, self.fine, held=True) for steps in counts]
        # In a loop, so that the network is compiled once.
        found = jax.lax.map(value, jax.tree.map(lambda *each: np.stack(each), *plans))
        bpd = dict(zip(counts, found, strict=True))
        halving = {"halving": bpd[self.fine] - bpd[half]} if self.halved else {}
        return {"bpd": bpd[self.fine] - bpd[self.coarse], **halving}


def _by_draws(
    draw: DrawLikelihood, keys: Keys, samples: int, dims: int, *, prior_std: Scalar
) -> tuple[PerExample, ImageValues]:
    """log p minus log q in nats, importance weighted over several draws; and its columns."""
    bits = dims * jnp.log(2.0)
    if samples == 1:
        found, log_q = draw(keys)
        whiteness = _whiteness(found.latent / prior_std)
        return found.log_prob - log_q, _of_solution(found, bits) | whiteness
    bound = importance_bound(draw, keys, samples)
    values: ImageValues = {
        "draw_stderr": bound.draw_stderr / bits,
        "probe_bias": -bound.probe_bias / bits,
        "effective_draws": bound.effective_draws,
    }
    return bound.log_prob, values | _of_solution(bound, bits)


def _whiteness(latent: Images) -> ImageValues:
    """Mean square, and mean product of neighbours; of white noise about one and zero."""
    beside, above = latent[:, :, 1:] * latent[:, :, :-1], latent[:, 1:] * latent[:, :-1]
    flat = [a.reshape(len(a), dims_of(a)) for a in (beside, above)]
    products = jnp.concatenate(flat, axis=1)
    pairs = max(products.shape[1], 1)
    return {
        "latent_square": jnp.mean(jnp.square(latent), axis=(1, 2, 3)),
        "latent_neighbours": jnp.sum(products, axis=1) / pairs,
    }


def _of_solution(found: Likelihood | ImportanceBound, bits: Float[Array, ""]) -> ImageValues:
    return {
        "probe_stderr": found.probe_stderr / bits,
        "solver_error": found.solver_error / bits,
        "nfe": found.evaluations.astype(jnp.float32),
    }


@frozen_pytree
class ByElbo(Estimator):
    """Estimator by the variational bound, the ELBO.

    Args:
        draws: times for each image.
        matching: "denoising" or "sliced".
        times: how they are drawn, from the smallest time on; None: evenly spaced in log-SNR within
            an image.
        decoder: from the smallest time to the data. One that bounds the probability of
            integers takes no dequantizer.
        control: a control variate fitted on other images.
        start: the smallest time; None: the model's.

    Raises UserError for no draws, another matching, what are not times, decoder or control, a
    start outside [0, 1), and where it bounds a density, a dequantizer with a start.

    Values: ``bpd``, its ``draw_stderr``, ``nfe``, and its terms: ``dequantization`` (log q of the
    noise), ``prior``, ``diffusion`` and ``reconstruction``, which add up to it with the constant
    of the pixels; ``profile`` adds up to ``diffusion``.

    Example:
        >>> sde = scoremle.VP()
        >>> model = scoremle.ScoreModel(  # of data N(0, I)
        ...     lambda x, t: sde.sigma(t)[:, None, None, None] * x, sde,
        ...     eps=1e-3, shape=(1, 2, 1), pixels=scoremle.Pixels(8),
        ... )
        >>> images = np.asarray([1, 6], np.uint8).reshape(1, 1, 2, 1)
        >>> scores = model.score(images, estimator=scoremle.ByElbo(draws=500))
        >>> print(bool(scores.bpd[0] > 3.61 - 3 * scores.probe_stderr[0]))  # of exactly 3.61
        True
    """

    draws: int = static(default=1000)
    matching: str = static(default="denoising")
    times: TimeSampler | None = None
    decoder: Decoder = GaussianDecoder()
    control: Control | None = None
    start: Scalar | None = None

    def __post_init__(self) -> None:
        check_count("draws", self.draws)
        check_choice("matching", self.matching, MATCHINGS)
        if self.times is not None:
            check_part("times", self.times, *TIME_SAMPLER)
        check_part("decoder", self.decoder, Decoder, "scoremle.likelihood.decoders.Entropy()")
        check_kind("control", self.control, Control | None, "fit_control(...)")
        if self.start is not None:
            check_time(self.start, "start")

    @classmethod
    def without_noise(cls, model: ImageModel) -> "ByElbo":
        """The bound on integers at the model's points, by the flat discrete decoder.

        It begins where half a bin is three times as wide as the noise.

        Args:
            model: one that was trained on integers without noise.
        """
        start = truncation_start(model.sde, model.eps, pixels_of(model))
        return cls(decoder=DiscreteDecoder(model.points), start=start)

    @property
    def dequantizes(self) -> bool:
        return self.decoder.bounds == "density"

    @property
    def title(self) -> str:
        decoder = self.decoder
        decoded = f", {decoder.title}" * (not self.dequantizes)
        return f"variational bound (SDE), {self.draws} draws{decoded}"

    def describe(self) -> dict[str, Any]:
        decoder = self.decoder
        return {
            "estimator": self.title,
            "model": "SDE",
            "matching": self.matching,
            "draws": self.draws,
            "times": describe(self.times),
            "control": describe(self.control),
            "start": describe(self.start),
            "reconstruction": type(decoder).__name__.removesuffix("Decoder"),
            **(decoder.describe() if isinstance(decoder, InformedDecoder) else {}),
        }

    def first(self, model: ImageModel) -> Scalar:
        """The smallest time.

        Args:
            model: the one that is measured.
        """
        return model.eps if self.start is None else self.start

    def __call__(
        self, model: ImageModel, dequantizer: Dequantizer, x: IntImages, keys: Key[Array, " b"]
    ) -> ImageValues:
        key_u, key_bound = split(keys)
        pixels, dims, bits = pixels_of(model), dims_of(x), dims_of(x) * jnp.log(2.0)
        eps = self.first(model)
        terms: ImageValues = {}
        if (y := self.decoder.encode(x)) is None:
            if dequantizer.start is not None:
                raise UserError(
                    "this bound begins at the model's smallest time, and the dequantizer's noise"
                    " at another: take model.default_bound, or the dequantizer scoremle.Uniform()"
                )
            u, log_q = dequantizer(key_u, x)
            y, terms["dequantization"] = pixels.encode(x, u), log_q / bits
        else:  # a probability is a density times the volume of a bin
            log_q = jnp.full(len(x), dims * pixels.log_det_per_dim)
        found = elbo(
            model.noise, model.sde, y, key_bound,
            eps=eps, times=self.times or evenly(model.sde, eps),
            draws=self.draws, matching=self.matching, decoder=self.decoder,
            integers=x, control=self.control,
        )  # fmt: skip
        return {
            "bpd": bits_per_dim(found.log_prob - log_q, pixels, dims),
            **of_bound(found, bits),
            **terms,
        }


def check_suits(estimator: Estimator, model: Any) -> None:
    """Raises UserError for an estimator with a part that was made for another model.

    Those are a decoder of other levels, and times or a control of a bound from another smallest
    time. Within a compiled program no number is known: this is called before.

    Args:
        estimator: any; of ``ByLabels``, that of one label is checked.
        model: as the estimator takes it.
    """
    estimator = getattr(estimator, "of_one", estimator)
    points = getattr(getattr(estimator, "decoder", None), "points", None)
    if points is not None and len(points) != (levels := pixels_of(model).levels):
        raise UserError(
            f"the decoder has points of {len(points)} levels, and the model's images {levels}:"
            " give it those of the model, model.pixels.points"
        )
    if isinstance(estimator, ByElbo):
        check_start(model.sde, estimator.first(model), estimator.times, estimator.control)


def measure(
    estimator: Callable[..., ImageValues], model: Any, dequantizer: Dequantizer, x: IntImages,
    keys: Key[Array, " b"], condition: Any = None,
) -> ImageValues:  # fmt: skip
    """The estimator's values; of a model with a coder, each image's under its own code.

    log P(x) >= log P(x | code of x) - log of the number of codes: its cost, in bits/dim, is the
    column ``code``. A difference of two values under one code has none.

    Args:
        estimator: measures bits/dim.
        model: as the estimator takes it.
        dequantizer: of the images.
        x: [b *d] integers.
        keys: one for each image.
        condition: what the noise prediction takes, a row for each image; None: nothing.
    """
    if condition is not None:
        model = replace(model, noise=conditioned(model.noise, condition))
    if (coder := getattr(model, "coder", None)) is None:
        return estimator(model, dequantizer, x, keys)
    found = estimator(model.under(coder(model.pixels.encode(x, 0.5))), dequantizer, x, keys)
    if isinstance(estimator, OdeDifference):
        return found
    cost = jnp.full(len(x), coder.nats / (dims_of(x) * math.log(2)))
    column = "bpd" if "bpd" in found else "loss"
    return {**found, column: found[column] + cost, "code": cost}


def of_bound(found: ELBO, bits: Float[Array, ""]) -> ImageValues:
    """The columns of a bound beside ``bpd``."""
    profile = {} if found.profile is None else {"profile": found.profile / bits}
    return {
        "draw_stderr": found.stderr / bits,
        "prior": found.prior / bits,
        "diffusion": found.diffusion / bits,
        "reconstruction": found.reconstruction / bits,
        "nfe": found.evaluations.astype(jnp.float32),
        **profile,
    }
