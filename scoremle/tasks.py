"""What can be measured of a trained experiment, each with the facts that belong to the number."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from scoremle import evaluate
from scoremle.arrays import IntImages, PerExample, PRNGKey
from scoremle.experiment import Experiment
from scoremle.nodes import Choice
from scoremle.reference import PublishedRK45

__all__ = ["Task", "exact_metric", "tasks"]

Facts = dict[str, Any]

# What the loss of an evaluation depends on besides the network.
OBJECTIVE = ("likelihood_weighting", "importance_weighting", "stratified", "reduce_mean")


@dataclass(frozen=True)
class Task:
    """One thing to evaluate: its name, its column of interest, its metric, and what it is.

    ``notes`` are said with the number, and do not make it another one. A metric ``on_host`` is not
    to be compiled as a whole.
    """

    name: str
    column: str
    metric: evaluate.Metric
    facts: Facts
    notes: Facts = field(default_factory=dict)
    on_host: bool = False


def tasks(
    experiment: Experiment, options: Any, choice: Choice | None = None
) -> Iterator[Task]:
    """The tasks that the flags ask for; ``choice`` tells how the solver's nodes were chosen."""
    if options.enable_bpd and options.bound:
        yield Task("bound", "bpd", bound_metric(experiment), _bound_facts(experiment))
    if options.enable_bpd and not options.bound:
        yield Task(
            "exact",
            "bpd",
            exact_metric(experiment),
            _exact_facts(experiment),
            notes={"solver_choice": asdict(choice)} if choice else {},
            on_host=isinstance(experiment.solver, PublishedRK45),
        )
    if options.enable_loss:
        yield Task("loss", "loss", loss_metric(experiment), _loss_facts(experiment))


def exact_metric(experiment: Experiment) -> evaluate.Metric:
    """Bits/dim by the probability-flow ODE."""
    return evaluate.exact_bpd(experiment.encode, experiment.log_likelihood, experiment.pixels)


def bound_metric(experiment: Experiment) -> evaluate.Metric:
    """Bits/dim by the variational bound."""
    return evaluate.bound_bpd(
        experiment.encode,
        lambda params, y, key: experiment.bound(
            params, y, key, draws=experiment.bound_draws, matching=experiment.matching
        ),
        experiment.pixels,
    )


def loss_metric(experiment: Experiment) -> evaluate.Metric:
    """The training loss, without dropout."""

    def metric(params: Any, x: IntImages, key: PRNGKey) -> dict[str, PerExample]:
        return {"loss": experiment.losses(params, x, key, train=False)}

    return metric


def _exact_facts(experiment: Experiment) -> Facts:
    return {
        "estimator": "exact for p_eps (probability-flow ODE, unbiased up to the trace estimate)",
        "model": "ODE",
        "solver": repr(experiment.solver),
        "divergence": repr(experiment.divergence),
        "probes": getattr(experiment.divergence, "probes", None),
    }


def _bound_facts(experiment: Experiment) -> Facts:
    return {
        "estimator": "variational bound (SDE)",
        "model": "SDE",
        "matching": experiment.matching,
        "offset": experiment.offset,
        "draws": experiment.bound_draws,
    }


def _loss_facts(experiment: Experiment) -> Facts:
    training, data = experiment.config["training"], experiment.config["data"]
    return {
        "estimator": "training loss, published scaling",
        **{name: training[name] for name in OBJECTIVE},
        "uniform_dequantization": data["uniform_dequantization"],
    }
