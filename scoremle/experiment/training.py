"""What a training is, of the score model and of a flow dequantizer for one alike."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from scoremle.data import ImageSet
from scoremle.experiment.networks import Params
from scoremle.experiment.objective import Numbers, Scalar
from scoremle.training.loop import Schedule
from scoremle.training.step import TrainState, init_state
from scoremle.types import IntImages, PRNGKey

__all__ = ["Training"]

# Folded into the seed's key in place of a step: what no step can be.
INITIALISATION = 2**32 - 1


@dataclass(frozen=True)
class Training:
    """All that the training of a network needs but the folder.

    ``loss`` and ``measure`` take parameters (first those that are not trained, if there are any),
    images and a key: what is minimised, and what is logged of averaged parameters. ``grid`` draws
    the samples that are shown at each snapshot; None: none are.
    """

    data: ImageSet
    on_device: str
    init: Callable[[PRNGKey, IntImages], Params]
    loss: Callable[..., tuple[Scalar, Numbers]]
    measure: Callable[..., Numbers]
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
