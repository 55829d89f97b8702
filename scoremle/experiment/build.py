"""From a config to live objects; with ``objective`` and ``samplers``, all that reads a config.

Names become objects in dict literals; network fields are passed as keywords, so that an
unknown one is an error at the start. Nothing that is returned holds the config, but for a plain
dict of it, to be written beside results.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from scoremle import data
from scoremle.core.dequantize import Dequantizer, Flow, TruncatedNormal, Uniform, truncation_start
from scoremle.core.divergence import DivergenceEstimator, Exact, Hutchinson, Orthogonal
from scoremle.core.pixels import Pixels, bits_per_dim
from scoremle.core.prediction import noise_fn
from scoremle.core.sde import SDE, VE, VP, LinearVE, SubVP
from scoremle.core.times import (
    BinnedLogSNR,
    TimeSampler,
    UniformLogSNR,
    UniformTime,
    log_snr_edges,
)
from scoremle.errors import UserError, choose
from scoremle.experiment.objective import Losses, reading, training_losses, training_times
from scoremle.experiment.rules import check_values
from scoremle.experiment.samplers import SAMPLERS, Sampler
from scoremle.likelihood.control_variate import Control, FittedGaussian
from scoremle.likelihood.control_variate_fit import fit_control
from scoremle.likelihood.dequantizer_loss import dequantization_loss
from scoremle.likelihood.images import ByBound, ByOde
from scoremle.likelihood.nodes import Choice
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.likelihood.reconstruction import Discrete, Entropy, Gaussian, Reconstruction
from scoremle.model import ScoreModel
from scoremle.nn import DDPMpp, FlowPP
from scoremle.solvers.base import Solver
from scoremle.solvers.multistep import Doubling, Multistep
from scoremle.training.loop import Schedule
from scoremle.training.step import Loss, TrainState, init_state, make_optimizer
from scoremle.types import Images, IntImages, Keys, NoiseFn, PRNGKey, Times

__all__ = ["DATASETS", "FLOW_FIELDS", "NETWORKS", "SDES", "Experiment", "Weights", "build"]

Params = Any


class Weights(NamedTuple):
    """Parameters to evaluate: of the score model, and of the flow dequantizer if one is used."""

    score: Params
    flow: Params = None


SDES: dict[str, Callable[[Any], SDE]] = {
    "vpsde": lambda model: VP(model.beta_min, model.beta_max),
    "subvpsde": lambda model: SubVP(model.beta_min, model.beta_max),
    "vesde": lambda model: VE(model.sigma_min, model.sigma_max),
    "linearvesde": lambda model: LinearVE(model.sigma_max),
}
DATASETS = data.DATASETS
NETWORKS: dict[str, Callable[..., DDPMpp]] = {"ncsnpp": DDPMpp}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
DIVERGENCES: dict[str, Callable[[int], DivergenceEstimator]] = {
    "rademacher": lambda probes: Hutchinson(probes, "rademacher"),
    "gaussian": lambda probes: Hutchinson(probes, "gaussian"),
    "orthogonal": lambda probes: Orthogonal(probes),
    "exact": lambda probes: Exact(),
}
SOLVERS: dict[str, Callable[[Any], Solver | PublishedRK45]] = {
    "auto": lambda evaluation: Multistep(evaluation.nodes),
    "multistep": lambda evaluation: Multistep(evaluation.nodes),
    "doubling": lambda evaluation: Doubling(evaluation.tolerance * math.log(2)),
    "rk45_reference": lambda evaluation: PublishedRK45(),
}
# From the SDE, eps, whether to stratify, and a control if it was fitted.
BOUND_TIMES: dict[str, Callable[[SDE, float, bool, Any], TimeSampler]] = {
    "learned": lambda sde, eps, stratified, control: BinnedLogSNR(
        sde, eps, control.shares, stratified
    ),
    "log_snr": lambda sde, eps, stratified, control: UniformLogSNR(sde, eps, stratified),
    "time": lambda sde, eps, stratified, control: UniformTime(eps, stratified),
}

# Fields of the network itself, by their names in config.model.
NETWORK_FIELDS = (
    "nf", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout", "resblock_type",
    "resamp_with_conv", "conditional", "fir", "fir_kernel", "skip_rescale", "progressive",
    "progressive_input", "progressive_combine", "embedding_type", "fourier_scale",
    "trainable_embedding", "nonlinearity", "init_scale", "scale_by_sigma",
)  # fmt: skip

FLOW_FIELDS = ("variant", "filters", "components", "blocks", "couplings", "heads")

DEQUANTIZERS: dict[str, Callable[["Experiment", Params], Dequantizer]] = {
    "uniform": lambda experiment, params: Uniform(),
    "truncated_normal": lambda experiment, params: TruncatedNormal(
        experiment.sde, experiment.truncation_start, experiment.pixels
    ),
    "variational": lambda experiment, params: Flow(
        experiment.apply_flow, params, experiment.pixels.levels
    ),
}  # fmt: skip

# Folded into the seed's key in place of a step: what no step can be.
INITIALISATION = 2**32 - 1
CONTROL = 2**32 - 2
PILOT = 2**32 - 3

# Training images for the bound's control variate: at most so many for the Gaussian, in batches;
# and so many for the pilot.
CONTROL_IMAGES, CONTROL_BATCH, PILOT_IMAGES = 20_000, 1000, 128


@dataclass(frozen=True)
class Applied:
    """A network as a function of its parameters too; equal for equal networks."""

    network: DDPMpp

    def __call__(self, params: Params, x: Images, labels: Times) -> Any:
        return self.network.apply({"params": params}, x, labels)


@dataclass(frozen=True)
class Experiment:
    """Everything that training and evaluation need, live."""

    data: data.ImageSet
    on_device: str
    pixels: Pixels
    sde: SDE
    eps: float
    network: DDPMpp
    reading: Mapping[str, Any]
    flow: FlowPP
    flow_ema_rate: float
    flow_schedule: Schedule
    flow_offset: bool
    times: TimeSampler
    losses: Losses
    optimizer: optax.GradientTransformation
    ema_rate: float
    schedule: Schedule
    snapshot_sampling: bool
    seed: int
    divergence: DivergenceEstimator
    solver: Solver | PublishedRK45
    pilot: bool
    matching: str
    offset: bool
    bound_draws: int
    bound_times: str
    bound_stratified: bool
    dequantization: str
    importance_samples: int
    sampler: Sampler
    config: Mapping[str, Any]

    @property
    def dims(self) -> int:
        return math.prod(self.data.shape)

    def noise(self, params: Params) -> NoiseFn:
        """The noise prediction of these parameters, as evaluated (no dropout)."""
        return noise_fn(Partial(Applied(self.network), params), self.sde, **self.reading)

    def init_state(self) -> TrainState:
        """The state before the first step of training."""
        x = jnp.zeros((1, *self.data.shape))
        params = jax.jit(self.network.init)(self._init_key, x, jnp.ones(1))["params"]
        return init_state(params, self.optimizer)

    def init_flow_state(self) -> TrainState:
        """The same of the flow dequantizer; its first values depend on the first batch."""
        return self._flow_state(jnp.asarray(self.data.batch(0)))

    def _flow_state(self, images: IntImages) -> TrainState:
        x = images / (self.pixels.levels - 1)
        e = jax.random.normal(self._init_key, x.shape)
        params = jax.jit(self.flow.init)(self._init_key, e, x)["params"]
        return init_state(params, self.optimizer)

    @property
    def _init_key(self) -> PRNGKey:
        # One generator for each of hundreds of arrays: "rbg" compiles in half the time.
        return jax.random.fold_in(jax.random.key(self.seed, impl="rbg"), INITIALISATION)

    def template(self) -> TrainState:
        """Shapes and dtypes of a state: what a checkpoint must fit."""
        return jax.eval_shape(self.init_state)

    def flow_template(self) -> TrainState:
        """The same of the flow dequantizer."""
        images = jax.ShapeDtypeStruct((1, *self.data.shape), jnp.uint8)
        return jax.eval_shape(self._flow_state, images)

    def loss(
        self, params: Params, x: IntImages, key: PRNGKey
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """What training minimises, and the spread of the loss within the batch."""
        losses = self.losses(params, x, key, train=True)
        return jnp.mean(losses), {"loss_std": jnp.std(losses)}

    def flow_loss(self, score: Params) -> Loss:
        """What the training of the flow dequantizer minimises, for a score model as it is."""
        return jax.tree_util.Partial(self._flow_loss, score)

    def apply_flow(self, params: Params, e: Images, x: Images) -> Any:
        """u and log q(u | x) from the flow dequantizer, of normal e and images x in [0, 1]."""
        return self.flow.apply({"params": params}, e, x)

    def _flow_loss(
        self, score: Params, params: Params, x: IntImages, key: PRNGKey
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        stratified = self.times.stratified
        losses = dequantization_loss(
            self.noise(score), self.sde, self.pixels, self.dequantizer("variational", params),
            x, key,
            eps=self.eps, times=UniformLogSNR(self.sde, self.eps, stratified),
            reconstruction=Gaussian() if self.flow_offset else Entropy(),
        )  # fmt: skip
        bpd = bits_per_dim(-losses, self.pixels, self.dims)
        return jnp.mean(losses), {"bpd": jnp.mean(bpd), "loss_std": jnp.std(losses)}

    @property
    def truncation_start(self) -> float:
        """Where the likelihood with truncated normal noise, and the discrete decoder, begin."""
        with jax.ensure_compile_time_eval():
            return float(truncation_start(self.sde, self.eps, self.pixels))

    def dequantizer(self, name: str, params: Params = None) -> Dequantizer:
        """A dequantizer by name, with the parameters of the flow if it is one."""
        return DEQUANTIZERS[name](self, params)

    def model(self, params: Params) -> ScoreModel:
        """The model of these parameters, as evaluated (no dropout)."""
        return ScoreModel(
            self.noise(params), self.sde, self.eps, self.data.shape, self.pixels, self.solver
        )

    def by_ode(self, samples: int = 1) -> ByOde:
        """How exact likelihoods are measured."""
        return ByOde(self.divergence, self.solver, samples)

    def by_bound(self, control: Control | None = None) -> ByBound:
        """How bounds are measured; ``control`` where it was fitted."""
        reconstruction: Reconstruction = Gaussian() if self.offset else Entropy()
        times = BOUND_TIMES[self.bound_times](self.sde, self.eps, self.bound_stratified, control)
        return ByBound(self.bound_draws, self.matching, times, reconstruction, control)

    def by_discrete_bound(self) -> ByBound:
        """How bounds on the probability of integers are measured.

        Levels stand where training has them: on its grid, or in the middle of its noise.
        """
        with jax.ensure_compile_time_eval():
            levels, pixels = jnp.arange(self.pixels.levels), self.pixels
            if self.config["data"]["uniform_dequantization"]:
                points = pixels.encode(levels, jnp.full(pixels.levels, 0.5))
            else:
                points = pixels.encode_grid(levels)
        return ByBound(
            self.bound_draws, self.matching,
            reconstruction=Discrete(np.asarray(points)), start=self.truncation_start,
        )  # fmt: skip

    def calibrated(self, params: Params, x: np.ndarray) -> tuple["Experiment", Choice]:
        """This experiment with as many nodes as the likelihoods of such images need."""
        seed = self.seed ^ PILOT
        model, choice = self.model(params).calibrated(x, divergence=self.divergence, seed=seed)
        return replace(self, solver=model.solver, pilot=False), choice

    def draw(self, params: Params, key: Keys, count: int) -> IntImages:
        """Samples of the model."""
        shape = (count, *self.data.shape)
        return self.pixels.decode(self.sampler.draw(self.noise(params), key, shape))

    def log_snr_edges(self, start: float | None = None) -> Float[np.ndarray, " n"]:
        """The bins of log-SNR over which the bound is split."""
        return np.asarray(log_snr_edges(self.sde, start or self.eps), np.float64)

    def control_images(self) -> IntImages:
        """The training images that the bound's control variate is fitted on."""
        order = data.permutation(len(self.data.train), self.seed, CONTROL)
        return self.data.train[order[:CONTROL_IMAGES]]

    def fit_control(self, params: Params) -> Control:
        """The bound's control variate for these parameters, and the density of its times."""
        images = self.control_images()

        @jax.jit
        def encode(x: IntImages, key: PRNGKey) -> Images:
            return self.pixels.encode(x, Uniform()(key, x)[0])

        key_gaussian, key_pilot = jax.random.split(
            jax.random.fold_in(jax.random.key(self.seed), CONTROL)
        )
        starts = range(0, len(images), CONTROL_BATCH)
        gaussian = FittedGaussian.fit(
            encode(images[i : i + CONTROL_BATCH], jax.random.fold_in(key_gaussian, i))
            for i in starts
        )
        key_u, key_fit = jax.random.split(key_pilot)
        return fit_control(
            self.noise(params), self.sde, encode(images[:PILOT_IMAGES], key_u), key_fit,
            eps=self.eps, gaussian=gaussian, matching=self.matching,
        )  # fmt: skip


def build(config: Any, *, levels: int | None = None) -> Experiment:
    """Live objects from a resolved config. Raises UserError for values that can't be had.

    With ``levels``, the data set is not loaded but left empty: to use a model, the shape and the
    number of levels are enough.
    """
    check_values(config)
    images = _load(config) if levels is None else _no_images(config, levels)
    sde = choose(SDES, config.training.sde, "SDE (training.sde)")(config.model)
    pixels = Pixels(images.levels, low=-1.0 if config.data.centered else 0.0)
    network = _network(config)
    times = training_times(config, sde)
    experiment = Experiment(
        data=images,
        on_device=config.data.on_device,
        pixels=pixels,
        sde=sde,
        eps=config.training.smallest_time,
        network=network,
        reading=reading(config),
        flow=FlowPP(**{name: _lowered(config.deq[name]) for name in FLOW_FIELDS}),
        flow_ema_rate=config.deq.ema_rate,
        flow_schedule=replace(_schedule(config.training), n_iters=config.deq.n_iters),
        flow_offset=config.deq.offset,
        times=times,
        losses=training_losses(config, network, sde, times, pixels, math.prod(images.shape)),
        optimizer=make_optimizer(
            lr=config.optim.lr,
            beta1=config.optim.beta1,
            eps=config.optim.eps,
            warmup=config.optim.warmup,
            grad_clip=config.optim.grad_clip,
            weight_decay=config.optim.weight_decay,
        ),
        ema_rate=config.model.ema_rate,
        schedule=_schedule(config.training),
        snapshot_sampling=config.training.snapshot_sampling,
        seed=config.seed,
        divergence=_divergence(config.eval, math.prod(images.shape)),
        solver=choose(SOLVERS, config.eval.solver, "eval.solver")(config.eval),
        pilot=config.eval.solver.lower() == "auto",
        matching="denoising" if config.eval.dsm else "sliced",
        offset=config.eval.offset,
        bound_draws=config.eval.bound_draws,
        bound_times=_bound_times(config.eval.bound_times),
        bound_stratified=config.eval.bound_stratified,
        dequantization=config.eval.dequantization,
        importance_samples=config.eval.importance_samples,
        sampler=choose(SAMPLERS, config.sampling.method, "sampling.method")(config, sde),
        config=json.loads(config.to_json()),
    )
    experiment.template()  # the network checks its fields and the size of the images
    return experiment


def _load(config: Any) -> data.ImageSet:
    return data.load(
        config.data.dataset,
        path=config.data.path,
        image_size=config.data.image_size,
        num_channels=config.data.num_channels,
        fit=config.data.fit,
        levels=config.data.levels,
        batch_size=config.training.batch_size,
        seed=config.seed,
        random_flip=config.data.random_flip,
    )


def _no_images(config: Any, levels: int) -> data.ImageSet:
    size, channels = config.data.image_size, config.data.num_channels
    none = np.zeros((0, size, size, channels), np.uint8)
    return data.ImageSet(none, none, levels, name=config.data.dataset.lower())


def _network(config: Any) -> DDPMpp:
    fields = {name: _lowered(config.model[name]) for name in NETWORK_FIELDS}
    return choose(NETWORKS, config.model.name, "network (model.name)")(
        **fields,
        centered=config.data.centered,
        log_labels=reading(config)["conditioning"] == "sigma",
        dtype=choose(DTYPES, config.model.dtype, "model.dtype"),
    )


def _lowered(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _divergence(evaluation: Any, dims: int) -> DivergenceEstimator:
    found = choose(DIVERGENCES, evaluation.divergence, "eval.divergence")(evaluation.probes)
    if isinstance(found, Orthogonal) and found.probes > dims:
        raise UserError(
            f"eval.probes is {found.probes}, but images of {dims} dimensions have no more than"
            f" {dims} orthogonal probes"
        )
    return found


def _schedule(training: Any) -> Schedule:
    return Schedule(
        n_iters=training.n_iters,
        n_jitted_steps=training.n_jitted_steps,
        log_freq=training.log_freq,
        eval_freq=training.eval_freq,
        snapshot_freq=training.snapshot_freq,
        snapshot_freq_for_preemption=training.snapshot_freq_for_preemption,
    )


def _bound_times(name: str) -> str:
    choose(BOUND_TIMES, name, "eval.bound_times")
    return name.lower()
