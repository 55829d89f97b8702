"""Check that a training step fits the free memory, by XLA's own account of the program."""

import logging

import jax

from scoremle import devices
from scoremle.devices import Needs, in_gib, needs
from scoremle.errors import UserError
from scoremle.training.program import Program
from scoremle.training.saving import bytes_of_copy
from scoremle.training.step import Batches, Metrics, Step, TrainState

__all__ = ["checked", "largest_batch"]

logger = logging.getLogger(__name__)


def largest_batch(room: int, small: tuple[int, Needs], large: tuple[int, Needs]) -> int:
    """The batch whose work fills so many bytes, on the line through two batches; 0 if none does.

    It divides over the devices.
    """
    (few, of_few), (many, of_many) = small, large
    an_image = max((of_many.work - of_few.work) / (many - few), 1.0)
    alone = of_few.work - few * an_image
    count = jax.device_count()
    return max(int((room - alone) / an_image), 0) // count * count


def checked(program: Program, lighter: str | None = None) -> Step:
    """The same steps, but the first call compares what they need with what is free.

    ``lighter``: a field of the config, with a value that makes them need less. Raises UserError if
    the device could never hold what they need, and warns if it can't now. Either names a batch
    that fits, and that field.
    """
    known = False

    def step(state: TrainState, batches: Batches) -> tuple[TrainState, Metrics]:
        nonlocal known
        if not known:
            _check(program, state, batches, lighter)
            known = True
        return program(state, batches)

    return step


def _check(program: Program, state: TrainState, batches: Batches, lighter: str | None) -> None:
    there, wanted = devices.memory(), needs(program.lower(state, batches))
    copy = bytes_of_copy(state)
    if there is None or wanted is None or wanted.work + copy <= there.free:
        return
    size = jax.tree.leaves(batches)[0].shape[1]
    copied = f" and {in_gib(copy)} of its copy, to be saved" if copy else ""
    words = (
        f"a step of batch_size={size} needs {in_gib(wanted.work)} beside"
        f" {in_gib(wanted.given)} of state{copied}, and"
    )
    fits = _fitting(program, state, batches, there.free - copy, wanted)
    remedy = _remedy(program, size, fits) + (f"; {lighter} needs less" if lighter else "")
    if wanted.given + copy + wanted.work > there.whole:
        raise UserError(f"{words} the device has {in_gib(there.whole)}: {remedy}")
    logger.warning("%s %s are free now: %s", words, in_gib(there.free), remedy)


def _fitting(
    program: Program, state: TrainState, batches: Batches, room: int, wanted: Needs
) -> int:
    """The largest batch whose work fits, by this one's and that of half of it; 0 if none does."""
    size, least = jax.tree.leaves(batches)[0].shape[1], jax.device_count() * program.accumulate
    half = size // 2 // least * least
    fewer = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(
            (a.shape[0], half, *a.shape[2:]), a.dtype, sharding=a.sharding
        ),
        batches,
    )
    of_half = needs(program.lower(state, fewer)) if half else None
    return largest_batch(room, (half, of_half), (size, wanted)) if of_half else 0


def _remedy(program: Program, size: int, fits: int) -> str:
    """Settings that fit the memory: the batch ``fits``, or more accumulation for ``size``."""
    if not fits:
        return "no batch fits: take a smaller network"
    now, count = program.accumulate, jax.device_count()
    parts = [n for n in range(now + 1, size + 1)
             if size % (n * count) == 0 and size * now <= n * fits]  # fmt: skip
    other = f", or accumulate={parts[0]} with this one" if parts else ""
    return f"batch_size={fits} fits{other}"
