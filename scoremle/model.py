"""A model: its SDE, its noise prediction, and what its images are.

Each method calls a public function of arrays with the model's own settings. Nothing in a model
changes when it is used.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, overload, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Integer, Key

from scoremle.core.arguments import (
    as_array,
    as_data,
    as_shape,
    check_count,
    check_examples,
    check_kind,
    check_number,
    check_part,
    check_seed,
)
from scoremle.core.bijectors import AtTime, Bijector, forward_of, inverse_of
from scoremle.core.condition import as_condition, check_classes, conditioned, parted, rows_of
from scoremle.core.dequantize import (
    Dequantizer,
    TruncatedNormal,
    Uniform,
    levels_are_hidden,
    truncation_start,
)
from scoremle.core.divergence import DivergenceEstimator, Hutchinson
from scoremle.core.keys import fold_in, image_keys, key_of, one_or_each
from scoremle.core.pixels import Pixels
from scoremle.core.prediction import check_model
from scoremle.core.programs import OfModels, Programs
from scoremle.core.pytree import frozen_pytree, known, static
from scoremle.core.sde import SDE, of_examples, with_schedule
from scoremle.core.times import evenly, log_snr_range
from scoremle.devices import replicate, round_up, split_rows, to_numpy, within_memory
from scoremle.errors import UserError, by
from scoremle.likelihood.check import check_declaration
from scoremle.likelihood.decoders import InformedDecoder
from scoremle.likelihood.elbo import ELBO, elbo
from scoremle.likelihood.flow import DIVERGENCE, SOLVER
from scoremle.likelihood.image_model import pixels_of
from scoremle.likelihood.images import ByElbo, ByOde, Estimator, number_in_words
from scoremle.likelihood.informed import fitted_scale
from scoremle.likelihood.ode import ode_decode, ode_log_likelihood, warn_of_rows
from scoremle.likelihood.pilot import PILOT_IMAGES, Choice, choose_within
from scoremle.likelihood.profile import Profile, msma_levels, profile_columns
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.likelihood.record import Likelihood
from scoremle.likelihood.scales import LearnedScale, Scale
from scoremle.likelihood.score_images import choose_for_images, example_numbers, score_images
from scoremle.likelihood.scores import Scores
from scoremle.likelihood.steps import BySteps, chain_of, learned_decoder
from scoremle.numerics import (
    all_finite,
    as_pytree,
    check_call,
    check_finite_values,
    expand,
    power_of_two,
    predict,
    sum_data,
)  # fmt: skip
from scoremle.resumable import Arrays, resumable_map
from scoremle.sampling.ends import check_sampler, end_of
from scoremle.sampling.ode import ode_draw, ode_encode, ode_sample
from scoremle.sampling.samples import Samples
from scoremle.solvers.base import Solver
from scoremle.solvers.multistep import Multistep
from scoremle.terminal import html_table
from scoremle.types import Data, DataLike, Keys, NoiseFn, PerExample, PRNGKey, Scalar

if TYPE_CHECKING:
    from scoremle.core.codes import Coder  # which few models have

__all__ = ["BATCH_SIZE", "Origin", "Sampler", "ScoreModel", "Scores", "draw_samples"]

BATCH_SIZE = 256
# The number of the probes' keys from that of a sample, which draws its latent.
PROBES = np.uint32(1)
# And that of its code, where it has one.
CODES = np.uint32(2)

# Any pytree of arrays, each with a row for each example or one for all; None: there is none.
Condition = Any


# The kinds of a model's parts, and an example of each.
KINDS: dict[str, tuple[Any, str]] = {
    "sde": (SDE, "scoremle.VP()"),
    "bijector": (Bijector, "scoremle.Affine(shift, scale)"),
    "solver": SOLVER,
    "divergence": DIVERGENCE,
}


@runtime_checkable
class Sampler(Protocol):
    """Draws samples by a key for each: at t = ``eps``, unless it states another end.

    (``sampling/ends.py``.)
    """

    def __call__(
        self, noise: NoiseFn, sde: SDE, key: Keys, shape: tuple[int, ...], *, eps: float
    ) -> Data: ...


@frozen_pytree
class Origin:
    """The origin of a model that was trained: the place of its integers, and other facts.

    Args:
        dataset: the name of the data set that it was trained on; "": unknown.
        step: after how many steps of a training of this package; None: another trained it.
        checkpoint: its number in a working directory; None: it is not of one, or is imported.
        pilot: its config leaves the solver's steps to a pilot.
        published: it is of a published family, whose networks others trained.
        chain: the bound that its authors report, by their own chain of steps; None: not known.
        classes: how many labels its noise prediction takes one of as condition; 0: none.
        middles: it was trained on integers in the middle of their bins, without noise there.
        grid: it was trained on integers from end to end of the pixels' range, without noise.
    """

    dataset: str = static(default="")
    step: int | None = static(default=None)
    checkpoint: int | None = static(default=None)
    pilot: bool = static(default=True)
    published: bool = static(default=False)
    chain: BySteps | None = None
    classes: int = static(default=0)
    middles: bool = static(default=False)
    grid: bool = static(default=False)

    @property
    def of_integers(self) -> "Origin":
        """The place of its integers, alone: values depend on no other fact."""
        return Origin(middles=self.middles, grid=self.grid)

    @property
    def without_noise(self) -> bool:
        """Whether it was trained on integers that had no noise."""
        return self.middles or self.grid


@frozen_pytree(repr=False)
class ScoreModel:
    """A diffusion or flow model, by its noise prediction.

    A pytree: parameters of the noise prediction and numbers of the SDE are leaves, and two models
    of one architecture are arguments of one compiled program. A bare function is part of the
    program, with the arrays that it closes over as they are at its first call.

    A program is found again by calls that differ in numbers alone, and in rows of about the same
    number: ``core/programs.py``.

    Args:
        noise: eps(x, t), or eps(x, t, condition) of a conditional model.
        sde: the noise at each time.
        eps: the smallest time, where likelihoods start and samples end: densities and samples are
            of data with the noise of that time, which is sigma / alpha in their scale.
        shape: of one example.
        pixels: what its images are; None where the data are reals.
        solver: of the probability-flow ODE, where a method is not given another.
        decoder_scale: the scale of ``decoder``, in units of the data; None: the scale that the
            network predicts, or sigma / alpha at t = ``eps``.
        bijector: from data that are reals, in all digits that they have, to what the network sees;
            None: they are the same.
        divergence: how traces of reals are estimated, where a method is not given another.
        origin: facts about its training, if any. Values depend on ``of_integers`` alone, which
            gives ``points``, ``default_bound`` and ``default_dequantizer``.
        coder: the encoder of images, where the schedule depends on a code of the image. For
            ``log_prob`` and ``encode`` of such a model call ``under(codes)`` first.

    Raises UserError for pixels and a bijector at once, eps outside [0, 1), an invalid shape or
    decoder_scale, a schedule of other dimensions, and a noise prediction of ``noise_fn`` that is
    made for another SDE.

    Example:
        >>> sde = scoremle.VP()
        >>> noise = lambda x, t: sde.sigma(t)[:, None] * x  # of data N(0, I)
        >>> model = scoremle.ScoreModel(noise, sde, eps=1e-3, shape=(2,))
        >>> found = model.log_prob(jnp.asarray([[1.0, 0.0]]), jax.random.key(0))
        >>> print(f"{found.log_prob[0]:.2f}")  # -1/2 - log 2 pi
        -2.34
    """

    noise: NoiseFn
    sde: SDE
    eps: float = static()
    shape: tuple[int, ...] = static()
    pixels: Pixels | None = static(default=None)
    solver: Solver | PublishedRK45 = Multistep()
    decoder_scale: Scalar | Scale | None = None
    bijector: Bijector | None = None
    divergence: DivergenceEstimator | None = None
    origin: Origin = Origin()
    coder: "Coder | None" = None

    def __post_init__(self) -> None:
        if self.pixels is not None:
            check_kind("pixels", self.pixels, Pixels, "scoremle.Pixels(256)")
        if self.pixels and self.bijector:
            raise UserError("pixels are of integers, and a bijector of reals: give one of the two")
        for name, (kind, such) in KINDS.items():
            if (value := getattr(self, name)) is not None:
                check_part(name, value, kind, such)
        if not (self.decoder_scale is None or callable(self.decoder_scale)):
            check_number("decoder_scale", self.decoder_scale, above=0)
        object.__setattr__(self, "noise", as_pytree(self.noise))
        object.__setattr__(self, "shape", as_shape(self.shape))
        check_model(self.noise, self.sde, self.eps, self.shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._facts().values())})"

    def _repr_html_(self) -> str:
        """A table of what the model is, for notebooks."""
        facts = self._facts() | {"smallest time": f"{self.eps:g}", "solver": repr(self.solver)}
        return html_table((), list(facts.items()), type(self).__name__)

    def _facts(self) -> dict[str, str]:
        """Facts of the model by name: shape, SDE, grey levels, network, data set and step."""
        noise, _ = parted(self.noise)
        network = getattr(noise, "network", noise)
        count = sum(np.size(leaf) for leaf in jax.tree.leaves(network))
        facts = {"shape": by(self.shape), "SDE": repr(self.sde)}
        facts |= {"grey levels": f"{self.pixels.levels} levels"} if self.pixels else {}
        words = [f"{count:,} parameters"] * bool(count)
        words += [network.way] if hasattr(network, "way") else []  # a module's way to JAX
        facts |= {"network": ", ".join(words)} if words else {}
        facts |= {"data set": self.origin.dataset} if self.origin.dataset else {}
        step = self.origin.step
        return facts | ({} if step is None else {"training": f"step {step:,}"})

    @property
    def dims(self) -> int:
        """Dimensions of one example.

        Example:
            >>> scoremle.load("digits").dims
            64
        """
        return int(np.prod(self.shape))

    @property
    def decoder(self) -> InformedDecoder | None:
        """Decoder of integers, where the noise at t = ``eps`` is wider than half a grey level.

        It is centred on the network's estimate of the data, with ``decoder_scale``. Where that is
        None and the network has learned a range of variances, it is the decoder of L_0 in its
        chain of steps, if the first of these is at t = ``eps``. None where the noise is
        narrower, and where it depends on a code. Raises UserError for a model of reals.

        Example:
            >>> print(scoremle.load("digits").decoder)
            None
        """
        pixels = pixels_of(self)
        if self.coder or not levels_are_hidden(self.sde, self.eps, pixels):
            return None
        if self.decoder_scale is not None:
            return InformedDecoder(self.points, self.decoder_scale)
        learned = learned_decoder(self.noise, self.sde, self.eps, self.points)
        return learned or InformedDecoder.at(self.sde, self.eps, self.points)

    @property
    def default_estimator(self) -> Estimator:
        """Estimator by the ODE: the model's solver, one probe a step, and ``decoder`` if any.

        Example:
            >>> print(scoremle.load("digits").default_estimator.title)
            exact by the ODE
        """
        return ByOde(solver=self.solver, decoder=self.decoder)

    @property
    def default_bound(self) -> ByElbo:
        """Estimator by the variational bound, with ``decoder`` if any.

        Of a model that was trained on the middles of bins it is ``ByElbo.without_noise``.

        Example:
            >>> print(scoremle.load("digits").default_bound.title)
            variational bound (SDE), 1000 draws
        """
        if self.decoder:
            return ByElbo(decoder=self.decoder)
        if not self.origin.middles:
            return ByElbo()
        return ByElbo.without_noise(self)

    @property
    def default_dequantizer(self) -> Dequantizer:
        """Uniform noise; of a model that was trained on the middles of bins, its own noise there.

        Example:
            >>> print(type(scoremle.load("digits").default_dequantizer).__name__)
            Uniform
        """
        if not self.origin.middles:
            return Uniform()
        pixels = pixels_of(self)
        return TruncatedNormal(self.sde, truncation_start(self.sde, self.eps, pixels), pixels)

    @property
    def points(self) -> Float[np.ndarray, " levels"]:
        """The reals of the integers without noise: on the grid of its training, or bins' middles.

        Example:
            >>> print(scoremle.load("digits").points[8])  # the middle of 17 levels on [-1, 1)
            0.0
        """
        pixels = pixels_of(self)
        return pixels.grid if self.origin.grid else pixels.points

    def chain(self, steps: int) -> BySteps:
        """Estimator by the bound of a chain of so many steps on the probability of integers.

        Args:
            steps: the number of steps: of a discrete schedule its own, else even in log-SNR.

        Raises UserError for fewer than two steps, more than a discrete schedule has, a model of
        reals, and a schedule that has a log-SNR for each dimension.

        Example:
            >>> print(scoremle.load("digits").chain(100).title)
            variational bound of a chain of 100 steps, fixed small variance, informed decoder
        """
        pixels, origin = pixels_of(self), self.origin
        points = self.points if origin.without_noise else None
        return chain_of(steps, self.sde, self.eps, pixels, origin.chain, points=points)

    def condition_on(self, condition: Condition) -> "ScoreModel":
        """The model under a condition, which its noise prediction takes as a third argument.

        Args:
            condition: any pytree of arrays, with a row for each example that the model will be
                used with, or one for all.

        Example:
            >>> sde = scoremle.VP()
            >>> def noise(x, t, mean):  # of data N(mean, I)
            ...     return sde.sigma(t)[:, None] * (x - sde.alpha(t)[:, None] * mean)
            >>> model = scoremle.ScoreModel(noise, sde, eps=1e-3, shape=(2,))
            >>> under = model.condition_on(jnp.asarray([[1.0, 0.0]]))
            >>> found = under.log_prob(jnp.asarray([[1.0, 0.0]]), jax.random.key(0))
            >>> print(f"{found.log_prob[0]:.1f}")  # -log 2 pi
            -1.8
        """
        return replace(self, noise=conditioned(self.noise, condition))

    def under(self, codes: Float[Array, "b m"]) -> "ScoreModel":
        """The model of the examples that have these codes, for a model with a ``coder``.

        Args:
            codes: [b m] bits, a row for each example that it will be used with.

        Raises UserError for a model whose schedule takes no code.

        Example:
            >>> sde = scoremle.VP()  # one schedule for all examples
            >>> model = scoremle.ScoreModel(lambda x, t: x, sde, eps=1e-3, shape=(2,))
            >>> try:
            ...     model.under(jnp.zeros((1, 2)))
            ... except scoremle.UserError as error:
            ...     print(error)
            LinearBeta is the same for all images: it takes no code
        """
        sde = self.sde.at(codes)
        noise = conditioned(with_schedule(self.noise, sde.schedule), codes)
        return replace(self, noise=noise, sde=sde, coder=None)

    def log_prob(
        self,
        x: DataLike,
        key: Keys,
        *,
        condition: Condition = None,
        divergence: DivergenceEstimator | None = None,
        solver: Solver | PublishedRK45 | None = None,
        tolerance: float | None = None,
        dtype: DTypeLike | None = None,
    ) -> Likelihood:
        """log p(x) in nats of real data with the noise of t = ``eps``, by the ODE.

        It is log p_eps(alpha x) + sum log alpha, and the bijector's determinant if there is one.
        It is differentiable in x, the condition, and the leaves of the model.

        Args:
            x: data of the model's shape.
            key: draws the probes, and the times of the steps of each example
                (``ode_log_likelihood``); one, or one for each example.
            condition: what the noise prediction takes, a row for each example or one for all.
            divergence: how traces are estimated; None: the model's own, or exactly up to 64
                dimensions, and beyond them by one random probe at each step.
            solver: None: the model's own; if that is ``Multistep()``, rows are solved again until
                it states at most 0.01 nats, as ``ode_log_likelihood`` says.
            tolerance: in nats, instead of a divergence and a solver: a pilot chooses them, as
                ``ode_log_likelihood`` says.
            dtype: of the computation, such as "float64"; None: that of ``x``, which without
                ``jax_enable_x64`` is float32.

        Raises UserError for data of another shape, what are not finite reals or lie where the
        bijector is not defined, a condition of another number of rows, a dtype that JAX is not set
        up for, and a tolerance beside a solver or a divergence.

        Example:
            >>> sde = scoremle.VP()
            >>> noise = lambda x, t: sde.sigma(t)[:, None] * x  # of data N(0, I)
            >>> model = scoremle.ScoreModel(noise, sde, eps=1e-3, shape=(2,))
            >>> found = model.log_prob(jnp.asarray([[0.0, 0.0]]), jax.random.key(0))
            >>> print(f"{found.log_prob[0]:.2f}")  # -log 2 pi
            -1.84
        """
        if tolerance is None:
            divergence = divergence or self.divergence
            # The default solver is refined row by row; one that was chosen is taken as it is.
            refined = known(x, key, self, condition)
            solver = solver or (self._chosen_solver if refined else self.solver)
        on_host = solver is None or isinstance(solver, PublishedRK45)
        z, log_det = self._inside(x, dtype)
        model, condition = self._apart(condition, len(z))
        log_prob = _log_prob.function if on_host else _log_prob
        rows = z, log_det, one_or_each(key, len(z)), condition
        return log_prob(rows, model, divergence, solver, tolerance)

    def within(
        self, tolerance: float, x: DataLike, *, condition: Condition = None, seed: int = 0
    ) -> tuple["ScoreModel", Choice]:
        """Chooses solver and trace so that log p of such data is accurate to ``tolerance`` nats.

        A pilot on the first examples chooses the cheapest of both. Returns the model that has
        them, and the choice with the errors that were measured.

        Args:
            tolerance: in nats, of the errors of solver and probes together, in root mean square:
                an example may have a larger error, and states it.
            x: data of the model's shape, of which the first 32 are used.
            condition: what the noise prediction takes, a row for each example or one for all.
            seed: of the pilot's probes.

        Raises UserError for no data, a log p that is not finite, a tolerance that is not above 0,
        and where it is traced.

        Example:
            >>> sde, key = scoremle.VP(), jax.random.key(0)
            >>> noise = lambda x, t: sde.sigma(t)[:, None] * x  # of data N(0, I)
            >>> model = scoremle.ScoreModel(noise, sde, eps=1e-3, shape=(100,))
            >>> model, choice = model.within(0.05, jax.random.normal(key, (4, 100)))
            >>> print(choice.met, model.divergence)
            True Hutchinson(probes=2, distribution='rademacher')
        """
        z, _ = AtTime(self.sde, self.eps).forward(self._inside(x)[0])
        model, condition = self._apart(condition, len(z))
        found = choose_within(
            model.noise, self.sde, z, tolerance=tolerance, eps=self.eps, condition=condition,
            seed=seed,
        )  # fmt: skip
        return replace(self, solver=found.solver, divergence=found.divergence), found

    def elbo(
        self, x: DataLike, key: Keys, *, condition: Condition = None, draws: int = 1000
    ) -> ELBO:
        """The ELBO, a lower bound on log p(x) in nats of real data, by random times.

        Args:
            x: data of the model's shape.
            key: draws times and noise; one, or one for each example.
            condition: what the noise prediction takes, a row for each example or one for all.
            draws: how many times.

        Raises UserError for data of another shape, what are not finite reals, and no draws.

        Example:
            >>> sde = scoremle.VP()
            >>> noise = lambda x, t: sde.sigma(t)[:, None] * x  # of data N(0, I)
            >>> model = scoremle.ScoreModel(noise, sde, eps=1e-3, shape=(2,))
            >>> found = model.elbo(jnp.asarray([[0.0, 0.0]]), jax.random.key(0))
            >>> print(bool(found.log_prob[0] < -np.log(2 * np.pi) + 3 * found.stderr[0]))
            True
        """
        check_count("draws", draws)
        z, log_det = self._inside(x)
        model, condition = self._apart(condition, len(z))
        return _elbo((z, log_det, one_or_each(key, len(z)), condition), model, int(draws))

    def profile(
        self,
        data: DataLike | Integer[Array | np.ndarray, "n *d"],
        *,
        condition: Condition = None,
        index: Sequence[int] | Integer[Array | np.ndarray, " n"] | None = None,
        bins: int = 10,
        draws: int = 4,
        batch_size: int = BATCH_SIZE,
        seed: int = 0,
        label: str = "",
    ) -> Profile:
        """Bits over noise levels and over the numbers of an example, and its local dimension.

        The bits are those of the bound's diffusion term: of uniformly dequantized images, or where
        the model has a ``decoder``, of the middles of their bins. What is taken without noise is
        of these middles, too.

        Args:
            data: of the model's shape: integers [n h w c] where it is one of images, else reals.
            condition: what the noise prediction takes, a row for each example or one for all.
            index: the number of each example, to which its randomness belongs; None: its place.
            bins: of log-SNR, of equal width.
            draws: of times and noise in each bin, two at least; each is a network evaluation with
                a derivative.
            batch_size: how many at once, or fewer where memory does not suffice; no value depends
                on it.
            seed: of all randomness.
            label: under which progress is shown, if there is one.

        Raises UserError for data of another shape, type or range than the model's, a log-SNR for
        each dimension, no bins, fewer than two draws, values that are not finite, and where it is
        traced.

        Example:
            >>> sde = scoremle.VP()
            >>> noise = lambda x, t: sde.sigma(t)[:, None] * x  # of data N(0, I)
            >>> model = scoremle.ScoreModel(noise, sde, eps=1e-3, shape=(2,))
            >>> found = model.profile(np.zeros((1, 2), np.float32), bins=5)
            >>> print(found.bits.shape, f"{found.flipd[0, -1]:.1f}")
            (1, 5) 2.0
        """
        self._check_outside("profile", data, condition)
        check_seed(seed)
        check_count("bins", bins)
        check_count("draws", draws, least=2)
        check_count("batch_size", batch_size)
        width, dequantized = 1.0, self.pixels is not None and self.decoder is None
        x: Any = data
        if self.pixels is None:
            x, _ = self._inside(x, name="data")
        else:
            x = self.pixels.checked(x, self.shape)
            width = self.pixels.high - self.pixels.low
        n, key = len(x), key_of(seed)
        model, condition = self._apart(condition, n)
        numbers = example_numbers(index, n)
        levels, rows = msma_levels(self.sde, self.eps, width), rows_of(condition, n)
        program = within_memory(_profile)

        def work(_: int, indices: Integer[np.ndarray, " size"]) -> Arrays:
            under = jax.tree.map(lambda row: row[indices], rows)
            inputs = x[indices], image_keys(key, numbers[indices]), under
            found, finite = program(
                model, *inputs, levels, bins=int(bins), draws=int(draws), dequantized=dequantized
            )
            check_finite_values(finite, numbers[indices], "the profile of example")
            return to_numpy(found)

        size = min(batch_size, power_of_two(n))
        parts = resumable_map(work, n, size=size, label=label, unit="profile")
        found = {name: column[0] for name, column in parts.items()}
        low, high = map(float, log_snr_range(self.sde, self.eps))
        edges = np.linspace(low, high, bins + 1)
        return Profile(log_snr_edges=edges, levels=levels, **found)

    def score(
        self,
        images: Integer[Array | np.ndarray, "n h w *c"],
        *,
        condition: Condition = None,
        index: Sequence[int] | Integer[Array | np.ndarray, " n"] | None = None,
        passes: int = 1,
        dequantizer: Dequantizer | None = None,
        estimator: Estimator | None = None,
        tolerance: float | None = None,
        batch_size: int | None = None,
        devices: Sequence[jax.Device] | None = None,
        seed: int = 0,
        label: str = "",
    ) -> Scores:
        """log P of integer images in nats, their bits/dim, and the errors of these.

        Args:
            images: [n h w c], or [n h w] where the model has one channel.
            condition: what the noise prediction takes, a row for each image or one for all.
            index: the number of each image, to which its randomness belongs; None: its place.
            passes: independent passes, whose spread gives the error.
            dequantizer: None: ``default_dequantizer``, where the estimator takes one.
            estimator: None: ``default_estimator``.
            tolerance: the most, in bits/dim, that the solver adds to the standard error of the
                mean over images; or a quarter of the probes' error, if that is more. A pilot on
                the first images chooses the solver's steps, and more steps on some images correct
                the mean over all. None: the model's own solver, so that a value depends on its own
                image alone.
            batch_size: how many at once, or fewer where memory does not suffice; no value depends
                on it.
            devices: that share each batch; None: one.
            seed: of all randomness.
            label: under which progress is shown, if there is one.

        Raises UserError for images of another shape, type or range than the model's, an index that
        is not whole numbers from 0 to 2**64 - 1, a seed outside 0..2**32 - 1, no passes, what
        is not an estimator or dequantizer, an estimator that does not suit the model, a tolerance
        beside an estimator, a dequantizer beside one that takes none, as one with a decoder,
        values that are not finite, and where it is traced.

        Example:
            >>> sde = scoremle.VP()
            >>> model = scoremle.ScoreModel(  # of data N(0, I)
            ...     lambda x, t: sde.sigma(t)[:, None, None, None] * x, sde,
            ...     eps=1e-3, shape=(1, 2, 1), pixels=scoremle.Pixels(8),
            ... )
            >>> images = np.asarray([1, 6], np.uint8).reshape(1, 1, 2, 1)
            >>> scores = model.score(images, passes=20)
            >>> print(bool(abs(scores.bpd[0] - 3.61) < 4 * scores.stderr[0] + 0.01))
            True
        """
        self._check_outside("score", images, condition)
        pixels = pixels_of(self)
        check_seed(seed)
        check_count("passes", passes)
        if batch_size is not None:
            check_count("batch_size", batch_size)
        images = pixels.checked(images, self.shape)
        n = len(images)
        numbers = example_numbers(index, n)
        if n == 0:
            return Scores(*np.zeros((5, 0)))
        model, choice, devices = self, None, _chosen(devices)
        plain, condition = self._apart(condition, n)
        if tolerance is not None:
            if estimator:
                raise UserError("give a tolerance, or an estimator with its solver, not both")
            check_number("tolerance", tolerance, above=0)
            choice = choose_for_images(
                plain, images, condition=condition, mean_over=n, passes=passes,
                tolerance=tolerance, devices=devices, seed=seed,
            )  # fmt: skip
            model = replace(self, solver=choice.solver)
        estimator = estimator or model.default_estimator
        if dequantizer and not getattr(estimator, "dequantizes", True):
            raise UserError(
                "this estimator takes no dequantizer, since it has a decoder: leave it out, or"
                " take scoremle.ByOde()"
            )
        dequantizer = dequantizer or self.default_dequantizer
        found = score_images(
            model._plain(plain.noise), estimator, images, numbers,
            dequantizer=dequantizer, condition=condition, passes=passes, seed=seed,
            batch_size=batch_size, devices=devices, label=label,
        )  # fmt: skip
        check_finite_values(found.finite, numbers, "bits/dim of image")
        if choice and tolerance:
            found = found.corrected(choice.levels, tolerance)
        scores = Scores.of_passes(found.values, self.dims)
        words = number_in_words(estimator, dequantizer, self)
        return replace(scores, mean=found.mean, choice=choice, estimator=words)

    def calibrated(
        self,
        images: Integer[Array | np.ndarray, "n h w *c"],
        *,
        divergence: DivergenceEstimator = Hutchinson(),
        seed: int = 0,
    ) -> tuple["ScoreModel", Choice]:
        """Chooses the solver's steps for likelihoods of such images, and calibrates its error.

        Returns the model that has this solver, its decoder fitted to the images, and the choice
        with the errors that were measured.

        Args:
            images: [n h w c] integers, of which a few are used.
            divergence: how traces are estimated.
            seed: of probes and dequantization noise.

        Raises UserError for no images, for those of another shape, type or range than the model's,
        and where it is traced.

        Example:
            >>> sde = scoremle.VP()
            >>> model = scoremle.ScoreModel(  # of data N(0, I)
            ...     lambda x, t: sde.sigma(t)[:, None, None, None] * x, sde,
            ...     eps=1e-3, shape=(1, 2, 1), pixels=scoremle.Pixels(8),
            ... )
            >>> images = np.arange(8, dtype=np.uint8).reshape(4, 1, 2, 1)
            >>> model, choice = model.calibrated(images, divergence=scoremle.Exact())
            >>> print(choice.met, model.solver == choice.solver)
            True True
        """
        self._check_outside("calibrated", images)
        check_seed(seed)
        images = pixels_of(self).checked(images, self.shape)
        model, condition = self._apart(None, len(images))
        choice = choose_for_images(
            model, images, condition=condition, divergence=divergence, seed=seed
        )
        return replace(self.fit_decoder(images, seed=seed), solver=choice.solver), choice

    def fit_decoder(
        self, images: Integer[Array | np.ndarray, "n h w *c"], *, seed: int = 0
    ) -> "ScoreModel":
        """The model with the ``decoder_scale`` under which such integers are likeliest.

        A single number is fitted: the scores of the same images gain about half a nat by it at
        most, in their sum. A model without a decoder, or whose network predicts the scale, is
        returned as it is.

        Args:
            images: [n h w c] integers, of which a few are used, at one network evaluation each.
            seed: of the noise.

        Raises UserError for no images, for those of another shape, type or range than the model's,
        and where it is traced.

        Example:
            >>> model = scoremle.load("digits")  # it has no decoder
            >>> print(model.fit_decoder(np.zeros((1, 8, 8, 1), np.uint8)) is model)
            True
        """
        self._check_outside("fit_decoder", images)
        check_seed(seed)
        images = pixels_of(self).checked(images, self.shape)
        if not len(images):
            raise UserError("there are no images to fit the decoder to")
        decoder = self.decoder
        if decoder is None or isinstance(decoder.scale, LearnedScale):
            return self
        model, condition = self._apart(None, len(images))
        few, rows = jax.tree.map(
            lambda each: each[:PILOT_IMAGES], (images, rows_of(condition, len(images)))
        )
        scale = fitted_scale(model.condition_on(rows), few, key_of(seed))
        return replace(self, decoder_scale=scale)

    def check(
        self, data: DataLike | Integer[Array | np.ndarray, "n *d"], *, condition: Condition = None
    ) -> list[str]:
        """Lists likely mistakes in the declaration, a line each; none if all is well.

        Args:
            data: of the kind that the model was trained on, integers [n h w c] where it is one of
                images; a few are used.
            condition: what the noise prediction takes, a row for each example or one for all.

        Raises UserError for fewer than four examples or than 128 numbers in all of them, for data
        of another shape, type or range than the model's, for a network whose arguments or output
        are not those of a noise prediction, and where it is traced.

        Example:
            >>> sde = scoremle.VP()
            >>> def noise(x, t):  # of data N(0, 4 I)
            ...     alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
            ...     return sigma * x / (4 * alpha**2 + sigma**2)
            >>> model = scoremle.ScoreModel(noise, sde, 1e-3, (2,))
            >>> model.check(2 * jax.random.normal(jax.random.key(0), (300, 2)))
            []
        """
        self._check_outside("check", data, condition)
        if self.pixels is None:
            self._inside(data, name="data")  # raises UserError for wrong data
        else:
            data = self.pixels.checked(data, self.shape)
        model, condition = self._apart(condition, len(data))
        scaling, rows = self.pixels or self.bijector, rows_of(condition, len(data))
        if self.pixels and self.origin.grid:
            scaling = Pixels.of_points(self.pixels.levels, self.pixels.low, self.pixels.high)
        return check_declaration(
            model.noise, self.sde, cast(Any, np.asarray(data)),
            eps=self.eps, scaling=scaling, condition=rows,
        )  # fmt: skip

    @overload
    def sample(
        self, n: int, key: PRNGKey, *, condition: Condition = None, sampler: Sampler | None = None,
        batch_size: int = BATCH_SIZE, devices: Sequence[jax.Device] | None = None,
        label: str = "", parts: Path | None = None, log_prob: Literal[False] = False,
    ) -> np.ndarray: ...  # fmt: skip

    @overload
    def sample(
        self, n: int, key: PRNGKey, *, condition: Condition = None, sampler: Sampler | None = None,
        batch_size: int = BATCH_SIZE, devices: Sequence[jax.Device] | None = None,
        label: str = "", parts: Path | None = None, log_prob: Literal[True],
    ) -> Samples: ...  # fmt: skip

    @overload
    def sample(
        self, n: int, key: PRNGKey, *, condition: Condition = None, sampler: Sampler | None = None,
        batch_size: int = BATCH_SIZE, devices: Sequence[jax.Device] | None = None,
        label: str = "", parts: Path | None = None, log_prob: bool,
    ) -> np.ndarray | Samples: ...  # fmt: skip

    def sample(
        self,
        n: int,
        key: PRNGKey,
        *,
        condition: Condition = None,
        sampler: Sampler | None = None,
        batch_size: int = BATCH_SIZE,
        devices: Sequence[jax.Device] | None = None,
        label: str = "",
        parts: Path | None = None,
        log_prob: bool = False,
    ) -> np.ndarray | Samples:
        """Samples, integers where the model is one of images; each has its own key.

        They are float32; float64 if JAX is set up for it, or the model has a bijector, whose
        offset may need the digits.

        Args:
            n: how many.
            key: of all of them.
            condition: what the noise prediction takes, a row for each sample or one for all.
            sampler: any of ``scoremle.sampling`` that takes a key, with its options bound by
                functools.partial; one that takes latents is bound as ``transport`` of
                ``sampling.ode.ode_draw``. None: the ODE, by the model's solver.
            batch_size: how many at once, or fewer where memory does not suffice; no sample
                depends on it, but those of the corrector ``langevin``.
            devices: that share each batch; None: one.
            label: under which progress is shown, if there is one.
            parts: a folder whose name identifies all that a sample depends on, in which finished
                batches are kept, and from which a second call takes them; None: none are kept.
            log_prob: gives ``Samples``: reals with log p of each in nats and its errors, from the
                same solution of the ODE, by the model's own solver and divergence. The default of
                either is that of the method ``log_prob``.

        Raises UserError for numbers of samples below 0, what is not a sampler of this SDE,
        samples that are not finite, ``log_prob`` of a sampler other than the ODE's, and where it
        is traced.

        Example:
            >>> sde = scoremle.VP()
            >>> noise = lambda x, t: sde.sigma(t)[:, None] * x  # of data N(0, I)
            >>> model = scoremle.ScoreModel(noise, sde, eps=1e-3, shape=(2,))
            >>> x = model.sample(1000, jax.random.key(0))
            >>> print(x.shape, f"{x.std():.1f}")
            (1000, 2) 1.0
        """
        self._check_outside("sample", key, condition)
        check_count("n", n, least=0)
        check_count("batch_size", batch_size)
        if sampler is not None:
            check_kind("sampler", sampler, Sampler, "scoremle.pc_sample")
            check_call(sampler, self.noise, self.sde, key, self.shape, eps=self.eps)
            if not self.coder:  # by which each sample has a schedule of its own
                check_sampler(sampler, self.sde)
        model, condition = self._apart(condition, n)
        rows, devices = rows_of(condition, n), _chosen(devices)
        model = replicate(model, devices)
        if log_prob:
            if self.coder:
                raise UserError(
                    "log_prob=True gives log p under a code: take the model under the codes of the"
                    " samples (under), or draw samples and score them"
                )
            if sampler:
                raise UserError(
                    "log_prob=True is for the default sampler, the ODE: other samples do not come"
                    " with a density; draw them without it, and call the model's log_prob"
                )
            draw: Any = partial(
                _draw_with_log_prob, divergence=self.divergence, solver=self._chosen_solver
            )
        else:
            draw = partial(_draw_data, sampler=sampler)

        def work(_: int, indices: Integer[np.ndarray, " size"]) -> Arrays:
            given = jax.tree.map(lambda row: row[indices], rows)
            # What fills the last batch up is drawn, too: copies would enter the means of langevin.
            numbers = indices[:1] + np.arange(len(indices))
            inputs = split_rows((image_keys(key, numbers), given), devices)
            found, finite = draw(of_examples(model, indices), *inputs)
            check_finite_values(np.asarray(finite) | (numbers > indices), indices, "sample")
            return {name: np.asarray(column) for name, column in found.items()}

        size = round_up(min(batch_size, n), devices)
        columns = resumable_map(
            work, n, size=size, least=len(devices), folder=parts, label=label, unit="sample"
        )
        found = {name: column[0] for name, column in columns.items()}
        if not log_prob:
            return found["x"]
        samples = Samples(**found)
        if self._chosen_solver is None:
            warn_of_rows(samples.solver_error, samples.probe_stderr)
        return samples

    def encode(self, x: DataLike, *, condition: Condition = None) -> Data:
        """The latents of real data, at t = 1, by the probability-flow ODE.

        Args:
            x: data of the model's shape.
            condition: what the noise prediction takes, a row for each example or one for all.

        Example:
            >>> sde = scoremle.VP()
            >>> noise = lambda x, t: sde.sigma(t)[:, None] * x / (1 + 3 * sde.alpha(t)[:, None]**2)
            >>> model = scoremle.ScoreModel(noise, sde, eps=1e-3, shape=(2,))
            >>> z = model.encode(jnp.full((1, 2), 2.0))
            >>> print(f"{z[0, 0]:.2f}")  # N(0, 4 I) to N(0, I)
            1.00
        """
        z, _ = self._inside(x)
        model, condition = self._apart(condition, len(z))
        return _encode((z, condition), model)

    def decode(self, z: DataLike, *, condition: Condition = None) -> Data:
        """The real data of latents at t = 1, by the probability-flow ODE.

        Args:
            z: latents of the model's shape.
            condition: what the noise prediction takes, a row for each example or one for all.

        Example:
            >>> sde = scoremle.VP()
            >>> noise = lambda x, t: sde.sigma(t)[:, None] * x / (1 + 3 * sde.alpha(t)[:, None]**2)
            >>> model = scoremle.ScoreModel(noise, sde, eps=1e-3, shape=(2,))
            >>> x = model.decode(jnp.full((1, 2), 1.0))
            >>> print(f"{x[0, 0]:.2f}")  # N(0, I) to N(0, 4 I)
            2.00
        """
        z = self._shaped(as_data(z, name="z"), "z")
        model, condition = self._apart(condition, len(z))
        return _decode((z, condition), model)

    @property
    def _chosen_solver(self) -> Solver | PublishedRK45 | None:
        """The solver; None if it is the default one, which is refined row by row."""
        return None if self.solver == Multistep() else self.solver

    @property
    def _solver_of_states(self) -> Solver:
        """The solver of latents and samples without log p, which the published one finds alone."""
        return Multistep() if isinstance(self.solver, PublishedRK45) else self.solver

    def _plain(self, noise: NoiseFn) -> "ScoreModel":
        """The model with this noise prediction, and of its parts those that values depend on."""
        origin = self.origin.of_integers
        return replace(self, noise=noise, decoder_scale=None, divergence=None, origin=origin)

    def _check_outside(self, name: str, *arguments: Any) -> None:
        """Raises UserError where a method that works in batches, on the host, is traced."""
        if not known(self, arguments):
            raise UserError(
                f"{name} works in batches: call it outside of jit, grad and vmap, within which"
                " log_prob, elbo, encode and decode may be"
            )

    def _apart(self, condition: Condition, n: int) -> tuple["ScoreModel", Condition]:
        """The model under no condition, and the condition that it would be under, checked."""
        if self.origin.classes and condition is not None:
            condition = as_array(condition, "condition")  # a list of labels is one array of them
        noise, condition = parted(self.condition_on(condition).noise)
        condition = as_condition(condition, n)
        if self.origin.classes and known(condition):
            check_classes(condition, self.origin.classes)
        return self._plain(noise), condition

    def _inside(
        self, x: DataLike, dtype: DTypeLike | None = None, name: str = "x"
    ) -> tuple[Data, PerExample | Scalar]:
        """Real data as the network sees them, and the logarithm of that map's determinant."""
        data = self._shaped(as_data(x, dtype, name), name)
        if self.bijector is None:
            return data, 0.0
        if known(x, self.bijector):  # the map may need all digits of float64: those of an offset
            with jax.ensure_compile_time_eval(), jax.enable_x64(True):
                # A copy: within a trace JAX keeps the float32 that it made of x above.
                z, log_det = _forward((as_data(np.array(x), name=name),), self.bijector)
        else:  # in the digits of the data, or those of the computation if they are more
            digits = jnp.promote_types(as_data(x, name=name).dtype, data.dtype)
            z, log_det = _forward((as_data(x, digits, name),), self.bijector)
        check_examples(z, f"{name}, after the model's bijector,")
        return z.astype(data.dtype), log_det.astype(data.dtype)

    def _shaped(self, x: Data, name: str) -> Data:
        if x.shape[1:] != self.shape:
            shape = ", ".join(map(str, ("n", *self.shape)))
            raise UserError(f"{name} must have shape ({shape}), not {x.shape}")
        return x

    def _outside(self, x: Data, end: Scalar | None) -> Data:
        """Samples at time ``end`` as the network sees data; None: they are data already."""
        return x if end is None else AtTime(self.sde, end).inverse(x)


# Programs: each takes what has a row for each example first, and a model without a condition.

Reals = tuple[Data, PerExample | Scalar, Keys, Condition]


@Programs
def _forward(rows: tuple[Data], bijector: Bijector) -> tuple[Data, PerExample]:
    return forward_of(bijector, *rows)


@Programs
def _inverse(rows: tuple[Data], bijector: Bijector) -> Data:
    return inverse_of(bijector, *rows)


@partial(Programs, cut=Likelihood.first)
def _log_prob(
    rows: Reals,
    model: ScoreModel,
    divergence: DivergenceEstimator | None,
    solver: Solver | PublishedRK45 | None,
    tolerance: float | None,
) -> Likelihood:
    z, log_det, key, condition = rows
    z, change = _forward((z,), AtTime(model.sde, model.eps))
    found = ode_log_likelihood(
        model.noise, model.sde, z, key, eps=model.eps, divergence=divergence, solver=solver,
        tolerance=tolerance, condition=condition,
    )  # fmt: skip
    return replace(found, log_prob=found.log_prob + log_det + change)


@Programs
def _elbo(rows: Reals, model: ScoreModel, draws: int) -> ELBO:
    z, log_det, key, condition = rows
    noise = model.condition_on(condition).noise
    times = evenly(model.sde, model.eps)
    found = elbo(noise, model.sde, z, key, eps=model.eps, times=times, draws=draws)
    return replace(
        found, log_prob=found.log_prob + log_det, reconstruction=found.reconstruction - log_det
    )


@OfModels
def _profile(
    model: ScoreModel,
    x: Any,
    keys: Key[Array, " b"],
    condition: Condition,
    levels: Array,
    *,
    bins: int,
    draws: int,
    dequantized: bool,
) -> tuple[dict[str, Array], Bool[Array, " b"]]:
    """The columns of ``Profile``, and whether those of each example are finite."""
    pixels = model.pixels
    points = x if pixels is None else jnp.asarray(model.points, float)[x]

    def anew(keys: Keys) -> Data:
        return pixels.encode(x, Uniform()(keys, x)[0]) if pixels and dequantized else points

    found = profile_columns(
        model.condition_on(condition).noise, model.sde, points, keys, eps=model.eps, bins=bins,
        draws=draws, levels=levels, dequantized=anew,
    )  # fmt: skip
    return found, jnp.stack([all_finite(column) for column in found.values()]).all(axis=0)


@Programs
def _encode(rows: tuple[Data, Condition], model: ScoreModel) -> Data:
    x, condition = rows
    z, _ = AtTime(model.sde, model.eps).forward(x)
    noise, solver = model.condition_on(condition).noise, model._solver_of_states
    return ode_encode(noise, model.sde, z, eps=model.eps, solver=solver)


@Programs
def _decode(rows: tuple[Data, Condition], model: ScoreModel) -> Data:
    z, condition = rows
    noise, solver = model.condition_on(condition).noise, model._solver_of_states
    x = model._outside(ode_sample(noise, model.sde, z, eps=model.eps, solver=solver), model.eps)
    return x if model.bijector is None else inverse_of(model.bijector, x)


def _chosen(devices: Sequence[jax.Device] | None) -> Sequence[jax.Device]:
    """The devices that are given, or one. Raises UserError for what are not devices."""
    if devices is None:
        return jax.devices()[:1]
    such = "jax.devices()"
    check_kind("devices", devices, list | tuple, such)
    for each in devices or [None]:
        check_kind("each of devices", each, jax.Device, such)
    return devices


def draw_samples(
    model: ScoreModel, keys: Key[Array, " b"], condition: Condition = None, *,
    sampler: Sampler | None,
) -> tuple[Array, Array]:  # fmt: skip
    """Samples as the network sees them, a key for each, and whether each was of finite numbers.

    They are integers of a model of images.

    Args:
        model: down to whose smallest time the sampler goes.
        keys: one for each sample.
        condition: what the noise prediction takes, a row for each sample or one for all.
        sampler: with its options bound; None: the ODE, by the model's solver.

    Raises UserError for a sampler that gives samples of another shape.
    """
    if sampler is None:
        transport = partial(ode_sample, solver=model._solver_of_states)
        sampler = partial(ode_draw, transport=transport)
    if model.coder:
        model = model.under(model.coder.drawn(fold_in(keys, CODES)))
    noise, shape = model.condition_on(condition).noise, (len(keys), *model.shape)
    x = sampler(noise, model.sde, keys, shape, eps=model.eps)
    if not isinstance(x, jax.Array | np.ndarray) or x.shape != shape:
        form = f"shape {x.shape}" if hasattr(x, "shape") else type(x).__name__
        raise UserError(f"sampler gives samples of {form}, where {shape} is wanted")
    data = model._outside(x, end_of(sampler, model.eps))
    return (data if model.pixels is None else model.pixels.decode(data)), all_finite(data)


_compiled_draw = OfModels(draw_samples)
Columns = dict[str, Array | np.ndarray]


def _draw_data(
    model: ScoreModel, keys: Key[Array, " b"], condition: Condition, *, sampler: Sampler | None
) -> tuple[Columns, Bool[Array, " b"]]:
    """Samples as data, and whether each was of finite numbers."""
    x, finite = within_memory(_compiled_draw)(model, keys, condition, sampler=sampler)
    if model.bijector is not None:
        x = _as_data(x, model.bijector)
        finite &= _fit_float32(x)
    return {"x": x}, finite


def _draw_with_log_prob(
    model: ScoreModel, keys: Key[Array, " b"], condition: Condition, *,
    divergence: DivergenceEstimator | None, solver: Any,
) -> tuple[Columns, Bool[Array, " b"]]:  # fmt: skip
    """The columns of ``Samples``, and whether each sample was of finite numbers."""
    z, found = ode_decode(
        model.noise, model.sde, model.sde.prior_sample(keys, (len(keys), *model.shape)),
        fold_in(keys, PROBES), eps=model.eps, divergence=divergence, solver=solver,
        condition=condition,
    )  # fmt: skip
    at_eps = AtTime(model.sde, model.eps)
    x = _inverse((z,), at_eps)
    columns, finite = {
        "x": x,
        "log_prob": found.log_prob + _forward((x,), at_eps)[1],
        "solver_error": found.solver_error,
        "probe_stderr": found.probe_stderr,
        "latent": found.latent,
        "evaluations": found.evaluations,
    }, all_finite(x)  # fmt: skip
    if model.pixels is not None:
        columns["integers"] = model.pixels.decode(x)
    if model.bijector is not None:
        columns["x"] = _as_data(x, model.bijector)
        with jax.enable_x64(True):
            again, log_det = map(np.asarray, _forward((columns["x"],), model.bijector))
        columns["log_prob"] = np.asarray(columns["log_prob"]) + log_det
        other, _ = _forward((again.astype(x.dtype),), at_eps)
        columns["solver_error"] += _moved((z, other, condition), model)
        finite = _fit_float32(columns["x"])
    return columns, finite & jnp.isfinite(columns["log_prob"])


def _as_data(inside: Data, bijector: Bijector) -> np.ndarray:
    """Samples as data, in float64: beside an offset they have more digits than float32."""
    with jax.enable_x64(True):
        return np.asarray(_inverse((np.asarray(inside, np.float64),), bijector))


def _fit_float32(x: np.ndarray) -> Bool[Array, " b"]:
    """Whether each sample is finite in float32, as ``log_prob`` takes it."""
    with np.errstate(over="ignore"):
        return all_finite(jnp.asarray(x.astype(np.float32)))


@Programs
def _moved(rows: tuple[Data, Data, Condition], model: ScoreModel) -> PerExample:
    """The change of log p at t = ``eps`` from one point to another: rounding at a bound moves it.

    By the mean of the scores of both, which is exact for a Gaussian.
    """
    z, other, condition = rows
    noise, t = model.condition_on(condition).noise, jnp.full(len(z), model.eps, z.dtype)
    both = (predict(noise, z, t) + predict(noise, other, t)) / 2 / expand(model.sde.sigma(t), z)
    return jnp.abs(sum_data(both * (other - z)))
