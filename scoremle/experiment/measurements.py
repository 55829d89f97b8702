"""Measurements of a checkpoint by the settings ``eval`` of its config, with facts for results."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from scoremle.core import dequantize
from scoremle.core.divergence import Exact
from scoremle.core.pytree import describe
from scoremle.core.times import BinnedLogSNR, log_snr_edges
from scoremle.errors import UserError
from scoremle.evaluation import tables
from scoremle.experiment.build import BOUND_TIMES, LEARNED, Experiment
from scoremle.experiment.control_variate import ControlRun
from scoremle.experiment.labels import ALL, measured_under, under
from scoremle.experiment.measurement import Measurement, kind_under, with_noise
from scoremle.experiment.networks import Params
from scoremle.experiment.own_measurement import worth_of
from scoremle.likelihood.decoders import GaussianDecoder, InformedDecoder
from scoremle.likelihood.image_model import pixels_of
from scoremle.likelihood.images import ByElbo, ByOde, Estimator
from scoremle.likelihood.pilot import Choice
from scoremle.likelihood.score_images import choose_for_images
from scoremle.model import ScoreModel
from scoremle.terminal import say

# Draws of the importance-weighted bound of the suite.
SAMPLES = 10
# An exact trace takes as many derivatives as dimensions.
MOST_DIMS = 64
# The pilot's seed differs from that of the evaluation in this.
PILOT = 2**32 - 3


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
        if evaluation.enable_bpd and evaluation.bound_steps:
            chain = self.model.chain(evaluation.bound_steps)  # of the schedule that was learned
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
                "eval.dequantization=informed is for models whose noise at the smallest time is"
                " wider than half a grey level, and here it is narrower: use uniform"
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
            start = float(dequantize.truncation_start(sde, self.model.eps, pixels))
            return dequantize.TruncatedNormal(sde, start, pixels)
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
        fitted = self.decoder if dequantization == "informed" else None
        if fitted or dequantization == "none":
            own = (
                ByElbo(decoder=fitted, start=eps) if fitted else ByElbo.without_noise(self.model)
            )
            start, name = float(own.first(self.model)), evaluation.bound_times
            name = "log_snr" if name == LEARNED else name  # nothing is fitted here
            by_elbo = replace(by_elbo, decoder=own.decoder, start=start, times=None)
            if name != "log_snr" or not stratified:  # by default also of a log-SNR of each pixel
                by_elbo = replace(by_elbo, times=BOUND_TIMES[name](sde, start, stratified))
            facts |= {"offset": None, "times": name}
        elif evaluation.bound_times == LEARNED:
            if sde.schedule.per_example:
                raise UserError(
                    "the bound of a model with codes is of integers without noise: set"
                    " --config.eval.dequantization=none, without eval.suite"
                )
            of_data = experiment.data, experiment.seed
            run = ControlRun(self._of_pilot, by_elbo.matching, *of_data)
            control = run.kept(self.folder, experiment.identity())
            binned = BinnedLogSNR(sde, eps, control.shares, stratified)
            by_elbo = replace(by_elbo, times=binned, control=control)
            facts |= run.describe()
        kind = with_noise("bound", dequantization)
        kind += "_sliced" * (by_elbo.matching == "sliced" and evaluation.suite)
        return self._measurement(kind, by_elbo, dequantization, first=start, **facts)
