"""One step of maximum likelihood, fused k at a time.

Step i (from 0) draws its images from ``batch(i)`` and its randomness from
``fold_in(key(seed), i)``, so a state is four things and to resume needs nothing else:

    g = grad loss(p);  g <- g clip / max(|g|, clip);  p <- p - lr min(i / warmup, 1) Adam(g)
    e <- r e + (1 - r) p

The averaged parameters e begin at the initial ones, without bias correction, as published.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from scoremle import devices
from scoremle.types import AnyArray, IntImages, PRNGKey

__all__ = ["Loss", "Metrics", "Step", "TrainState", "init_state", "make_optimizer", "make_step"]

Params = Any
Metrics = dict[str, Float[AnyArray, "*k"]]
# Parameters, images and a key give the scalar to be minimised, alone or with further scalars to be
# logged.
Scalar = Float[Array, ""]
Loss = Callable[[Params, IntImages, PRNGKey], Scalar | tuple[Scalar, dict[str, Scalar]]]


class TrainState(NamedTuple):
    """All that training changes; ``step`` counts the updates made."""

    step: Int[Array, ""]
    params: Params
    ema: Params
    opt_state: optax.OptState


# The images of k steps, or whatever ``gather`` makes them from: arrays [k b ...].
Batches = Any
Step = Callable[[TrainState, Batches], tuple[TrainState, Metrics]]
# What lies on the device, and one batch, give the images of a step.
Gather = Callable[[Any, Any], IntImages]


def make_optimizer(
    *,
    lr: float,
    beta1: float,
    eps: float,
    warmup: int,
    grad_clip: float,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Clipping by global norm (none if ``grad_clip`` < 0), Adam, linear warm-up.

    With warm-up the very first update has rate 0, but Adam's moments take it in.
    """
    rate = (lambda i: lr * jnp.minimum(i / warmup, 1.0)) if warmup > 0 else lr
    clip = optax.clip_by_global_norm(grad_clip) if grad_clip >= 0 else optax.identity()
    adam = optax.adamw(rate, b1=beta1, b2=0.999, eps=eps, weight_decay=weight_decay)
    return optax.chain(clip, adam)


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    # A copy, since a step reuses the memory of the state that it is given, each array once.
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))


# The seed's key, the loss with what it holds, and arrays that stay on the device.
Fixed = tuple[PRNGKey, Any, Any]


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    ema_rate: float,
    *,
    seed: int = 0,
    resident: Any = (),
    gather: Gather | None = None,
) -> Step:
    """Compile ``step(state, images)``: one step for a batch [b h w c], k for batches [k b h w c].

    ``loss`` may be a ``jax.tree_util.Partial`` that holds arrays, such as a network that is not
    trained. The metrics are ``loss``, ``grad_norm`` before clipping, and what the loss adds:
    scalars of a batch, arrays [k] of k. The state given is used up: its memory becomes that of the
    state returned. With ``gather``, a step makes its images from the ``resident`` arrays and its
    batch, such as numbers of images; then batches are always k, stacked. Raises ValueError for
    images of another number of axes.
    """

    # Arguments, not constants: the compiled program is the same for every seed and all images, and
    # does not hold the arrays of the loss.
    held = loss if isinstance(loss, Partial) else Partial(loss)
    fixed = (jax.random.key(seed), *devices.replicate((held, resident)))

    def one(
        fixed: Fixed, state: TrainState, batch: Any
    ) -> tuple[TrainState, dict[str, Array]]:
        key, loss, resident = fixed
        # A barrier: however images come, what is computed from them is the same, to the last bit.
        images = jax.lax.optimization_barrier(gather(resident, batch) if gather else batch)
        step_key = jax.random.fold_in(key, state.step)
        (value, more), grads = jax.value_and_grad(_with_more(loss), has_aux=True)(
            state.params, images, step_key
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = jax.tree.map(lambda e, p: ema_rate * e + (1 - ema_rate) * p, state.ema, params)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), **more}
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    def fused(
        fixed: Fixed, state: TrainState, batches: Batches
    ) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(functools.partial(one, fixed), state, batches)

    on_cpu = jax.default_backend() == "cpu"
    # The result is where the argument was, so that the next call is the same program.
    jitted = jax.jit(
        one if on_cpu else fused, donate_argnums=1, out_shardings=devices.replicated()
    )
    compiled = functools.partial(jitted, fixed)
    stacked = _one_by_one(compiled) if on_cpu else compiled
    return stacked if gather else _of_images(stacked)


def _with_more(loss: Loss) -> Callable[..., tuple[Scalar, dict[str, Scalar]]]:
    """The loss with what it logs, which is nothing if it gives a scalar alone."""

    def both(*arguments: Any) -> tuple[Scalar, dict[str, Scalar]]:
        found = loss(*arguments)
        return found if isinstance(found, tuple) else (found, {})

    return both


def _of_images(stacked: Step) -> Step:
    """The same for one batch of images, which is a stack of one, or for a stack of them."""

    def step(state: TrainState, images: IntImages) -> tuple[TrainState, Metrics]:
        if (axes := np.ndim(images)) not in (4, 5):
            raise ValueError(
                "images must be [b h w c], for one step, or [k b h w c], for k steps, not of shape"
                f" {np.shape(images)}"
            )
        state, metrics = stacked(state, images if axes == 5 else images[None])
        return state, metrics if axes == 5 else {name: m[0] for name, m in metrics.items()}

    return step


def _one_by_one(single: Callable[..., Any]) -> Step:
    """The same as a fused step, a call for each step.

    On a CPU a call costs nothing beside a step, and XLA runs the gradients of convolutions twenty
    times slower inside a loop (measured with 0.10.2).
    """

    def step(state: TrainState, batches: Batches) -> tuple[TrainState, Metrics]:
        rows = []
        for i in range(len(jax.tree.leaves(batches)[0])):
            state, row = single(state, jax.tree.map(lambda array, i=i: array[i], batches))
            rows.append(row)
        return state, {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}

    return step
