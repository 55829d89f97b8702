"""What can be measured of a checkpoint, each with the facts that belong to the number."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Float

from scoremle.core.dequantize import Uniform
from scoremle.core.pytree import describe
from scoremle.core.times import log_snr_edges
from scoremle.data import ImageSet
from scoremle.evaluation import metrics
from scoremle.experiment.build import Experiment
from scoremle.experiment.control_variate import ControlRun
from scoremle.experiment.evaluation import DEQUANTIZATIONS, Dequantization, Estimators
from scoremle.experiment.labels import ALL
from scoremle.experiment.networks import ModelSpec, Params
from scoremle.experiment.training import Objective
from scoremle.likelihood.images import (
    ByBound,
    Estimator,
    ImageModel,
    OdeDifference,
    Values,
)
from scoremle.likelihood.informed import ByInformedOde
from scoremle.likelihood.levels import Levels
from scoremle.likelihood.nodes import Choice
from scoremle.likelihood.reconstruction import Reconstruction
from scoremle.likelihood.scales import LearnedScale
from scoremle.likelihood.steps import BySteps
from scoremle.types import IntImages, Keys

__all__ = ["Facts", "Task", "Weights", "bound_task", "exact_task", "tasks"]

Facts = dict[str, Any]


class Weights(NamedTuple):
    """Parameters to evaluate: of the score model, and of the flow dequantizer if one is used."""

    score: Params
    flow: Params = None


@dataclass(frozen=True)
class Task:
    """One thing to evaluate: its name, its column of interest, its metric, and what it is.

    ``prepare`` makes what the metric takes from a network's parameters, once; it may keep files
    for an interrupted run in the folder that it is given. ``notes`` are said with the number, and
    do not make it another one. A metric ``on_host`` is not to be compiled as a whole. A
    ``profile`` among the values is over the bins of ``log_snr_edges``. With ``flow``, it takes the
    parameters of the flow dequantizer. With ``levels``, the mean is corrected by what the metric
    ``difference`` of two numbers of nodes says, the last with its ``halving``. ``in_float32``
    is the same metric in float32, where this one is in less. ``hint`` helps where a value is not
    finite.
    """

    name: str
    column: str
    metric: metrics.Metric
    facts: Facts
    prepare: Callable[[Weights, Path], Any] = lambda weights, folder: weights
    notes: Facts = field(default_factory=dict)
    on_host: bool = False
    log_snr_edges: Float[np.ndarray, " n"] | None = None
    flow: bool = False
    levels: Levels | None = None
    difference: Callable[[int, int, bool], metrics.Metric] | None = None
    in_float32: metrics.Metric | None = None
    hint: str = ""


def tasks(
    experiment: Experiment, how: Estimators, choice: Choice | None = None
) -> Iterator[Task]:
    """What an evaluation without the suite measures; ``choice``: of the solver's nodes."""
    label = experiment.evaluation.label
    for task in _tasks(experiment, how, choice):
        yield _under(label, task) if label else task


def _under(label: str, task: Task) -> Task:
    """A task of a label. The mean over all has no profile, and is not corrected for the solver."""
    words = "mean over all labels (log of the mean probability)"
    estimator = f"{task.facts['estimator']}, {words if label == ALL else f'label {label}'}"
    facts = {**task.facts, "estimator": estimator, "label": label}
    found = replace(task, name=f"{task.name}_label_{label}", facts=facts)
    if label != ALL:
        return found
    return replace(found, log_snr_edges=None, levels=None, difference=None)


def _tasks(experiment: Experiment, how: Estimators, choice: Choice | None) -> Iterator[Task]:
    model, evaluation = experiment.model, experiment.evaluation
    dequantization = DEQUANTIZATIONS[evaluation.dequantization](model, experiment.flow)
    if evaluation.bpd and how.chain:
        yield _chain_task(model, how.chain)
    elif evaluation.bpd and evaluation.bound:
        yield bound_task(model, how, dequantization, experiment.data, experiment.seed)
    elif evaluation.bpd:
        yield exact_task(model, how, dequantization, evaluation.importance_samples, choice)
    if evaluation.loss:
        yield _loss_task(experiment.objective)


def exact_task(
    model: ModelSpec,
    how: Estimators,
    dequantization: Dequantization,
    samples: int = 1,
    choice: Choice | None = None,
) -> Task:
    """Bits/dim by the probability-flow ODE; with several samples, importance weighted.

    By the informed decoder it is a bound.
    """
    by_ode = how.by_ode(dequantization.name, samples)
    decoded = isinstance(by_ode, ByInformedOde)
    name = "ode_bound" if decoded else _named("exact", dequantization)
    one = "exact for p_eps (probability-flow ODE)"
    many = f"importance-weighted bound, {samples} draws (probability-flow ODE)"
    facts = {
        **_dequantization_facts(dequantization, samples),
        "estimator": by_ode.words if decoded else one if samples == 1 else many,
        **(_decoder_facts(how) if decoded else {}),
        "model": "ODE",
        "solver": describe(how.solver),
        "divergence": describe(how.divergence),
        "probes": getattr(how.divergence, "probes", None),
        # A finished part of an earlier version has no such columns.
        "latents": ["square", "neighbours"] if samples == 1 else [],
    }

    def difference(coarse: int, fine: int, halved: bool) -> metrics.Metric:
        by_nodes = OdeDifference(by_ode, coarse, fine, halved)
        return _metric(by_nodes, model, dequantization)

    return Task(
        name + (f"_k{samples}" if samples > 1 else ""),
        "bpd",
        _metric(by_ode, model, dequantization),
        facts,
        notes={"solver_choice": asdict(choice)} if choice else {},
        on_host=by_ode.on_host,
        flow=dequantization.name == "variational",
        levels=choice.levels if choice else None,
        difference=difference,
        hint="; try --config.eval.solver=doubling",
    )


def bound_task(
    model: ModelSpec, how: Estimators, dequantization: Dequantization, data: ImageSet, seed: int
) -> Task:
    """Bits/dim by the variational bound; with "none" and "informed" dequantization, of integers.

    Learned times are fitted on the data, by the seed.
    """
    if dequantization.name in ("none", "informed"):
        return _decoded_bound_task(model, how, dequantization)
    learned = how.times == "learned"
    control = ControlRun(model, how.matching, data, seed) if learned else None

    def metric(prepared: Any, x: IntImages, keys: Keys) -> Values:
        weights, fitted = prepared
        by_bound = how.by_bound(model, fitted)
        return _metric(by_bound, model, dequantization)(weights, x, keys)

    def prepare(weights: Weights, folder: Path) -> Any:
        return weights, control and control.kept(weights.score, folder.parent)

    facts = {
        **_bound_facts(how, dequantization),
        "estimator": "variational bound (SDE)",
        "offset": how.offset,
        "times": how.times,
        "stratified": how.stratified,
        **(control.describe() if control else {"control": None}),
    }
    return Task(
        _named("bound", dequantization),
        "bpd",
        metric,
        facts,
        prepare,
        log_snr_edges=_edges(model, model.eps),
        flow=dequantization.name == "variational",
    )


def _decoded_bound_task(
    model: ModelSpec, how: Estimators, dequantization: Dequantization
) -> Task:
    informed = dequantization.name == "informed"
    words = how.decoder.words if informed else "discrete decoder"
    facts = {
        **_bound_facts(how, dequantization),
        "estimator": f"variational bound (SDE, {words})",
        **(_decoder_facts(how) if informed else {}),
        "offset": None,
    }
    start = model.eps if informed else model.truncation_start
    decoder: Reconstruction = how.decoder if informed else how.discrete
    by_bound = ByBound(how.draws, how.matching, reconstruction=decoder, start=start)
    metric = _metric(by_bound, model, dequantization)
    return Task(
        _named("bound", dequantization), "bpd", metric, facts, log_snr_edges=_edges(model, start)
    )


def _chain_task(model: ModelSpec, chain: BySteps) -> Task:
    """The bound of a chain of steps, on integers."""
    facts = {"estimator": chain.words, "model": "chain", "times": describe(chain.times)}
    none = Dequantization("none", lambda params: Uniform())
    edges = np.asarray(log_snr_edges(model.sde, chain.first(model.sde)), np.float64)
    return Task("bound_steps", "bpd", _metric(chain, model, none), facts, log_snr_edges=edges)


def _decoder_facts(how: Estimators) -> Facts:
    scale = how.decoder.scale
    learned = isinstance(scale, LearnedScale)
    return {"decoder_scale": "learned" if learned else float(cast(float, scale))}


def _loss_task(objective: Objective) -> Task:
    """The training loss, without dropout; each image draws its own t."""

    def metric(weights: Weights, x: IntImages, keys: Keys) -> Values:
        return {"loss": objective.losses(weights.score, x, keys, train=False)}

    facts = {"estimator": "training loss, published scaling", **objective.describe()}
    return Task("loss", "loss", metric, facts)


def _metric(
    estimator: Estimator, model: ModelSpec, dequantization: Dequantization
) -> metrics.Metric:
    def metric(weights: Weights, x: IntImages, keys: Keys) -> Values:
        images, by = model.measured(weights.score, estimator)
        return by(cast(ImageModel, images), dequantization.dequantizer(weights.flow), x, keys)

    return metric


def _named(name: str, dequantization: Dequantization) -> str:
    return name if dequantization.name == "uniform" else f"{name}_{dequantization.name}"


def _edges(model: ModelSpec, start: float) -> Float[np.ndarray, " n"]:
    """The bins of log-SNR over which a bound is split."""
    return np.asarray(log_snr_edges(model.sde, start), np.float64)


def _dequantization_facts(dequantization: Dequantization, samples: int) -> Facts:
    start = dequantization.start
    return {
        "dequantizer": dequantization.name,
        "importance_samples": samples,
        **({} if start is None else {"start": start}),
    }


def _bound_facts(how: Estimators, dequantization: Dequantization) -> Facts:
    return {
        **_dequantization_facts(dequantization, 1),
        "model": "SDE",
        "matching": how.matching,
        "draws": how.draws,
    }
