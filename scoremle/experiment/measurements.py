"""Measurements of images: an estimator on a model, prepared for some images or for a checkpoint.

By the words of the command line, for images of one's own, an estimator is one of

    ode      the probability-flow ODE
    bound    the variational bound in continuous time
    steps    the bound of a chain of steps: of the model's own, the number that its authors report

By a config, for images of a data set, it has the settings of ``eval``, and facts for the results.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

import scoremle
from scoremle.core import dequantize
from scoremle.core.divergence import Exact
from scoremle.core.pytree import describe
from scoremle.core.times import BinnedLogSNR, log_snr_edges
from scoremle.errors import UserError, as_flag, no_chain
from scoremle.evaluation import tables
from scoremle.experiment.build import BOUND_TIMES, LEARNED, Experiment
from scoremle.experiment.control_variate import ControlRun
from scoremle.experiment.encoders import file_hash
from scoremle.experiment.labels import ALL, check_label, measured_under, under
from scoremle.experiment.networks import Params
from scoremle.experiment.own_code import is_own
from scoremle.likelihood.check import fewest
from scoremle.likelihood.decoders import DiscreteDecoder, GaussianDecoder, InformedDecoder
from scoremle.likelihood.image_model import pixels_of
from scoremle.likelihood.images import ByElbo, ByOde, Estimator, in_words
from scoremle.likelihood.informed import decoder_worth, scale_of_others
from scoremle.likelihood.pilot import PILOT_IMAGES, Choice
from scoremle.likelihood.scales import LearnedScale, ScaleOfOthers
from scoremle.likelihood.score_images import choose_for_images
from scoremle.likelihood.steps import has_last_step
from scoremle.model import ScoreModel
from scoremle.resumable import content_hash, fingerprint
from scoremle.terminal import say
from scoremle.training.checksums import model_hash

if TYPE_CHECKING:
    from scoremle.weights.flows import FlowModel

__all__ = ["Measurement", "prepared"]

# Bits/dim that the solver may add to the standard error of a mean, as in an evaluation.
TOLERANCE = 5e-4
# Draws of the importance-weighted bound of the suite.
SAMPLES = 10
# An exact trace takes as many derivatives as dimensions.
MOST_DIMS = 64
# The pilot's seed differs from that of the evaluation in this.
PILOT = 2**32 - 3

Images = Integer[np.ndarray, "n h w c"]


@dataclass(frozen=True)
class Measurement:
    """An estimator on a model, as images are measured by it.

    ``choice`` is the pilot's, of the solver; by its levels the mean can be corrected. ``label`` is
    that of the images, where one was given. ``doubts`` are about the model's declaration. In
    an evaluation ``kind`` is the name in results, and ``facts`` are recorded beside the number; a
    ``profile`` among the values is over the bins of ``log_snr_edges``.

    Args:
        model: a ScoreModel, under its label, or a FlowModel.
        estimator: measures bits/dim.
        dequantizer: of the images.
        notes: lines for the user.
    """

    model: Any
    estimator: Estimator
    dequantizer: dequantize.Dequantizer = dequantize.Uniform()
    choice: Choice | None = None
    label: str = ""
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    kind: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    log_snr_edges: Float[np.ndarray, " n"] | None = None

    @property
    def of_flow(self) -> bool:
        """Whether the flow dequantizer takes part."""
        return isinstance(self.dequantizer, dequantize.Flow)

    @property
    def measured_by(self) -> str:
        """Words for the estimator, with the label and the code of the images, if any."""
        coder = isinstance(self.model, ScoreModel) and self.model.coder
        # The mean over all labels says so itself.
        label = f", label {self.label}" * (self.label not in ("", ALL))
        return self.estimator.title + label + (f", {coder.title}" if coder else "")

    @property
    def title(self) -> str:
        """Words for the number: the estimator and the dequantization noise."""
        middles = isinstance(self.dequantizer, dequantize.TruncatedNormal)
        noise = "truncated normal" if middles else "uniform"
        return in_words(self.measured_by, noise * self.estimator.dequantizes)

    def identity(self, place: str, seed: int) -> dict[str, Any]:
        """The facts that a value depends on, besides its image and its pass.

        Args:
            place: of the model, as it was named.
            seed: of all randomness.
        """
        model = self.model
        if isinstance(model, ScoreModel):
            of_model = {"model": model_hash(model), "sde": model.sde.describe(), "eps": model.eps}
        else:  # whose functions show by their values alone what they are
            of_model = {"log_prob": model.log_prob(np.full((1, *model.shape), 0.5)).tolist()}
        return {
            **of_model,
            "place": place,
            "code": file_hash(place) if is_own(place) else "",
            "pixels": describe(model.pixels),
            "estimator": describe(self.estimator),
            "dequantizer": describe(self.dequantizer),
            "seed": seed,
            "version": scoremle.__version__,
        }

    def parts(self, above: Path, place: str, images: Images, seed: int) -> Path:
        """The folder of finished parts in ``above``: a name for all that a value depends on.

        Args:
            above: the folder of all parts.
            place: of the model.
            images: [n h w c] integers.
            seed: of all randomness.
        """
        of_images = {"images": content_hash(images), "shape": list(images.shape)}
        return above / fingerprint(self.identity(place, seed) | of_images)


def prepared(
    model: "ScoreModel | FlowModel",
    images: Images,
    estimator: str = "ode",
    label: str = "",
    steps: int | None = None,
    passes: int = 1,
    correct: bool = False,
) -> Measurement:
    """Prepares the measurement of these images in so many passes, by the name of the estimator.

    A few images decide whether the model agrees with its declaration, how many steps the ODE
    needs, for an image and for the mean, and the scale of a decoder: of each image by others,
    unless the model has one. Under all labels there is no one condition to check, and these go by
    the first. A flow needs nothing: its log-determinant is exact. ``steps``: how many a chain has;
    None: all of the model's own. To ``correct`` the mean, the pilot chooses levels, too. Raises
    UserError for what does not fit.

    Args:
        model: one of images.
        images: [n h w c] integers.
        estimator: "ode", "bound" or "steps".
        label: a number, "all", or "" for none.
        steps: of a chain.
        passes: over each image.
        correct: whether the mean over images is to be corrected.
    """
    if not isinstance(model, ScoreModel):
        return _of_flow(model, estimator, label, correct)
    check_label(model, label)
    chain = None
    if estimator == "steps":
        chain = model.origin.chain if steps is None else model.chain(steps)
        if chain is None:
            raise no_chain(as_flag)
    one = under(model, label)
    notes, choice = list[str](), None
    doubts = () if label == ALL else _doubts(one, images)
    if estimator == "ode" and model.origin.pilot:
        # A mean of probabilities, over all labels, is not corrected.
        mean_over = len(images) if correct and label != ALL else 1
        choice = choose_for_images(
            one, images, mean_over=mean_over, passes=passes, tolerance=TOLERANCE
        )
        model = replace(model, solver=choice.solver)
        notes.append(str(choice))
    if one.decoder and not chain:
        model = replace(model, decoder_scale=_scale(one, images))
        notes.append(worth_of(under(model, label), images))
    found = chain or model.default_estimator
    if estimator == "bound":
        middles = model.origin.middles
        flat = DiscreteDecoder(pixels_of(model).points) if middles else GaussianDecoder()
        found = ByElbo(decoder=model.decoder or flat)
    return Measurement(
        *measured_under(model, found, label), model.default_dequantizer, choice, label,
        tuple(notes), doubts,
    )  # fmt: skip


def _of_flow(model: "FlowModel", estimator: str, label: str, correct: bool) -> Measurement:
    from scoremle.weights.flows import ByLogProb

    flag = f"--estimator={estimator}" * (estimator != "ode") or "--label" * bool(label)
    if flag := flag or "--correct" * correct:
        raise UserError(f"{flag} is for models with noise, and this is a flow: leave it out")
    return Measurement(model, ByLogProb())


def _scale(model: ScoreModel, images: Images) -> Any:
    """The scale of its decoder: its own, or one that no image has from itself."""
    decoder = cast(InformedDecoder, model.decoder)
    if model.decoder_scale is not None or isinstance(decoder.scale, LearnedScale):
        return model.decoder_scale
    return scale_of_others(model, images, jax.random.key(0))


def worth_of(model: ScoreModel, images: Images) -> str:
    """Words on the cost of a model's decoder on a few images, and the origin of its scale."""
    few, key = images[:PILOT_IMAGES], jax.random.key(0)
    decoder = cast(InformedDecoder, model.decoder)
    informed, flat = decoder_worth(model, decoder, few, key)
    return (
        f"its last noise hides the levels: from there to the integers the informed decoder takes"
        f" {informed:.2f} bits/dim, and a flat one would take {flat:.2f}{_origin(model, decoder)}"
    )


def _origin(model: ScoreModel, decoder: InformedDecoder) -> str:
    """Words on the origin of a decoder's scale; "" for the common one."""
    if isinstance(decoder.scale, LearnedScale):
        return "; its scale is the network's own, for each pixel"
    words = "; no image has a scale that was fitted to it"
    words *= isinstance(decoder.scale, ScaleOfOthers)
    if hasattr(model.noise, "both") and not has_last_step(model.sde, model.eps):
        words += (
            "; the network predicts variances, but of no step from the smallest time to the"
            " integers, so the scale is not its own"
        )
    return words


def _doubts(model: ScoreModel, images: Images) -> tuple[str, ...]:
    """Likely mistakes in the model's declaration, if there are enough images to test it.

    A model that was trained here agrees with its config. One with codes has no declaration
    without them.
    """
    if model.origin.step is not None or model.coder or len(images) < fewest(model.dims):
        return ()
    of_kind = "check, if these images are of the kind that it was trained on"
    return tuple(f"{of_kind}: {line}" for line in model.check(images))


@dataclass(frozen=True)
class Measurements:
    """A checkpoint that is measured: its model, and the parameters of a flow if there is one.

    ``images`` is how many are measured; by ``others``, a few of the other split, the solver's
    steps are chosen and a decoder's scale is fitted. Control variates are kept in ``folder``.
    """

    experiment: Experiment
    model: ScoreModel
    folder: Path
    images: int
    others: Integer[np.ndarray, "n h w c"]
    flow: Params = None

    def measurements(self) -> list[Measurement]:
        """The measurements of the evaluation, under its label if it has one."""
        return [*(self._suite() if self.experiment.evaluation.suite else self._of_flags())]

    def _of_flags(self) -> Iterator[Measurement]:
        evaluation, objective = self.experiment.evaluation, self.experiment.objective
        if evaluation.enable_bpd and (chain := self.experiment.chain):
            yield self._measurement("bound_steps", chain, first=chain.first(self.model.sde))
        elif evaluation.enable_bpd and evaluation.bound:
            yield self._bound(evaluation.dequantization, self.experiment.by_elbo)
        elif evaluation.enable_bpd:
            yield self._exact(evaluation.dequantization, self._by_ode)
        if evaluation.enable_loss:
            yield self._measurement("loss", objective.by_loss, **objective.describe())

    def _suite(self) -> Iterator[Measurement]:
        """Every estimator; by the flow dequantizer as well where one was trained."""
        by_ode, by_elbo = self._by_ode, self.experiment.by_elbo
        flow = [] if self.flow is None else ["variational"]
        for name in ("uniform", "truncated_normal", *flow):
            yield self._exact(name, by_ode)
        for name in ("uniform", *flow):
            yield self._exact(name, replace(by_ode, samples=SAMPLES))
        if self.model.dims <= MOST_DIMS:
            yield self._exact("uniform", replace(by_ode, divergence=Exact()), "exact_trace")
        for name in ("uniform", *flow, "none"):
            yield self._bound(name, replace(by_elbo, matching="denoising"))
        yield self._bound("uniform", replace(by_elbo, matching="sliced"))

    @property
    def _of_pilot(self) -> ScoreModel:
        return under(self.model, self.experiment.evaluation.label)

    @property
    def _truncation_start(self) -> float:
        """The time at which truncated normal noise, and the discrete decoder, begin."""
        pixels = pixels_of(self.model)
        return float(dequantize.truncation_start(self.model.sde, self.model.eps, pixels))

    @cached_property
    def choice(self) -> Choice | None:
        """The pilot's choice of the solver's steps; None where the evaluation states them."""
        experiment, flags = self.experiment, self.experiment.evaluation
        if not (experiment.exact and experiment.pilot):
            return None
        say("choosing the solver's steps on a few images")
        choice = choose_for_images(
            self._of_pilot, self.others,
            divergence=experiment.by_ode.divergence,
            # A mean of probabilities, over all labels, is not corrected.
            mean_over=1 if flags.label == ALL else self.images,
            passes=flags.num_repeats, tolerance=flags.tolerance, seed=experiment.seed,
        )  # fmt: skip
        say(*tables.wrapped(str(choice)))
        return choice

    @cached_property
    def decoder(self) -> InformedDecoder | None:
        """The decoder of integers by the network, where the evaluation wants it."""
        if self.experiment.evaluation.dequantization != "informed":
            return None
        fitted = self._of_pilot.fit_decoder(self.others, seed=self.experiment.seed ^ PILOT)
        if fitted.decoder is None:
            raise UserError(
                "eval.dequantization=informed is for models whose smallest time hides the levels:"
                " this one distinguishes them, so use uniform"
            )
        say(*tables.wrapped(worth_of(fitted, self.others)))
        return fitted.decoder

    @property
    def _by_ode(self) -> ByOde:
        by_ode = self.experiment.by_ode
        return replace(by_ode, solver=self.choice.solver) if self.choice else by_ode

    def _dequantizer(self, name: str) -> dequantize.Dequantizer:
        """The dequantizer of this name; any for a decoder, which needs none."""
        sde, pixels = self.model.sde, pixels_of(self.model)
        if name == "truncated_normal":
            return dequantize.TruncatedNormal(sde, self._truncation_start, pixels)
        if name == "variational":
            return self.experiment.flow.dequantizer(self.flow)
        return dequantize.Uniform()

    def _measurement(
        self, kind: str, estimator: Estimator, noise: str = "", *, first: Any = None,
        choice: Choice | None = None, **facts: Any,
    ) -> Measurement:  # fmt: skip
        """A measurement of images with this dequantization ``noise``.

        A bound has a profile from its ``first`` time, but for the mean over all labels, which is
        not corrected either. More ``facts`` are recorded beside it.
        """
        dequantizer, facts = self._dequantizer(noise), estimator.describe() | facts
        if noise:
            facts["dequantizer"] = noise
            facts |= {} if dequantizer.start is None else {"start": describe(dequantizer.start)}
        sde, label, edges = self.model.sde, self.experiment.evaluation.label, None
        if first is not None and not sde.schedule.per_dimension:
            edges = np.asarray(log_snr_edges(sde, first), float)
        facts |= {"label": label} if label else {}
        if label == ALL:
            edges = choice = None
        found = Measurement(
            *measured_under(self.model, estimator, label), dequantizer, choice, label,
            kind=kind_under(kind, self.model, label), facts=facts, log_snr_edges=edges,
        )  # fmt: skip
        facts["estimator"] = found.measured_by
        return found

    def _exact(self, dequantization: str, by_ode: ByOde, kind: str = "exact") -> Measurement:
        """A likelihood by the ODE; by the informed decoder it is a bound."""
        kind = with_noise(kind, dequantization)
        if dequantization == "informed":
            by_ode = replace(by_ode, decoder=self.decoder)
        kind += f"_k{by_ode.samples}" * (by_ode.samples > 1)
        return self._measurement(kind, by_ode, dequantization, choice=self.choice)

    def _bound(self, dequantization: str, by_elbo: ByElbo) -> Measurement:
        """A variational bound; learned times are fitted on training images."""
        experiment, evaluation = self.experiment, self.experiment.evaluation
        sde, eps, stratified = self.model.sde, self.model.eps, evaluation.bound_stratified
        start, times = eps, BOUND_TIMES[evaluation.bound_times](sde, eps, stratified)
        by_elbo = replace(by_elbo, times=times)
        facts: dict[str, Any] = {
            "importance_samples": 1,
            "offset": isinstance(by_elbo.decoder, GaussianDecoder),
            "times": evaluation.bound_times,
            "stratified": stratified,
            "control": None,
        }
        if dequantization in ("none", "informed"):
            start = eps if self.decoder else self._truncation_start
            by_elbo = replace(
                by_elbo, decoder=self.decoder or self._discrete, times=None, start=start
            )
            facts |= {"offset": None, "times": "log_snr", "stratified": True}
        elif evaluation.bound_times == LEARNED:
            of_data = experiment.data, experiment.seed
            run = ControlRun(self._of_pilot, by_elbo.matching, *of_data)
            control = run.kept(self.folder, experiment.identity())
            binned = BinnedLogSNR(sde, eps, control.shares, stratified)
            by_elbo = replace(by_elbo, times=binned, control=control)
            facts |= run.describe()
        kind = with_noise("bound", dequantization)
        kind += "_sliced" * (by_elbo.matching == "sliced" and evaluation.suite)
        return self._measurement(kind, by_elbo, dequantization, first=start, **facts)

    @property
    def _discrete(self) -> DiscreteDecoder:
        """The decoder at the points of training: on its grid, or in the middle of its noise."""
        pixels, data = pixels_of(self.model), self.experiment.objective.data
        if data.uniform_dequantization or data.bin_middles:
            return DiscreteDecoder(pixels.points)
        return DiscreteDecoder(np.asarray(pixels.encode_grid(jnp.arange(pixels.levels))))


def with_noise(name: str, dequantization: str) -> str:
    """The name of an estimator of images with this noise: by a decoder none is exact."""
    if name == "exact" and dequantization == "informed":
        return "ode_bound"
    return name if dequantization == "uniform" else f"{name}_{dequantization}"


def kind_under(name: str, model: ScoreModel, label: str) -> str:
    """The name of an estimator of a model, whose codes leave a bound, under its label if any."""
    name += "_code_bound" * (model.coder is not None and name.startswith("exact"))
    return name + f"_label_{label}" * bool(label)
