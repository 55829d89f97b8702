"""What a training is, of the score model and of a flow dequantizer for one alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from scoremle.core.dequantize import Dequantizer, Uniform
from scoremle.core.keys import example_keys
from scoremle.core.pixels import bits_per_dim
from scoremle.core.times import TimeSampler
from scoremle.data import ImageSet
from scoremle.experiment.networks import FlowSpec, ModelSpec, Params
from scoremle.experiment.objective import Objective
from scoremle.likelihood.dequantizer_loss import dequantization_loss
from scoremle.likelihood.images import ByBound, ImageModel
from scoremle.likelihood.reconstruction import Reconstruction
from scoremle.training.loop import Schedule
from scoremle.training.step import TrainState, init_state
from scoremle.types import IntImages, PRNGKey

__all__ = ["Measure", "Training", "flow_loss", "flow_measure", "score_loss", "score_measure"]

# Folded into the seed's key in place of a step: what no step can be.
INITIALISATION = 2**32 - 1
EVAL_DRAWS = 4

Scalar = Float[Array, ""]
Numbers = dict[str, Scalar]
# Parameters, images and a key to what is minimised, and to numbers to be logged.
Loss = Callable[..., tuple[Scalar, Numbers]]
Measure = Callable[..., Numbers]


@dataclass(frozen=True)
class Training:
    """All that the training of a network needs but the folder.

    ``loss`` and ``measure`` take parameters that are not trained, if there are any, first.
    ``grid`` draws the samples that are shown at each snapshot; None: none are.
    """

    data: ImageSet
    on_device: str
    init: Callable[[PRNGKey, IntImages], Params]
    loss: Loss
    measure: Measure
    optimizer: optax.GradientTransformation
    ema_rate: float
    schedule: Schedule
    seed: int
    grid: Callable[[Params, PRNGKey], IntImages] | None = None

    def init_state(self) -> TrainState:
        """The state before the first step; a flow's depends on the first batch."""
        return self._state(jnp.asarray(self.data.batch(0)))

    def template(self) -> TrainState:
        """Shapes and dtypes of a state: what a checkpoint must fit."""
        images = jax.ShapeDtypeStruct((1, *self.data.shape), jnp.uint8)
        return jax.eval_shape(self._state, images)

    def _state(self, images: IntImages) -> TrainState:
        # One generator for each of hundreds of arrays: "rbg" compiles in half the time.
        key = jax.random.fold_in(jax.random.key(self.seed, impl="rbg"), INITIALISATION)
        return init_state(jax.jit(self.init)(key, images), self.optimizer)


def score_loss(objective: Objective) -> Loss:
    """What the training of a score model minimises, and the spread within the batch."""

    def loss(params: Params, x: IntImages, key: PRNGKey) -> tuple[Scalar, Numbers]:
        losses = objective(params, x, key, train=True)
        return jnp.mean(losses), {"loss_std": jnp.std(losses)}

    return loss


def score_measure(objective: Objective) -> Measure:
    """Loss, and a quick bound in bits/dim, of a batch of images."""

    def measure(params: Params, x: IntImages, key: PRNGKey) -> Numbers:
        key_loss, key_bound = jax.random.split(key)
        losses = objective(params, x, key_loss, train=False)
        bound = _quick_bound(objective.model, params, Uniform(), x, key_bound)
        return {"loss": jnp.mean(losses), **bound}

    return measure


def flow_loss(
    model: ModelSpec, flow: FlowSpec, times: TimeSampler, reconstruction: Reconstruction
) -> Loss:
    """The same of a flow dequantizer, for a score model's parameters, which come first."""

    def loss(
        score: Params, params: Params, x: IntImages, key: PRNGKey
    ) -> tuple[Scalar, Numbers]:
        losses = dequantization_loss(
            model.noise(score), model.sde, model.pixels, flow.dequantizer(params), x, key,
            eps=model.eps, times=times, reconstruction=reconstruction,
        )  # fmt: skip
        bpd = bits_per_dim(-losses, model.pixels, model.dims)
        return jnp.mean(losses), {"bpd": jnp.mean(bpd), "loss_std": jnp.std(losses)}

    return loss


def flow_measure(model: ModelSpec, flow: FlowSpec) -> Measure:
    """The quick bound of images dequantized by the flow; the score model comes first."""

    def measure(score: Params, params: Params, x: IntImages, key: PRNGKey) -> Numbers:
        return _quick_bound(model, score, flow.dequantizer(params), x, key)

    return measure


def _quick_bound(
    model: ModelSpec, score: Params, dequantizer: Dequantizer, x: IntImages, key: PRNGKey
) -> Numbers:
    images = cast(ImageModel, model.model(score))  # it has pixels
    bpd = ByBound(EVAL_DRAWS)(images, dequantizer, x, example_keys(key, len(x)))["bpd"]
    return {"bpd": jnp.mean(bpd), "bpd_stderr": jnp.std(bpd, ddof=1) / jnp.sqrt(len(x))}
