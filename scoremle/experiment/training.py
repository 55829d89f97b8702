"""Trainings and their objectives: of a score model, and of a flow dequantizer for it.

A score model's objective is how t is drawn, the weighting, and published constants. The three of
ScoreFlow are (uniform t, plain), (uniform t, likelihood) and (uniform log-SNR, likelihood). VDM's
is the bound on integers in the middle of their bins, and i-DODE draws t by alpha^2.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from scoremle import devices
from scoremle.core.augment import augmented
from scoremle.core.condition import conditioned
from scoremle.core.dequantize import Dequantizer, Flow, Uniform
from scoremle.core.keys import example_keys, split
from scoremle.core.learned_times import LossMoments
from scoremle.core.pixels import bits_per_dim
from scoremle.core.times import AlphaSquared, UniformLogSNR, UniformTime, log_snr_range
from scoremle.data import ImageSet
from scoremle.experiment.networks import NetworkSpec, Params
from scoremle.likelihood.by_loss import ByLoss, ByVDMLoss
from scoremle.likelihood.decoders import Decoder, DiscreteDecoder, GaussianDecoder
from scoremle.likelihood.dequantizer_loss import dequantization_loss
from scoremle.likelihood.images import ByElbo, measure
from scoremle.nn import FlowPP
from scoremle.nn.applied import Applied
from scoremle.training.loop import Intervals
from scoremle.training.step import MEMORY, TrainState, init_state
from scoremle.types import IntImages, Keys, PerExample, PRNGKey

# Folded into the seed's key in place of a step: a number that no step has.
INITIALISATION = 2**32 - 1
# Folded into the key of a step: numbers that no part of a batch has.
AUGMENTATION = 2**32 - 2
CODES = 2**32 - 3

# Draws of the quick bound of an image.
EVAL_DRAWS = 4

Scalar = Float[Array, ""]
Numbers = dict[str, Scalar]


@dataclass(frozen=True)
class Training:
    """Settings of a network's training, without the folder.

    ``config`` has the fields of a config by their names. ``loss`` and ``measure`` of the objective
    take parameters (first those that are not trained, if there are any), images and a key: what is
    minimised, and what is logged of averaged parameters. Its ``memory`` is what the loss has
    learned of itself before the first step.
    """

    config: Any
    data: ImageSet
    objective: "Objective | FlowObjective"
    optimizer: optax.GradientTransformation
    ema_rate: float
    schedule: Intervals

    def init_state(self) -> TrainState:
        """The state before the first step; a flow's depends on the first batch.

        Of a sharded one each device holds the whole parameters, too, while it is made.
        """
        images = jnp.asarray(self.data.batch(0))
        params = devices.replicate(_first(self.objective.initialiser, self.config.seed, images))
        begin = jax.jit(init_state, static_argnums=1, out_shardings=self.places)
        return begin(params, self.optimizer, self.objective.memory)

    @cached_property
    def template(self) -> TrainState:
        """Shapes and dtypes of a state: what a checkpoint must fit."""
        params = _shapes(self.objective.initialiser, self.data.shape)
        memory = self.objective.memory
        return jax.eval_shape(lambda params: init_state(params, self.optimizer, memory), params)

    @property
    def places(self) -> Any:
        """Shardings of the arrays of a state while it is trained."""
        return devices.shardings(self.template, sharded=self.config.devices.fsdp)


def _first(initialiser: "NetworkSpec | FlowObjective", seed: int, images: IntImages) -> Params:
    # One generator for each of hundreds of arrays: "rbg" compiles in half the time.
    key = jax.random.fold_in(jax.random.key(seed, impl="rbg"), INITIALISATION)
    return initialiser.init(key, images)


@lru_cache(maxsize=16)
def _shapes(initialiser: "NetworkSpec | FlowObjective", size: tuple[int, int, int]) -> Params:
    """Shapes and dtypes of the first parameters.

    To trace a network takes as long as all else of loading it: a process does it once.
    """
    images = jax.ShapeDtypeStruct((1, *size), jnp.uint8)
    return jax.eval_shape(partial(_first, initialiser, 0), images)


@dataclass(frozen=True)
class Objective:
    """Objective of a score model, by the fields of the config's sections of these names.

    Of one that was imported only the loss ``by_loss`` can be had.
    """

    model: Any
    training: Any
    data: Any

    @property
    def times(self) -> AlphaSquared | UniformLogSNR | UniformTime:
        """Sampler of t for training, before anything is learned of it."""
        training, sde, eps = self.training, self.model.sde, self.model.eps
        if training.time_density == "alpha_squared":
            return AlphaSquared(sde, eps, training.stratified)
        if training.importance_weighting or training.time_density == "learned":
            return UniformLogSNR(sde, eps, training.stratified)
        return UniformTime(eps, training.stratified)

    @property
    def published_scale(self) -> Scalar | float:
        """The constant between our loss in nats and the published one.

        The published loss leaves out the normaliser of the density of t (lambda_eps - lambda_1, or
        1 - eps), and with ``reduce_mean`` it is twice the mean over dimensions. The constants set
        what clipping the gradient does, so they stay. VDM's is in bits/dim.
        """
        if self.data.bin_middles:
            return 1 / (self.model.dims * math.log(2))
        normaliser: Scalar | float = 1 - self.model.eps
        if self.training.importance_weighting:
            with jax.ensure_compile_time_eval():
                low, high = log_snr_range(self.model.sde, self.model.eps)
                normaliser = high - low
        return (2 / self.model.dims if self.training.reduce_mean else 1.0) / normaliser

    def describe(self) -> dict[str, Any]:
        """The fields that results state beside a loss."""
        names = ("likelihood_weighting", "importance_weighting", "time_density")
        found = {name: self.training[name] for name in names}
        found["uniform_dequantization"] = self.data.uniform_dequantization
        if self.data.bin_middles:
            return found | {"bin_middles": True}  # in bits/dim, whatever reduce_mean is
        return found | {"reduce_mean": self.training.reduce_mean}

    @property
    def by_loss(self) -> ByLoss:
        """The loss in the published scaling, as an estimator."""
        weighting = "likelihood" if self.training.likelihood_weighting else "plain"
        how = self.times, self.published_scale, weighting, self.data.uniform_dequantization
        return ByVDMLoss(*how, self.model.eps) if self.data.bin_middles else ByLoss(*how)

    @property
    def memory(self) -> Any:
        """Moments of the loss before the first step, if times are learned from them; else ()."""
        return LossMoments.none() if self.training.time_density == "learned" else ()

    @property
    def initialiser(self) -> NetworkSpec:
        """Makes the first parameters."""
        return self.model

    def losses(self, params: Params, x: IntImages, key: Keys) -> PerExample:
        """The loss of each example in the published scaling, without dropout."""
        model = self.model.at(params)
        by_loss = replace(self, model=model).by_loss
        noise, sde = model.noise_and_sde(params, model.noise(params), x)
        return by_loss.drawn(noise, sde, model.pixels, x, key)[0] + self._of_codes(params)

    def _of_codes(self, params: Params) -> float:
        """The cost of a code in the published scaling, which is bits/dim; 0 without codes."""
        coder = self.model.coder(params)
        return float(self.published_scale) * coder.nats if coder else 0.0

    def loss(
        self, params: Params, x: IntImages, key: PRNGKey, memory: LossMoments | None = None
    ) -> tuple[Scalar, dict[str, Any]]:
        """Loss that training minimises under dropout, and its spread within the batch.

        With a ``memory`` of the losses before, which gives the density of t, also what it becomes.
        """
        model = self.model.at(params)
        by_loss = replace(self, model=model).by_loss
        sde_and_eps = model.sde, model.eps
        if memory is not None:
            by_loss = replace(by_loss, times=memory.times(*sde_and_eps, self.training.stratified))
        noise = model.noise(params, split(key, 3)[2])
        if self.data.augment:
            x, changed = augmented(x, jax.random.fold_in(key, AUGMENTATION))
            noise = conditioned(noise, changed)
        noise, sde = model.noise_and_sde(params, noise, x, jax.random.fold_in(key, CODES))
        losses, drawn = by_loss.drawn(
            noise, sde, model.pixels, x, key, second_order=self.training.second_order
        )
        losses = losses + self._of_codes(params)
        learned = {} if memory is None else {MEMORY: memory.updated(*sde_and_eps, *drawn)}
        return jnp.mean(losses), {"loss_std": jnp.std(losses), **learned}

    def measure(self, params: Params, x: IntImages, key: PRNGKey) -> Numbers:
        """Loss, and a quick bound in bits/dim, of a batch of images."""
        key_loss, key_bound = jax.random.split(key)
        losses = self.losses(params, x, key_loss)
        points = self.model.pixels.points
        decoder = DiscreteDecoder(points) if self.data.bin_middles else GaussianDecoder()
        bound = _quick_bound(self.model, params, Uniform(), x, key_bound, decoder)
        return {"loss": jnp.mean(losses), **bound}


@dataclass(frozen=True)
class FlowObjective:
    """Objective of a flow dequantizer for a score model, whose fixed parameters come first."""

    memory: ClassVar[Any] = ()

    model: Any
    network: FlowPP
    stratified: bool
    decoder: Decoder

    @property
    def initialiser(self) -> "FlowObjective":
        """Makes the first parameters."""
        return self

    def init(self, key: PRNGKey, images: IntImages) -> Params:
        """Parameters to begin with; they depend on these images."""

        @jax.jit
        def begin(images: IntImages) -> Params:
            x = (images / (self.model.pixels.levels - 1)).astype(jnp.float32)
            noise = jax.random.normal(key, x.shape, x.dtype)
            return self.network.init(key, noise, x)["params"]

        return begin(images)

    def dequantizer(self, params: Params) -> Flow:
        """The dequantizer of these parameters."""
        return Flow(Applied(self.network), params, self.model.pixels.levels)

    def loss(
        self, score: Params, params: Params, x: IntImages, key: PRNGKey
    ) -> tuple[Scalar, Numbers]:
        """Loss that training minimises, its value in bits/dim, and its spread within the batch."""
        model, dequantizer = self.model.at(score), self.dequantizer(params)
        losses = dequantization_loss(
            model.noise(score), model.sde, model.pixels, dequantizer, x, key, eps=model.eps,
            times=UniformLogSNR(model.sde, model.eps, self.stratified),
            decoder=self.decoder,
        )  # fmt: skip
        bpd = bits_per_dim(-losses, model.pixels, model.dims)
        return jnp.mean(losses), {"bpd": jnp.mean(bpd), "loss_std": jnp.std(losses)}

    def measure(self, score: Params, params: Params, x: IntImages, key: PRNGKey) -> Numbers:
        """The quick bound of images dequantized by the flow."""
        return _quick_bound(self.model, score, self.dequantizer(params), x, key, self.decoder)


def _quick_bound(
    model: NetworkSpec, score: Params, dequantizer: Dequantizer, x: IntImages, key: PRNGKey,
    decoder: Decoder = GaussianDecoder(),
) -> Numbers:  # fmt: skip
    by_elbo = ByElbo(EVAL_DRAWS, decoder=decoder)
    bpd = measure(by_elbo, model.model(score), dequantizer, x, example_keys(key, len(x)))["bpd"]
    spread = {"bpd_stderr": jnp.std(bpd, ddof=1) / jnp.sqrt(len(x))} if len(x) > 1 else {}
    return {"bpd": jnp.mean(bpd), **spread}
