"""The program of a training step, called once for each of k batches."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from scoremle import devices, xla
from scoremle.training.step import Batches, Fixed, Gather, Loss, Metrics, Rule, TrainState

__all__ = ["Program", "make_program"]


@dataclass(frozen=True)
class Program:
    """k steps, called with a state and k batches, each of which is taken in ``accumulate`` parts.

    ``jitted`` makes one step.
    """

    jitted: Any
    fixed: Fixed
    accumulate: int = 1

    def __call__(self, state: TrainState, batches: Batches) -> tuple[TrainState, Metrics]:
        rows = []
        for i in range(len(jax.tree.leaves(batches)[0])):
            state, row = self.jitted(self.fixed, state, _batch(batches, i))
            rows.append(row)
        return state, {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}

    def lower(self, state: TrainState, batches: Batches) -> jax.stages.Lowered:
        """The program that XLA is given for a call with these, or with shapes like theirs."""
        return self.jitted.lower(self.fixed, state, _batch(batches, 0))


def _batch(batches: Batches, i: int) -> Any:
    """One of them, or its shape where they are shapes."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype)
        if isinstance(a, jax.ShapeDtypeStruct) else a[i],
        batches,
    )  # fmt: skip


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
    """Compiles a step for k batches, stacked, from which ``gather`` makes the examples of a step.

    ``loss`` may be a ``jax.tree_util.Partial`` that holds arrays, such as a network that is not
    trained. The metrics are ``loss``, ``grad_norm`` before clipping, and what the loss adds:
    arrays [k]. The state given is used up: its memory becomes that of the state returned.
    ``gather`` may take the examples from ``resident`` arrays; then a batch is, for example,
    numbers of images. The gradient of a batch is the mean over ``accumulate`` parts of it, one
    after the other, so that memory holds the activations of one. ``places`` are the shardings of a
    state; None: whole on each device.
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
    # All of the state is an argument, so that XLA's account of the memory has all of it.
    jitted = xla.compiled(
        rule.step, gradients=True, donate_argnums=1, keep_unused=True, out_shardings=result
    )
    return Program(jitted, fixed, accumulate)
