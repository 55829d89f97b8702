"""From a config to live objects: objectives, estimators, samplers, and the networks of them.

Names become objects in dict literals. The mathematics sees no config: of what is returned the
experiment alone holds the values that say which images and checkpoints are measured.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from scoremle import data
from scoremle.core.divergence import (
    DivergenceEstimator,
    Exact,
    Hierarchical,
    Hutchinson,
    Orthogonal,
)
from scoremle.core.sde import SDE
from scoremle.core.times import TimeSampler, UniformLogSNR, UniformTime
from scoremle.devices import check_devices
from scoremle.errors import UserError, as_flag, choose, named_as
from scoremle.experiment.config import as_fields
from scoremle.experiment.labels import check_label
from scoremle.experiment.networks import DTYPES, Params, lowered, precision_of, spec_of
from scoremle.experiment.record import FLOW_FIELDS
from scoremle.experiment.rules import check_config
from scoremle.experiment.samplers import SAMPLERS, ConfiguredSampler
from scoremle.experiment.training import FlowObjective, Objective, Training
from scoremle.likelihood.decoders import Entropy, GaussianDecoder
from scoremle.likelihood.image_model import pixels_of
from scoremle.likelihood.images import ByElbo, ByOde
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.model import Origin, ScoreModel
from scoremle.nn import FlowPP
from scoremle.solvers.base import Solver
from scoremle.solvers.doubling import Doubling
from scoremle.solvers.multistep import Multistep
from scoremle.training.loop import Intervals
from scoremle.training.step import make_optimizer
from scoremle.training.writers import TRACKERS

if TYPE_CHECKING:
    from scoremle.experiment.imported import Imported

__all__ = ["Experiment", "build", "images_of", "sampler_of"]

DIVERGENCES: dict[str, Callable[[int], DivergenceEstimator]] = {
    "rademacher": lambda probes: Hutchinson(probes, "rademacher"),
    "gaussian": lambda probes: Hutchinson(probes, "gaussian"),
    "orthogonal": lambda probes: Orthogonal(probes),
    "hierarchical": lambda probes: Hierarchical(probes),
    "exact": lambda probes: Exact(),
}
SOLVERS: dict[str, Callable[[Any], Solver | PublishedRK45]] = {
    "auto": lambda evaluation: Multistep(),  # until a pilot chooses
    "multistep": lambda evaluation: Multistep(evaluation.nodes),
    "doubling": lambda evaluation: Doubling(evaluation.tolerance * math.log(2)),
    "rk45_reference": lambda evaluation: PublishedRK45(),
}
# Times that are fitted to a network, when there is one.
LEARNED = "learned"
# From the SDE, eps, and whether to stratify.
BOUND_TIMES: dict[str, Callable[[SDE, float, bool], TimeSampler]] = {
    LEARNED: UniformLogSNR,
    "log_snr": UniformLogSNR,
    "time": lambda sde, eps, stratified: UniformTime(eps, stratified),
}

IMAGE_FIELDS = ("path", "image_size", "num_channels", "fit", "levels", "random_flip")


@dataclass(frozen=True)
class Experiment:
    """Objects built from a config, one for each task, and its plain values.

    ``evaluation`` has the fields of ``eval`` by their names. Bits/dim are measured by ``by_ode``,
    ``by_elbo`` or, if a bound of steps is configured, the checkpoint's chain. A pilot may choose
    the steps of the first, and the times of the second may be fitted.

    Args:
        config: all fields by sections.
        data: the images.
        model: all of it but its parameters, a NetworkSpec; a ScoreModel that was imported.
        imported: the record of that; empty without it.
        flow: what the training of a dequantizer minimises.
        objective: what training minimises.
        training: settings of the network's.
        flow_training: settings of the dequantizer's.
        sampler: of samples.
        seed: of all randomness.
    """

    config: Mapping[str, Any]
    data: data.ImageSet
    model: Any
    imported: Mapping[str, Any]
    flow: FlowObjective
    objective: Objective
    training: Training
    flow_training: Training
    evaluation: Any
    by_ode: ByOde
    by_elbo: ByElbo
    sampler: ConfiguredSampler
    seed: int

    @property
    def exact(self) -> bool:
        """Whether an exact likelihood is among what is measured."""
        flags = self.evaluation
        return flags.suite or (flags.enable_bpd and not (flags.bound or flags.bound_steps))

    @property
    def pilot(self) -> bool:
        """Whether a pilot chooses the solver's steps."""
        return self.evaluation.solver.lower() == "auto"

    @property
    def precision(self) -> str:
        """The type that the network computes in, and that of products if JAX's config has one."""
        return precision_of(jnp.float32) if self.imported else self.model.precision

    def model_of(self, params: Params) -> ScoreModel:
        """The model of the parameters in a checkpoint, as evaluated.

        Args:
            params: of the network; of an imported model that itself.
        """
        return params if self.imported else replace(self.model.model(params), origin=self.origin)

    @property
    def origin(self) -> Origin:
        """The origin of a model of the config: how it sees integers."""
        of_data = self.objective.data
        grid = not (of_data.uniform_dequantization or of_data.bin_middles)
        return Origin(middles=of_data.bin_middles, grid=grid)

    def identity(self) -> dict[str, Any]:
        """Facts that distinguish the model from others, but for its parameters."""
        return {**self.imported} or self.model.describe()


def build(
    config: Any, *, levels: int | None = None, imported: "Imported | None" = None
) -> Experiment:
    """The experiment of a resolved config.

    Args:
        config: resolved.
        levels: with these, the data set is not loaded but left empty: to use a model, the shape
            and the number of levels are enough, and its parameters show whether the network is
            that of the config.
        imported: a model, which is not of the config.

    Raises UserError for values that can't be had.
    """
    check_devices()
    check_config(config)
    images = images_of(config) if levels is None else _no_images(config, levels)
    dtype = choose(DTYPES, config.eval.dtype, "eval.dtype")
    if imported:
        trained = model = _imported(imported, images, config)
    else:
        trained = spec_of(config, images)
        model = replace(trained, network=trained.network.clone(dtype=dtype))
    fixed = FrozenConfigDict(config)
    sampler, evaluation = sampler_of(config, model.sde), fixed.eval
    objective = Objective(trained, fixed.training, fixed.data)
    training, flow = _training(fixed, images, objective), _flow(config, trained)
    flow_training = replace(  # as the score model's, of another network
        training, objective=flow, ema_rate=config.deq.ema_rate,
        schedule=replace(training.schedule, n_iters=config.deq.n_iters),
    )  # fmt: skip
    if not imported and levels is None:
        with as_fields("model"):
            _ = training.template  # the network checks its fields and the size of the images
    return Experiment(
        config=json.loads(config.to_json()),
        data=images,
        model=model,
        imported=imported.record if imported else {},
        flow=flow,
        objective=objective,
        training=training,
        flow_training=flow_training,
        evaluation=evaluation,
        by_ode=_by_ode(evaluation, model.dims),
        by_elbo=_by_bound(evaluation),
        sampler=sampler,
        seed=config.seed,
    )


def images_of(config: Any) -> data.ImageSet:
    """The data set of a config. Raises UserError if it can't be had.

    Args:
        config: a resolved one.
    """
    if not config.data.dataset:
        raise UserError(
            "the data set to measure on is not known: set --config.data.dataset, and for images of"
            " your own --config.data.dataset=images --config.data.path=PATH"
        )
    flags = named_as(
        lambda name: f"scoremle data prepare {as_flag(name)}", ("skip_bad", "test_fraction")
    )
    with as_fields("data"), flags:
        return data.load(
            config.data.dataset, batch_size=config.training.batch_size, seed=config.seed,
            **{name: config.data[name] for name in IMAGE_FIELDS},
        )  # fmt: skip


def _no_images(config: Any, levels: int) -> data.ImageSet:
    size, channels = config.data.image_size, config.data.num_channels
    none = np.zeros((0, size, size, channels), np.uint8)
    return data.ImageSet(none, none, levels, name=config.data.dataset.lower())


def _imported(imported: "Imported", images: data.ImageSet, config: Any) -> Any:
    """The model in a working directory, if it is one of such images, and has such a label."""
    model = imported.load()
    found, needed = (*images.shape, images.levels), (*model.shape, pixels_of(model).levels)
    if found != needed:
        words = ("{}x{}x{} with {} levels".format(*each) for each in (found, needed))
        raise UserError("{} has images of {}, and the model is of {}".format(images.name, *words))
    check_label(model, config.eval.label, "--config.eval.label")
    if config.eval.dtype != "float32":
        raise UserError(
            f"eval.dtype={config.eval.dtype} is for networks that configs name: an imported model"
            " is evaluated in float32"
        )
    return model


def logged_by(config: Any) -> tuple[str, ...]:
    """The names of the writers in ``config.logging``. Raises UserError for an unknown name."""
    chosen = tuple(filter(None, (name.strip().lower() for name in config.logging.split(","))))
    for name in chosen:
        choose(TRACKERS, name, "writer of numbers (logging)")
    return chosen


def _training(config: Any, images: data.ImageSet, objective: Objective) -> Training:
    logged_by(config)  # a mistake before any work
    return Training(
        config=config,
        data=images,
        objective=objective,
        optimizer=make_optimizer(
            **{name: value for name, value in config.optim.items() if name != "optimizer"},
            decay_biases=config.optim.optimizer == "Adam",
        ),
        ema_rate=config.model.ema_rate,
        schedule=Intervals(
            **{each.name: config.training[each.name] for each in fields(Intervals)}
        ),
    )


def _flow(config: Any, model: Any) -> FlowObjective:
    network = FlowPP(**{name: lowered(config.deq[name]) for name in FLOW_FIELDS})
    decoder = GaussianDecoder() if config.deq.offset else Entropy()
    return FlowObjective(model, network, config.training.stratified, decoder)


def _by_ode(evaluation: Any, dims: int) -> ByOde:
    divergence = choose(DIVERGENCES, evaluation.divergence, "eval.divergence")(evaluation.probes)
    if isinstance(divergence, Orthogonal) and divergence.probes > dims:
        raise UserError(
            f"eval.probes is {divergence.probes}, but images of {dims} dimensions have no more"
            f" than {dims} orthogonal probes"
        )
    solver = choose(SOLVERS, evaluation.solver, "eval.solver")(evaluation)
    return ByOde(divergence, solver, evaluation.importance_samples)


def _by_bound(evaluation: Any) -> ByElbo:
    choose(BOUND_TIMES, evaluation.bound_times, "eval.bound_times")  # of the checkpoint's SDE
    if evaluation.bound_steps == 1:
        raise UserError("eval.bound_steps: a chain has two steps or more, not 1")
    matching = "denoising" if evaluation.dsm else "sliced"
    decoder = GaussianDecoder() if evaluation.offset else Entropy()
    return ByElbo(evaluation.bound_draws, matching, decoder=decoder)


def sampler_of(config: Any, sde: SDE) -> ConfiguredSampler:
    """The sampler of samples under an SDE that a resolved config names.

    Args:
        config: a resolved one.
        sde: the model's.
    """
    return choose(SAMPLERS, config.sampling.method, "sampling.method")(config.sampling, sde)
