"""The programs of training steps: k of them in one on an accelerator, two for each on a CPU.

On a CPU a call costs nothing beside a step, and XLA runs JAX's gradients of convolutions twenty
times slower inside a loop (measured with 0.10.2), where a network has not those of
``nn/convolution.py``. So there are two calls for each step, for the gradient and for the update,
and one for each part of a batch that is taken in parts.
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from scoremle import devices
from scoremle.errors import UserError
from scoremle.training.step import Batches, Fixed, Gather, Loss, Metrics, Rule, Step, TrainState
from scoremle.types import IntImages

__all__ = ["Program", "make_program", "make_step"]


@dataclass(frozen=True)
class Program:
    """k steps, called with a state and k batches. ``jitted`` makes all, or one if ``one_by_one``.

    A batch is taken in ``accumulate`` parts, one after the other.
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

    def compile(self, state: TrainState, batches: Batches) -> None:
        """What a call with these needs, if it is not compiled yet."""
        if self.one_by_one:
            self.jitted.compile(self.fixed, state, _batch(batches, 0))

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
    state returned. Raises UserError for images of another number of axes.
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
    memory holds the activations of one. ``places`` are the shardings of a state; None: whole on
    each device.
    """
    rule = Rule(optimizer, ema_rate, gather, accumulate)
    # Arguments, not constants: the compiled program is the same for every seed and all images, and
    # does not hold the arrays of the loss.
    held = loss if isinstance(loss, Partial) else Partial(loss)
    fixed = (jax.random.key(seed), *devices.replicate((held, resident)))
    # The result is where the argument was, so that the next call is the same program.
    everywhere: Any = devices.replicated()
    places = places or TrainState(*[everywhere] * 4)
    result = (places, everywhere)
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu:
        updated = _compiled(rule.update, donate_argnums=0, out_shardings=result)
        jitted: Any = _TwoCalls(_gradient(rule, (everywhere, places.params)), updated)
    else:
        jitted = jax.jit(rule.steps, donate_argnums=1, out_shardings=result)
    return Program(jitted, fixed, one_by_one=on_cpu, accumulate=accumulate)


# A gradient has sums, and its norm is one.
_compiled = functools.partial(devices.compiled, gradients=True)


def _gradient(rule: Rule, places: Any) -> Any:
    """The call, or calls, for the gradient of a batch on a CPU."""
    # All of the state is an argument, so that XLA's account of the memory has all of it.
    compiled = functools.partial(_compiled, keep_unused=True, out_shardings=places)
    if rule.accumulate == 1:
        return compiled(rule.whole)
    return _Parts(compiled(rule.nothing), compiled(rule.add, donate_argnums=2), rule.accumulate)


@dataclass
class _TwoCalls:
    """A step on a CPU. Two programs compile at the same time, and run no slower than one."""

    gradient: Any
    update: Any
    compiled: bool = False

    def __call__(self, fixed: Fixed, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        self.compile(fixed, state, batch)
        return self.update(state, self.gradient(fixed, state, batch))

    def compile(self, fixed: Fixed, state: TrainState, batch: Any) -> None:
        """Both at once, for the first batch: most of XLA's work on one keeps one core busy."""
        if self.compiled:
            return
        gradient = self.gradient.lower(fixed, state, batch)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(gradient.compile)
            self.update.lower(state, gradient.out_info).compile()
            other.result()
        self.compiled = True

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


def _of_images(stacked: Step) -> Step:
    """The same for one batch of images, which is a stack of one, or for a stack of them."""

    def step(state: TrainState, images: IntImages) -> tuple[TrainState, Metrics]:
        if (axes := np.ndim(images)) not in (4, 5):
            raise UserError(
                "images must be [b h w c], for one step, or [k b h w c], for k steps, not of shape"
                f" {np.shape(images)}"
            )
        # Where its result will lie: else the second call would be compiled anew.
        state = devices.replicate(state)
        state, metrics = stacked(state, images if axes == 5 else images[None])
        return state, metrics if axes == 5 else {name: m[0] for name, m in metrics.items()}

    return step
