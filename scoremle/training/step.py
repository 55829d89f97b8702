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
    times slower inside a loop (measured with 0.10.2): so there are two calls for each step, for
    the gradient and for the update. A batch is taken in ``accumulate`` parts, one after the other.
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
    places: Any = None,
) -> Program:
    """The same for k batches, stacked, from which ``gather`` makes the images of a step.

    It may take them from ``resident`` arrays; then a batch is, for example, numbers of images. The
    gradient of a batch is the mean over ``accumulate`` parts of it, one after the other, so that
    memory holds the activations of one. Part j has the images j, j + accumulate, ... and the key
    ``fold_in(key of the step, j)``; of one part, the key of the step. ``places`` are the shardings
    of a state; None: whole on each device.
    """
    on_cpu = jax.default_backend() == "cpu"
    # Arguments, not constants: the compiled program is the same for every seed and all images, and
    # does not hold the arrays of the loss.
    held = loss if isinstance(loss, Partial) else Partial(loss)
    fixed = (jax.random.key(seed), *devices.replicate((held, resident)))

    def images_of(fixed: Fixed, batch: Any) -> IntImages:
        # A barrier: however images come, what is computed from them is the same, to the last bit.
        return jax.lax.optimization_barrier(gather(fixed[2], batch))

    def gradient(fixed: Fixed, params: Params, images: IntImages, key: PRNGKey) -> Any:
        return jax.value_and_grad(_with_more(fixed[1]), has_aux=True)(params, images, key)

    def whole(fixed: Fixed, state: TrainState, batch: Any) -> Any:
        key = jax.random.fold_in(fixed[0], state.step)
        return gradient(fixed, state.params, images_of(fixed, batch), key)

    def part(fixed: Fixed, state: TrainState, images: IntImages, number: Any) -> Any:
        # Every so manyth image, so that a batch split over devices stays where it is.
        split = images.reshape(-1, accumulate, *images.shape[1:])
        key = jax.random.fold_in(jax.random.fold_in(fixed[0], state.step), number)
        found = gradient(fixed, state.params, split[:, number], key)
        return jax.tree.map(lambda f: f / accumulate, found)

    def nothing(fixed: Fixed, state: TrainState, batch: Any) -> Any:
        shapes = jax.eval_shape(part, fixed, state, images_of(fixed, batch), jnp.zeros((), int))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(fixed: Fixed, state: TrainState, total: Any, batch: Any, number: Any) -> Any:
        found = part(fixed, state, images_of(fixed, batch), number)
        return jax.tree.map(jnp.add, total, found)

    def update(state: TrainState, found: Any) -> tuple[TrainState, dict[str, Array]]:
        (value, more), grads = found
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = jax.tree.map(lambda e, p: ema_rate * e + (1 - ema_rate) * p, state.ema, params)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), **more}
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    def one(fixed: Fixed, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        if accumulate == 1:
            return update(state, whole(fixed, state, batch))
        total, _ = jax.lax.scan(
            lambda total, number: (add(fixed, state, total, batch, number), None),
            nothing(fixed, state, batch), jnp.arange(accumulate),
        )  # fmt: skip
        return update(state, total)

    def fused(
        fixed: Fixed, state: TrainState, batches: Batches
    ) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(functools.partial(one, fixed), state, batches)

    # The result is where the argument was, so that the next call is the same program.
    everywhere: Any = devices.replicated()
    places = places or TrainState(*[everywhere] * 4)
    result, gradients = (places, everywhere), (everywhere, places.params)
    if not on_cpu:
        jitted = jax.jit(fused, donate_argnums=1, out_shardings=result)
        return Program(jitted, fixed, one_by_one=False, accumulate=accumulate)
    # All of the state is an argument, so that XLA's account of the memory has all of it.
    compiled = functools.partial(
        devices.compiled, gradients=True, keep_unused=True, out_shardings=gradients
    )
    of_batch = compiled(whole)
    if accumulate > 1:
        of_batch = _Parts(compiled(nothing), compiled(add, donate_argnums=2), accumulate)
    updated = devices.compiled(update, donate_argnums=0, out_shardings=result)
    return Program(_TwoCalls(of_batch, updated), fixed, one_by_one=True, accumulate=accumulate)


@dataclass(frozen=True)
class _TwoCalls:
    """A step on a CPU. Two programs compile sooner than one that does both, and run no slower."""

    gradient: Any
    update: Any

    def __call__(self, fixed: Fixed, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        return self.update(state, self.gradient(fixed, state, batch))

    def lower(self, fixed: Fixed, state: TrainState, batch: Any) -> jax.stages.Lowered:
        """Of the call that takes the memory."""
        return self.gradient.lower(fixed, state, batch)


@dataclass(frozen=True)
class _Parts:
    """The gradient of a batch on a CPU, a call for each part: a loop would be slow there, too."""

    nothing: Any
    add: Any
    parts: int

    def __call__(self, fixed: Fixed, state: TrainState, batch: Any) -> Any:
        total = self.nothing(fixed, state, batch)
        for number in range(self.parts):
            total = self.add(fixed, state, total, batch, number)
        return total

    def lower(self, fixed: Fixed, state: TrainState, batch: Any) -> jax.stages.Lowered:
        total = self.nothing.lower(fixed, state, batch).out_info
        return self.add.lower(fixed, state, total, batch, 0)


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
        # Where its result will lie: else the second call would be compiled anew.
        state = devices.replicate(state)
        state, metrics = stacked(state, images if axes == 5 else images[None])
        return state, metrics if axes == 5 else {name: m[0] for name, m in metrics.items()}

    return step
