"""One step of maximum likelihood: the gradient of a loss, Adam, and the average of the parameters.

Step i (from 0) draws its images from ``batch(i)`` and its randomness from
``fold_in(key(seed), i)``, so a state is all that is needed to resume:

    g = grad loss(p);  g <- g clip / max(|g|, clip);  p <- p - lr min(i / warmup, 1) Adam(g)
    e <- e + (1 - r) (p - e)

The averaged parameters e begin at the initial ones, without bias correction, as published.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from scoremle.core.arguments import shown
from scoremle.errors import UserError
from scoremle.types import AnyArray, PRNGKey

__all__ = ["MEMORY", "TrainState", "init_state", "make_optimizer"]

Params = Any
Metrics = dict[str, Float[AnyArray, "*k"]]
# Parameters, images, a key, and what the loss has learned of itself, if it does, give what is to
# be minimised, alone or with further scalars to be logged, and as MEMORY what was learned now.
Scalar = Float[Array, ""]
Loss = Callable[..., Scalar | tuple[Scalar, dict[str, Any]]]
MEMORY = "memory"


class TrainState(NamedTuple):
    """The state that training changes; ``step`` counts the updates made.

    ``memory`` is what the loss has learned of itself; (): nothing.

    Args:
        params: the parameters.
        ema: their moving average.
        opt_state: of the optimizer.
    """

    step: Int[Array, ""]
    params: Params
    ema: Params
    opt_state: optax.OptState
    memory: Any = ()


# The images of k steps, or whatever ``gather`` makes them from: arrays [k b ...].
Batches = Any
Step = Callable[[TrainState, Batches], tuple[TrainState, Metrics]]
# (arrays on the device, one batch) -> the images of a step, or the vectors of a loss on vectors
Gather = Callable[[Any, Any], Array]
# The seed's key, the loss with what it holds, and arrays that stay on the device.
Fixed = tuple[PRNGKey, Any, Any]
# The loss with what it logs, and the gradient.
Gradient = tuple[tuple[Scalar, dict[str, Any]], Params]
Row = dict[str, Scalar]


@functools.cache  # the same one for the same numbers, so that programs with it are the same
def make_optimizer(
    *,
    lr: float,
    beta1: float,
    eps: float,
    warmup: int,
    grad_clip: float,
    weight_decay: float = 0.0,
    beta2: float = 0.999,
    decay_biases: bool = True,
) -> optax.GradientTransformation:
    """Clipping by global norm (none if ``grad_clip`` < 0), Adam, linear warm-up.

    With warm-up the very first update has rate 0, but Adam's moments take it in. Weights decay
    apart from the gradient, and with ``decay_biases`` all parameters are weights.

    Args:
        lr: the learning rate after the warm-up.
        beta1: Adam's, of the mean.
        eps: Adam's.
        warmup: in steps.
        grad_clip: the greatest norm of a gradient; below 0: any.
        weight_decay: its rate.
        beta2: Adam's, of the square.
        decay_biases: whether biases and scales decay, too.
    """
    rate = (lambda i: lr * jnp.minimum(i / warmup, 1.0)) if warmup > 0 else lr
    clip = _clip(grad_clip) if grad_clip >= 0 else optax.identity()
    decay = optax.add_decayed_weights(weight_decay, None if decay_biases else _no_biases)
    # As optax.adamw, and with its state, but nothing is computed for a decay of 0.
    adam = optax.chain(
        optax.scale_by_adam(beta1, beta2, eps),
        decay if weight_decay else optax.identity(),
        optax.scale_by_learning_rate(rate),
    )
    return optax.chain(clip, adam)


def _no_biases(params: Params) -> Any:
    """Whether each parameter is another than a bias.

    Biases of NIN are called b, and those of Flow++ end so. As published, the b of a schedule
    (``gamma``) decays.
    """

    def decays(path: Any, _: Any) -> bool:
        *above, name = (part.key for part in path)
        return name != "bias" and not name.endswith("_b") and (name != "b" or "gamma" in above)

    return jax.tree.map_with_path(decays, params)


def _clip(limit: float) -> optax.GradientTransformation:
    """Clips by global norm. A factor for all: XLA keeps no array of a clipped gradient."""

    def clip(grads: Params, _: Params) -> Params:
        share = limit / jnp.maximum(optax.tree.norm(grads), limit)
        return jax.tree.map(lambda g: g * share.astype(g.dtype), grads)

    return optax.stateless(clip)


def init_state(
    params: Params, optimizer: optax.GradientTransformation, memory: Any = ()
) -> TrainState:
    """The state before the first step.

    Args:
        params: the parameters.
        optimizer: of optax.
        memory: of the loss.
    """
    # A copy, since a step reuses the memory of the state that it is given, each array once. Of 16
    # bits it has 32: an average in fewer stands still, since what a step adds is rounded away.
    ema = jax.tree.map(lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32)), params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params), memory)


@dataclass(frozen=True)
class Rule:
    """A training step, as a function that a program is compiled of.

    Args:
        optimizer: makes updates of gradients.
        ema_rate: the share of the average that a step keeps.
        gather: makes the images of a step.
        accumulate: into so many parts a batch is split. Part j has the images j, j + accumulate,
            ... and the key ``fold_in(key of the step, j)``; of one part, the key of the step.
    """

    optimizer: optax.GradientTransformation
    ema_rate: float
    gather: Gather
    accumulate: int = 1

    def step(self, fixed: Fixed, state: TrainState, batch: Any) -> tuple[TrainState, Row]:
        """One step: the gradient of a batch, or the sum over its parts, and the update."""
        # A barrier: however images come, what is computed from them is the same, to the last bit.
        images = jax.lax.optimization_barrier(self.gather(fixed[2], batch))
        key = jax.random.fold_in(fixed[0], state.step)
        if self.accumulate == 1:
            return self._update(state, _gradient(fixed, state, images, key))
        # Every so manyth image, so that a batch split over devices stays where it is.
        parts = images.reshape(-1, self.accumulate, *images.shape[1:])

        def part(number: Any) -> Gradient:
            found = _gradient(fixed, state, parts[:, number], jax.random.fold_in(key, number))
            return jax.tree.map(lambda f: f / self.accumulate, found)

        def add(total: Gradient, number: Any) -> tuple[Gradient, None]:
            return jax.tree.map(jnp.add, total, part(number)), None

        shapes = jax.eval_shape(part, jnp.zeros((), int))
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(add, nothing, jnp.arange(self.accumulate))
        return self._update(state, total)

    def _update(self, state: TrainState, found: Gradient) -> tuple[TrainState, Row]:
        """The state after a gradient."""
        (value, more), grads = found
        update = optax.with_extra_args_support(self.optimizer).update
        updates, opt_state = update(grads, state.opt_state, state.params, value=value)
        params = optax.apply_updates(state.params, updates)
        # Not r e + (1 - r) p: in 32 bits these two weights add up to 1 - 1.7e-8 for r = 0.9999, by
        # which each step would make the average smaller. Still what is rounded away is lost: a
        # parameter that stands still within 3e-4 of its average no longer moves it at that rate.
        share = 1 - self.ema_rate
        ema = jax.tree.map(lambda e, p: e + share * (p.astype(e.dtype) - e), state.ema, params)
        logged = {name: each for name, each in more.items() if name != MEMORY}
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), **logged}
        memory = more.get(MEMORY, state.memory)
        return TrainState(state.step + 1, params, ema, opt_state, memory), metrics


def _gradient(fixed: Fixed, state: TrainState, images: Array, key: PRNGKey) -> Gradient:
    """The loss, the other numbers that it gives, and its gradient."""
    memory = () if isinstance(state.memory, tuple) else (state.memory,)

    def both(params: Params) -> tuple[Scalar, dict[str, Any]]:
        found = fixed[1](params, images, key, *memory)
        value, more = found if isinstance(found, tuple) else (found, {})
        real = value is not None and jnp.issubdtype(jnp.result_type(value), jnp.floating)
        if not real or jnp.shape(value):
            raise UserError(
                f"a loss is a real number, such as a mean over examples, not {shown(value)}"
            )
        return value, more

    return jax.value_and_grad(both, has_aux=True)(state.params)
