"""What can be measured of a trained experiment, each with the facts that belong to the number."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scoremle.core.dequantize import Uniform
from scoremle.evaluation import metrics
from scoremle.experiment.build import Experiment, Weights
from scoremle.files import read_npz, write_npz
from scoremle.likelihood.control_variate import Control, FittedGaussian
from scoremle.likelihood.images import ImageModel, Values
from scoremle.likelihood.nodes import Choice
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.resumable import fingerprint
from scoremle.training.checkpoints import tree_hash
from scoremle.types import IntImages, Keys, PerExample

__all__ = ["Task", "bound_metric", "bound_task", "exact_metric", "exact_task", "tasks"]

Facts = dict[str, Any]
Prepared = tuple[Weights, Control | None]

# Digits of hashes in results: enough to tell any two apart.
HASH_LENGTH = 16
# The arrays of a control's Gaussian, among all that are kept of a control.
GAUSSIAN = ("mean", "axes", "variances")
# What the loss of an evaluation depends on besides the network.
OBJECTIVE = ("likelihood_weighting", "importance_weighting", "reduce_mean")


@dataclass(frozen=True)
class Task:
    """One thing to evaluate: its name, its column of interest, its metric, and what it is.

    ``prepare`` makes what the metric takes from a network's parameters, once; it may keep files
    for an interrupted run in the folder that it is given. ``notes`` are said with the number, and
    do not make it another one. A metric ``on_host`` is not to be compiled as a whole. A
    ``profile`` among the values is over the bins of ``log_snr_edges``.
    """

    name: str
    column: str
    metric: metrics.Metric
    facts: Facts
    prepare: Callable[[Any, Path], Any] = lambda params, folder: params
    notes: Facts = field(default_factory=dict)
    on_host: bool = False
    log_snr_edges: Float[np.ndarray, " n"] | None = None


def tasks(
    experiment: Experiment, options: Any, choice: Choice | None = None
) -> Iterator[Task]:
    """The tasks that the flags ask for; ``choice`` tells how the solver's nodes were chosen."""
    dequantization, samples = experiment.dequantization, experiment.importance_samples
    if options.enable_bpd and options.bound:
        yield bound_task(experiment, dequantization)
    if options.enable_bpd and not options.bound:
        yield exact_task(experiment, dequantization, samples, choice)
    if options.enable_loss:
        yield Task("loss", "loss", loss_metric(experiment), _loss_facts(experiment))


def exact_task(
    experiment: Experiment, dequantization: str, samples: int = 1, choice: Choice | None = None
) -> Task:
    """Bits/dim by the probability-flow ODE; with several samples, importance weighted."""
    name = _named("exact", dequantization) + (f"_k{samples}" if samples > 1 else "")
    facts = _exact_facts(experiment, dequantization, samples)
    return Task(
        name,
        "bpd",
        exact_metric(experiment, dequantization, samples),
        facts,
        notes={"solver_choice": asdict(choice)} if choice else {},
        on_host=isinstance(experiment.solver, PublishedRK45),
    )


def bound_task(experiment: Experiment, dequantization: str) -> Task:
    """Bits/dim by the variational bound; with "none" for dequantization, of integers."""
    name, facts = _named("bound", dequantization), _bound_facts(experiment, dequantization)
    if dequantization == "none":
        edges = experiment.log_snr_edges(experiment.truncation_start)
        return Task(name, "bpd", discrete_metric(experiment), facts, log_snr_edges=edges)
    return Task(
        name,
        "bpd",
        bound_metric(experiment, dequantization),
        facts,
        lambda weights, folder: (weights, fitted_control(experiment, weights.score, folder)),
        log_snr_edges=experiment.log_snr_edges(),
    )


def _named(name: str, dequantization: str) -> str:
    return name if dequantization == "uniform" else f"{name}_{dequantization}"


def exact_metric(
    experiment: Experiment, dequantization: str = "uniform", samples: int = 1
) -> metrics.Metric:
    """Bits/dim by the probability-flow ODE."""
    by_ode = experiment.by_ode(samples)

    def metric(weights: Weights, x: IntImages, keys: Keys) -> Values:
        dequantizer = experiment.dequantizer(dequantization, weights.flow)
        return by_ode(_model(experiment, weights), dequantizer, x, keys)

    return metric


def bound_metric(experiment: Experiment, dequantization: str = "uniform") -> metrics.Metric:
    """Bits/dim by the variational bound; takes the weights with ``fitted_control``."""

    def metric(prepared: Prepared, x: IntImages, keys: Keys) -> Values:
        weights, control = prepared
        dequantizer = experiment.dequantizer(dequantization, weights.flow)
        by_bound = experiment.by_bound(control)
        return by_bound(_model(experiment, weights), dequantizer, x, keys)

    return metric


def _model(experiment: Experiment, weights: Weights) -> ImageModel:
    return cast(ImageModel, experiment.model(weights.score))  # it has pixels


def fitted_control(experiment: Experiment, params: Any, folder: Path) -> Control | None:
    """The control variate that the bound's times are learned with; kept beside the folder.

    A run that goes on reads it there, so that all batches are measured with the same; and so does
    another bound of the same network.
    """
    if experiment.bound_times != "learned":
        return None
    path = folder.parent / f"control_{fingerprint(_fit_facts(experiment, params))}.npz"
    if (found := read_npz(path)) is not None:
        kept = {name: jnp.asarray(array) for name, array in found.items()}
        gaussian = FittedGaussian(**{name: kept.pop(name) for name in GAUSSIAN})
        return Control(gaussian, **kept)
    print("fitting the bound's control variate on training images", flush=True)
    control = experiment.fit_control(params)
    arrays = {**vars(control.gaussian), **vars(control)}
    del arrays["gaussian"]
    write_npz(path, arrays)
    return control


def _fit_facts(experiment: Experiment, params: Any) -> Facts:
    return {
        "params": tree_hash(params),
        "network": repr(experiment.network),
        "sde": experiment.sde.describe(),
        "eps": experiment.eps,
        "pixels": repr(experiment.pixels),
        "matching": experiment.matching,
        "seed": experiment.seed,
        **_control_facts(experiment),
    }


def discrete_metric(experiment: Experiment) -> metrics.Metric:
    """Bits/dim by the variational bound with the discrete decoder."""
    by_bound = experiment.by_discrete_bound()
    return lambda weights, x, keys: by_bound(_model(experiment, weights), Uniform(), x, keys)


def loss_metric(experiment: Experiment) -> metrics.Metric:
    """The training loss, without dropout; each image draws its own t."""

    def metric(weights: Weights, x: IntImages, keys: Keys) -> dict[str, PerExample]:
        return {"loss": experiment.losses(weights.score, x, keys, train=False)}

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
    one = "exact for p_eps (probability-flow ODE)"
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
        **({} if discrete else _times_facts(experiment)),
    }


def _times_facts(experiment: Experiment) -> Facts:
    return {
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
