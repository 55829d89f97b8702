"""The program of a training step, called once for each of k batches; and whether it fits.

By XLA's own account of the program, compared with the memory that there is.
"""

import logging
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from scoremle import devices, xla
from scoremle.core.keys import key_of
from scoremle.devices import Needs, in_gib, needs
from scoremle.errors import UserError
from scoremle.training.saving import bytes_of_copy
from scoremle.training.step import Batches, Fixed, Gather, Loss, Metrics, Rule, Step, TrainState

__all__ = ["Program", "checked", "largest_batch", "make_program"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Program:
    """A compiled training step, which is called once for each of k batches.

    Args:
        jitted: makes one step.
        fixed: arrays that no step changes.
        accumulate: parts of a batch.
    """

    jitted: Any
    fixed: Fixed
    accumulate: int = 1

    def __call__(self, state: TrainState, batches: Batches) -> tuple[TrainState, Metrics]:
        rows = []
        for i in range(len(jax.tree.leaves(batches)[0])):
            state, row = self.jitted(self.fixed, state, jax.tree.map(itemgetter(i), batches))
            rows.append(row)
        return state, {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}

    def lower(self, state: TrainState, batch: Any) -> jax.stages.Lowered:
        """The program that XLA is given for a step with these, or with shapes like theirs.

        Args:
            state: before the step.
            batch: of one step.
        """
        return self.jitted.lower(self.fixed, state, batch)


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
    """Compiles a training step.

    It is called with k batches, stacked. The metrics are ``loss``, ``grad_norm`` before clipping,
    and what the loss adds: arrays [k]. The state given is used up: its memory becomes that of the
    state returned.

    Args:
        loss: may be a ``jax.tree_util.Partial`` that holds arrays, such as a network that is not
            trained.
        optimizer: of optax.
        ema_rate: of the moving average of the parameters.
        seed: of all randomness.
        resident: arrays on the devices, from which ``gather`` may take the examples.
        gather: makes the examples of a step from ``resident`` and a batch, which may be numbers of
            images.
        accumulate: parts of a batch, which are taken one after the other, so that memory holds the
            activations of one. Its gradient is their mean.
        places: the shardings of a state; None: whole on each device.
    """
    rule = Rule(optimizer, ema_rate, gather, accumulate)
    # Arguments, not constants: the compiled program is the same for every seed and all images, and
    # does not hold the arrays of the loss.
    held = loss if isinstance(loss, Partial) else Partial(loss)
    fixed = (key_of(seed), *devices.replicate((held, resident)))
    # The result is where the argument was, so that the next call is the same program.
    everywhere: Any = devices.replicated()
    result = (places or everywhere, everywhere)
    # All of the state is an argument, so that XLA's account of the memory has all of it.
    jitted = xla.compiled(
        rule.step, gradients=True, donate_argnums=1, keep_unused=True, out_shardings=result
    )
    return Program(jitted, fixed, accumulate)


def largest_batch(room: int, small: tuple[int, Needs], large: tuple[int, Needs]) -> int:
    """The largest batch that fits ``room``, if memory is linear in the batch; 0 if none fits.

    It is a multiple of the number of devices.

    Args:
        room: in bytes.
        small: a batch, and what it needs.
        large: another batch, and what it needs.
    """
    (few, of_few), (many, of_many) = small, large
    an_image = max((of_many.work - of_few.work) / (many - few), 1.0)
    alone = of_few.work - few * an_image
    count = jax.device_count()
    return max(int((room - alone) / an_image), 0) // count * count


def checked(program: Program, lighter: str | None = None) -> Step:
    """The steps of a program, of which the first compares what they need with what is free.

    It warns if the device can't hold that now. The warning and the error name a batch that fits,
    and the field.

    Args:
        program: the steps.
        lighter: a field of the config, with a value that makes them need less; None: there is
            none.

    Raises UserError if the device could never hold what they need.
    """
    known = False

    def step(state: TrainState, batches: Batches) -> tuple[TrainState, Metrics]:
        nonlocal known
        if not known:
            _check(program, state, jax.tree.map(itemgetter(0), batches), lighter)
            known = True
        return program(state, batches)

    return step


def _check(program: Program, state: TrainState, batch: Any, lighter: str | None) -> None:
    room, wanted = devices.memory(), needs(program.lower(state, batch))
    copy = bytes_of_copy(state)
    if room is None or wanted is None or wanted.work + copy <= room.free:
        return
    size = len(jax.tree.leaves(batch)[0])
    copied = f" and {in_gib(copy)} of its copy, to be saved" if copy else ""
    words = (
        f"a step of batch_size={size} needs {in_gib(wanted.work)} beside"
        f" {in_gib(wanted.given)} of state{copied}, and"
    )
    fits = _fitting(program, state, batch, room.free - copy, wanted)
    remedy = _remedy(program, size, fits) + (f"; {lighter} needs less" if lighter else "")
    if wanted.given + copy + wanted.work > room.whole:
        raise UserError(f"{words} the device has {in_gib(room.whole)}: {remedy}")
    logger.warning("%s %s are free now: %s", words, in_gib(room.free), remedy)


def _fitting(program: Program, state: TrainState, batch: Any, room: int, wanted: Needs) -> int:
    """The largest batch whose work fits, by this one's and that of half of it; 0 if none does."""
    size, least = len(jax.tree.leaves(batch)[0]), jax.device_count() * program.accumulate
    half = size // 2 // least * least
    fewer = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((half, *a.shape[1:]), a.dtype, sharding=a.sharding), batch
    )
    of_half = needs(program.lower(state, fewer)) if half else None
    return largest_batch(room, (half, of_half), (size, wanted)) if of_half else 0


def _remedy(program: Program, size: int, fits: int) -> str:
    """A remedy where a batch of this size does not fit, and one of ``fits`` images does."""
    if not fits:
        return "no batch fits: take a smaller network"
    now, count = program.accumulate, jax.device_count()
    parts = [n for n in range(now + 1, size + 1)
             if size % (n * count) == 0 and size * now <= n * fits]  # fmt: skip
    other = f", or accumulate={parts[0]} with this one" if parts else ""
    return f"batch_size={fits} fits{other}"
