"""What can be measured of a trained experiment, each with the facts that belong to the number."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scoremle import evaluate
from scoremle.arrays import Images, IntImages, PerExample, PRNGKey
from scoremle.experiment import Experiment, Weights
from scoremle.likelihood import Likelihood

__all__ = ["Task", "bound_task", "exact_metric", "exact_task", "tasks"]

Facts = dict[str, Any]

# What the loss of an evaluation depends on besides the network.
OBJECTIVE = ("likelihood_weighting", "importance_weighting", "stratified", "reduce_mean")


@dataclass(frozen=True)
class Task:
    """One thing to evaluate: its name, its column of interest, its metric, and what it is."""

    name: str
    column: str
    metric: evaluate.Metric
    facts: Facts


def tasks(experiment: Experiment, options: Any) -> Iterator[Task]:
    """The tasks that the flags ask for."""
    dequantization, samples = experiment.dequantization, experiment.importance_samples
    if options.enable_bpd and options.bound:
        yield bound_task(experiment, dequantization)
    if options.enable_bpd and not options.bound:
        yield exact_task(experiment, dequantization, samples)
    if options.enable_loss:
        yield Task("loss", "loss", loss_metric(experiment), _loss_facts(experiment))


def exact_task(experiment: Experiment, dequantization: str, samples: int = 1) -> Task:
    """Bits/dim by the probability-flow ODE; with several samples, importance weighted."""
    name = _named("exact", dequantization) + (f"_k{samples}" if samples > 1 else "")
    facts = _exact_facts(experiment, dequantization, samples)
    return Task(name, "bpd", exact_metric(experiment, dequantization, samples), facts)


def bound_task(experiment: Experiment, dequantization: str) -> Task:
    """Bits/dim by the variational bound; with "none" for dequantization, of integers."""
    metric = (
        discrete_metric(experiment)
        if dequantization == "none"
        else bound_metric(experiment, dequantization)
    )
    facts = _bound_facts(experiment, dequantization)
    return Task(_named("bound", dequantization), "bpd", metric, facts)


def _named(name: str, dequantization: str) -> str:
    return name if dequantization == "uniform" else f"{name}_{dequantization}"


def exact_metric(
    experiment: Experiment, dequantization: str = "uniform", samples: int = 1
) -> evaluate.Metric:
    """Bits/dim by the probability-flow ODE."""
    start = experiment.dequantizer(dequantization).start

    def log_likelihood(weights: Weights, y: Images, key: PRNGKey) -> Likelihood:
        return experiment.log_likelihood(weights.score, y, key, start=start)

    encode = _encode(experiment, dequantization)
    if samples == 1:
        return evaluate.exact_bpd(encode, log_likelihood, experiment.pixels)
    return evaluate.importance_bpd(encode, log_likelihood, experiment.pixels, samples)


def bound_metric(experiment: Experiment, dequantization: str = "uniform") -> evaluate.Metric:
    """Bits/dim by the variational bound."""
    return evaluate.bound_bpd(
        _encode(experiment, dequantization),
        lambda weights, y, key: experiment.bound(
            weights.score, y, key, draws=experiment.bound_draws, matching=experiment.matching
        ),
        experiment.pixels,
    )


def discrete_metric(experiment: Experiment) -> evaluate.Metric:
    """Bits/dim by the variational bound with the discrete decoder."""
    return evaluate.discrete_bpd(
        lambda weights, x, key: experiment.discrete_bound(
            weights.score, x, key, draws=experiment.bound_draws, matching=experiment.matching
        ),
        experiment.pixels,
    )


def _encode(experiment: Experiment, dequantization: str) -> evaluate.Encode:
    def encode(weights: Weights, x: IntImages, key: PRNGKey) -> tuple[Images, PerExample]:
        dequantizer = experiment.dequantizer(dequantization, weights.flow)
        return experiment.encode(x, key, dequantizer)

    return encode


def loss_metric(experiment: Experiment) -> evaluate.Metric:
    """The training loss, without dropout."""

    def metric(weights: Weights, x: IntImages, key: PRNGKey) -> dict[str, PerExample]:
        return {"loss": experiment.losses(weights.score, x, key, train=False)}

    return metric


def _dequantization_facts(experiment: Experiment, dequantization: str, samples: int) -> Facts:
    start = experiment.truncation_start
    begins_later = dequantization in ("truncated_normal", "none")
    return {
        "dequantizer": dequantization,
        "importance_samples": samples,
        **({"start": start} if begins_later else {}),
    }


def _exact_facts(experiment: Experiment, dequantization: str, samples: int) -> Facts:
    one = "exact for p_eps (probability-flow ODE, unbiased up to the trace estimate)"
    many = f"importance-weighted bound, {samples} draws (probability-flow ODE)"
    return {
        **_dequantization_facts(experiment, dequantization, samples),
        "estimator": one if samples == 1 else many,
        "model": "ODE",
        "solver": repr(experiment.solver),
        "divergence": repr(experiment.divergence),
        "probes": getattr(experiment.divergence, "probes", None),
    }


def _bound_facts(experiment: Experiment, dequantization: str) -> Facts:
    discrete = dequantization == "none"
    return {
        **_dequantization_facts(experiment, dequantization, 1),
        "estimator": f"variational bound (SDE{', discrete decoder' if discrete else ''})",
        "model": "SDE",
        "matching": experiment.matching,
        "offset": None if discrete else experiment.offset,
        "draws": experiment.bound_draws,
    }


def _loss_facts(experiment: Experiment) -> Facts:
    training, data = experiment.config["training"], experiment.config["data"]
    return {
        "estimator": "training loss, published scaling",
        **{name: training[name] for name in OBJECTIVE},
        "uniform_dequantization": data["uniform_dequantization"],
    }
