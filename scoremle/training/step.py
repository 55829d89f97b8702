"""One step of maximum likelihood, fused k at a time.

Step i (from 0) draws its images from ``batch(i)`` and its randomness from
``fold_in(key(seed), i)``, so a state is four things and to resume needs nothing else:

    g = grad loss(p);  g <- g clip / max(|g|, clip);  p <- p - lr min(i / warmup, 1) Adam(g)
    e <- r e + (1 - r) p

The averaged parameters e begin at the initial ones, without bias correction, as published.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from scoremle import devices
from scoremle.types import AnyArray, IntImages, PRNGKey

__all__ = [
    "Loss", "Metrics", "Program", "Step", "TrainState", "init_state", "make_optimizer",
    "make_program", "make_step",
]  # fmt: skip

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


@dataclass(frozen=True)
class Program:
    """k steps, called with a state and k batches. ``jitted`` makes all, or one if ``one_by_one``.

    On a CPU a call costs nothing beside a step, and XLA runs the gradients of convolutions twenty
    times slower inside a loop (measured with 0.10.2): so there it is a call for each step. A batch
    is taken in ``accumulate`` parts, one after the other.
    """

    jitted: Any
    fixed: Fixed
    one_by_one: bool
    accumulate: int = 1

    def __call__(self, state: TrainState, batches: Batches) -> tuple[TrainState, Metrics]:
        if not self.one_by_one:
            return self.jitted(self.fixed, state, batches)
        rows = []
        for i in range(len(jax.tree.leaves(batches)[0])):
            state, row = self.jitted(self.fixed, state, _batch(batches, i))
            rows.append(row)
        return state, {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}

    def lower(self, state: TrainState, batches: Batches) -> jax.stages.Lowered:
        """What XLA is given for a call with these, or with shapes like theirs."""
        given = _batch(batches, 0) if self.one_by_one else batches
        return self.jitted.lower(self.fixed, state, given)


def _batch(batches: Batches, i: int) -> Any:
    """One of them, or its shape where they are shapes."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype)
        if isinstance(a, jax.ShapeDtypeStruct) else a[i],
        batches,
    )  # fmt: skip


def make_step(
    loss: Loss, optimizer: optax.GradientTransformation, ema_rate: float, *, seed: int = 0
) -> Step:
    """Compile ``step(state, images)``: one step for a batch [b h w c], k for batches [k b h w c].

    ``loss`` may be a ``jax.tree_util.Partial`` that holds arrays, such as a network that is not
    trained. The metrics are ``loss``, ``grad_norm`` before clipping, and what the loss adds:
    scalars of a batch, arrays [k] of k. The state given is used up: its memory becomes that of the
    state returned. Raises ValueError for images of another number of axes.
    """
    return _of_images(make_program(loss, optimizer, ema_rate, seed=seed))


def make_program(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    ema_rate: float,
    *,
    seed: int = 0,
    resident: Any = (),
    gather: Gather = lambda resident, batch: batch,
    accumulate: int = 1,
) -> Program:
    """The same for k batches, stacked, from which ``gather`` makes the images of a step.

    It may take them from ``resident`` arrays; then a batch is, for example, numbers of images. The
    gradient of a batch is the mean over ``accumulate`` parts of it, one after the other, so that
    memory holds the activations of one. Part j has the images j, j + accumulate, ... and the key
    ``fold_in(key of the step, j)``; of one part, the key of the step.
    """
    on_cpu = jax.default_backend() == "cpu"
    # Arguments, not constants: the compiled program is the same for every seed and all images, and
    # does not hold the arrays of the loss.
    held = loss if isinstance(loss, Partial) else Partial(loss)
    fixed = (jax.random.key(seed), *devices.replicate((held, resident)))

    def one(
        fixed: Fixed, state: TrainState, batch: Any
    ) -> tuple[TrainState, dict[str, Array]]:
        key, loss, resident = fixed
        # A barrier: however images come, what is computed from them is the same, to the last bit.
        images = jax.lax.optimization_barrier(gather(resident, batch))
        step_key = jax.random.fold_in(key, state.step)
        gradient = jax.value_and_grad(_with_more(loss), has_aux=True)
        if accumulate > 1:
            gradient = _of_parts(gradient, accumulate, unroll=on_cpu)
        (value, more), grads = gradient(state.params, images, step_key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = jax.tree.map(lambda e, p: ema_rate * e + (1 - ema_rate) * p, state.ema, params)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), **more}
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    def fused(
        fixed: Fixed, state: TrainState, batches: Batches
    ) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(functools.partial(one, fixed), state, batches)

    # The result is where the argument was, so that the next call is the same program.
    jitted = jax.jit(
        one if on_cpu else fused, donate_argnums=1, out_shardings=devices.replicated()
    )
    return Program(jitted, fixed, one_by_one=on_cpu, accumulate=accumulate)


def _of_parts(
    gradient: Callable[..., Any], parts: int, *, unroll: bool
) -> Callable[[Params, IntImages, PRNGKey], Any]:
    """The mean of a function over the parts of a batch, each with a key of its own."""

    def mean(params: Params, images: IntImages, key: PRNGKey) -> Any:
        # Every so manyth image, so that a batch split over devices stays where it is.
        split = images.reshape(-1, parts, *images.shape[1:]).swapaxes(0, 1)

        def add(total: Any, part: tuple[Array, IntImages]) -> tuple[Any, None]:
            number, images = part
            # A barrier: the part before is done, and its activations are gone.
            total, images = jax.lax.optimization_barrier((total, images))
            found = gradient(params, images, jax.random.fold_in(key, number))
            return jax.tree.map(lambda t, f: t + f / parts, total, found), None

        shapes = jax.eval_shape(gradient, params, split[0], key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, zeros, (jnp.arange(parts), split), unroll=unroll)[0]

    return mean


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
