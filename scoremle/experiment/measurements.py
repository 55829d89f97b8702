"""The measurements of a checkpoint: estimators on its model, with the facts of a protocol."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from scoremle.core.dequantize import Dequantizer, Flow, TruncatedNormal, Uniform
from scoremle.core.divergence import Exact
from scoremle.core.times import BinnedLogSNR, log_snr_edges
from scoremle.experiment.build import Experiment
from scoremle.experiment.control_variate import ControlRun
from scoremle.experiment.evaluation import LEARNED
from scoremle.experiment.labels import ALL
from scoremle.experiment.networks import ModelSpec, Params
from scoremle.likelihood.images import ByBound, ByOde, Estimator
from scoremle.likelihood.pilot import Choice
from scoremle.likelihood.reconstruction import Gaussian, Informed
from scoremle.model import ScoreModel

__all__ = ["Facts", "Measurement", "measurements"]

Facts = dict[str, Any]

# Draws of the importance-weighted bound of the suite.
SAMPLES = 10
# An exact trace takes as many derivatives as dimensions.
MOST_DIMS = 64


@dataclass(frozen=True)
class Measurement:
    """One thing to measure: an estimator on a model, under the name that results have for it.

    ``facts`` stand beside the number, with those of the estimator. A ``profile`` among the values
    is over the bins of ``log_snr_edges``. ``choice`` is the pilot's, of the solver.
    """

    kind: str
    model: ScoreModel
    estimator: Estimator
    dequantizer: Dequantizer = Uniform()
    facts: Facts = field(default_factory=dict)
    log_snr_edges: Float[np.ndarray, " n"] | None = None
    choice: Choice | None = None

    @property
    def of_flow(self) -> bool:
        """Whether the flow dequantizer takes part."""
        return isinstance(self.dequantizer, Flow)


@dataclass(frozen=True)
class _Checkpoint:
    """The parts of a checkpoint that measurements share; ``folder`` keeps fitted controls."""

    experiment: Experiment
    model: ScoreModel
    params: Params
    flow: Params
    choice: Choice | None
    decoder: Informed | None
    folder: Path

    @property
    def spec(self) -> ModelSpec:
        return self.experiment.model

    def dequantizer(self, name: str) -> Dequantizer:
        """The dequantizer of this name; without one, what a decoder does not ask."""
        if name == "truncated_normal":
            return TruncatedNormal(self.spec.sde, self.spec.truncation_start, self.spec.pixels)
        if name == "variational":
            return self.experiment.flow.dequantizer(self.flow)
        return Uniform()

    def measurement(
        self, kind: str, estimator: Estimator, dequantization: str, **rest: Any
    ) -> Measurement:
        """A measurement by images with such noise; uniform noise is not named in its kind."""
        start = self.dequantizer(dequantization).start
        facts = {
            **estimator.describe(),
            "dequantizer": dequantization,
            **({} if start is None else {"start": float(start)}),
            **rest.pop("facts", {}),
        }
        return Measurement(
            kind, self.model, estimator, self.dequantizer(dequantization), facts, **rest
        )

    def exact(self, dequantization: str, by_ode: ByOde, kind: str = "exact") -> Measurement:
        """By the ODE; by the informed decoder it is a bound."""
        if dequantization == "informed":
            by_ode, name = replace(by_ode, decoder=self.decoder), "ode_bound"
        else:
            name = _named(kind, dequantization)
        name += f"_k{by_ode.samples}" * (by_ode.samples > 1)
        return self.measurement(name, by_ode, dequantization, choice=self.choice)

    def bound(self, dequantization: str, by_bound: ByBound) -> Measurement:
        """By the variational bound; learned times are fitted on training images."""
        experiment, spec, evaluation = self.experiment, self.spec, self.experiment.evaluation
        kind, start = _named("bound", dequantization), spec.eps
        facts: Facts = {
            "importance_samples": 1,
            "offset": isinstance(by_bound.reconstruction, Gaussian),
            "times": evaluation.bound_times,
            "stratified": by_bound.times is None or by_bound.times.stratified,
            "control": None,
        }
        if dequantization in ("none", "informed"):
            decoder = self.decoder or evaluation.discrete
            start = spec.eps if self.decoder else spec.truncation_start
            by_bound = replace(by_bound, reconstruction=decoder, times=None, start=start)
            facts |= {"offset": None, "times": "log_snr", "stratified": True}
            facts |= {} if self.decoder else {"start": float(start)}
        elif evaluation.bound_times == LEARNED:
            run = ControlRun(spec, by_bound.matching, experiment.data, experiment.seed)
            control = run.kept(self.params, self.folder)
            times = BinnedLogSNR(spec.sde, spec.eps, control.shares, facts["stratified"])
            by_bound = replace(by_bound, times=times, control=control)
            facts |= run.describe()
        edges = np.asarray(log_snr_edges(spec.sde, start), np.float64)
        kind += "_sliced" * (by_bound.matching == "sliced" and evaluation.suite)
        return self.measurement(
            kind, by_bound, dequantization, facts=facts, log_snr_edges=edges
        )


def measurements(
    experiment: Experiment,
    params: Params,
    *,
    flow: Params = None,
    choice: Choice | None = None,
    decoder: Informed | None = None,
    folder: Path,
) -> list[Measurement]:
    """The measurements that an evaluation makes of a checkpoint.

    Args:
        experiment: what the evaluation is.
        params: of the score model.
        flow: of the flow dequantizer, where there is one.
        choice: of the solver's steps, by a pilot.
        decoder: of integers by the network, where the evaluation asks for it.
        folder: where fitted control variates are kept.
    """
    model, label = experiment.model.model(params), experiment.evaluation.label
    of = _Checkpoint(experiment, model, params, flow, choice, decoder, folder)
    found = _suite(of) if experiment.evaluation.suite else _asked_for(of)
    return [_under(label, each, experiment.model, params) if label else each for each in found]


def _asked_for(of: _Checkpoint) -> Iterator[Measurement]:
    evaluation = of.experiment.evaluation
    by_ode = _chosen(evaluation.by_ode, of.choice)
    if evaluation.bpd and (chain := evaluation.chain):
        edges = log_snr_edges(of.spec.sde, chain.first(of.spec.sde))
        yield Measurement(
            "bound_steps", of.model, chain, facts=chain.describe(),
            log_snr_edges=np.asarray(edges, np.float64),
        )  # fmt: skip
    elif evaluation.bpd and evaluation.bound:
        yield of.bound(evaluation.dequantization, evaluation.by_bound)
    elif evaluation.bpd:
        yield of.exact(evaluation.dequantization, by_ode)
    if evaluation.loss:
        objective = of.experiment.objective
        facts = {"estimator": objective.by_loss.words, **objective.describe()}
        yield Measurement("loss", of.model, objective.by_loss, facts=facts)


def _suite(of: _Checkpoint) -> Iterator[Measurement]:
    """Every estimator; by the flow dequantizer as well where one was trained."""
    evaluation = of.experiment.evaluation
    by_ode = _chosen(evaluation.by_ode, of.choice)
    flow = [] if of.flow is None else ["variational"]
    for name in ("uniform", "truncated_normal", *flow):
        yield of.exact(name, by_ode)
    for name in ("uniform", *flow):
        yield of.exact(name, replace(by_ode, samples=SAMPLES))
    if of.spec.dims <= MOST_DIMS:
        yield of.exact("uniform", replace(by_ode, divergence=Exact()), "exact_trace")
    for name in ("uniform", *flow, "none"):
        yield of.bound(name, replace(evaluation.by_bound, matching="denoising"))
    yield of.bound("uniform", replace(evaluation.by_bound, matching="sliced"))


def _chosen(by_ode: ByOde, choice: Choice | None) -> ByOde:
    return replace(by_ode, solver=choice.solver) if choice else by_ode


def _named(name: str, dequantization: str) -> str:
    return name if dequantization == "uniform" else f"{name}_{dequantization}"


def _under(label: str, found: Measurement, spec: ModelSpec, params: Params) -> Measurement:
    """A measurement under a label. The mean over all has no profile, and is not corrected."""
    model, estimator = spec.measured(params, found.estimator)
    words = estimator.words + f", label {label}" * (label != ALL)
    facts = {**found.facts, "estimator": words, "label": label}
    found = replace(
        found, kind=f"{found.kind}_label_{label}", model=model, estimator=estimator, facts=facts
    )
    return replace(found, log_snr_edges=None, choice=None) if label == ALL else found
