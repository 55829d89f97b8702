"""What can be measured of a trained experiment, each with the facts that belong to the number."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from scoremle import evaluate
from scoremle.arrays import Images, IntImages, PerExample, PRNGKey
from scoremle.bound import Bound
from scoremle.control import Control, Gaussian
from scoremle.experiment import Experiment
from scoremle.files import read_npz, write_npz
from scoremle.nodes import Choice
from scoremle.reference import PublishedRK45

__all__ = ["Task", "bound_metric", "exact_metric", "fitted_control", "tasks"]

Facts = dict[str, Any]

# Digits of hashes in results: enough to tell any two apart.
HASH_LENGTH = 16
# The arrays of a control's Gaussian, among all that are kept of a control.
GAUSSIAN = ("mean", "axes", "variances")
# What the loss of an evaluation depends on besides the network.
OBJECTIVE = ("likelihood_weighting", "importance_weighting", "stratified", "reduce_mean")


@dataclass(frozen=True)
class Task:
    """One thing to evaluate: its name, its column of interest, its metric, and what it is.

    ``prepare`` makes what the metric takes from a network's parameters, once; it may keep files
    for an interrupted run in the folder that it is given. ``notes`` are said with the number, and
    do not make it another one. A metric ``on_host`` is not to be compiled as a whole.
    """

    name: str
    column: str
    metric: evaluate.Metric
    facts: Facts
    prepare: Callable[[Any, Path], Any] = lambda params, folder: params
    notes: Facts = field(default_factory=dict)
    on_host: bool = False


def tasks(
    experiment: Experiment, options: Any, choice: Choice | None = None
) -> Iterator[Task]:
    """The tasks that the flags ask for; ``choice`` tells how the solver's nodes were chosen."""
    if options.enable_bpd and options.bound:
        yield Task(
            "bound",
            "bpd",
            bound_metric(experiment),
            _bound_facts(experiment),
            lambda params, folder: (params, fitted_control(experiment, params, folder)),
        )
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
    """Bits/dim by the variational bound; takes the parameters with ``fitted_control``."""

    def bound(prepared: tuple[Any, Control | None], y: Images, key: PRNGKey) -> Bound:
        params, control = prepared
        return experiment.bound(
            params, y, key,
            draws=experiment.bound_draws, matching=experiment.matching,
            times=experiment.bound_sampler(control), control=control,
        )  # fmt: skip

    return evaluate.bound_bpd(experiment.encode, bound, experiment.pixels)


def fitted_control(experiment: Experiment, params: Any, folder: Path) -> Control | None:
    """The control variate that the bound's times are learned with; kept in the folder.

    A run that goes on reads it there, so that all batches are measured with the same.
    """
    if experiment.bound_times != "learned":
        return None
    path = folder / "control.npz"
    if (found := read_npz(path)) is not None:
        kept = {name: jnp.asarray(array) for name, array in found.items()}
        gaussian = Gaussian(**{name: kept.pop(name) for name in GAUSSIAN})
        return Control(gaussian, **kept)
    print("fitting the bound's control variate on training images", flush=True)
    control = experiment.fit_control(params)
    arrays = {**vars(control.gaussian), **vars(control)}
    del arrays["gaussian"]
    write_npz(path, arrays)
    return control


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
        "times": experiment.bound_times,
        "stratified": experiment.bound_stratified,
        **_control_facts(experiment),
    }


def _control_facts(experiment: Experiment) -> Facts:
    if experiment.bound_times != "learned":
        return {"control": None}
    images = experiment.control_images()
    return {
        "control": "Gaussian and powers of pixels, coefficients by log-SNR",
        "control_images": len(images),
        "control_hash": hashlib.sha256(images.tobytes()).hexdigest()[:HASH_LENGTH],
    }


def _loss_facts(experiment: Experiment) -> Facts:
    training, data = experiment.config["training"], experiment.config["data"]
    return {
        "estimator": "training loss, published scaling",
        **{name: training[name] for name in OBJECTIVE},
        "uniform_dequantization": data["uniform_dequantization"],
    }
