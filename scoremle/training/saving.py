"""Asynchronous saves of a training's state.

A step uses up the state that it is given, so the loop waits until the memory of the host has a
copy of it. A thread does the rest: the hash, the files, the disk. It computes nothing on devices,
since processes of one run must meet there in the same order. Each process copies and writes its
parts of what is split, the first one all else, and they meet again where they wait for it.
"""

import logging
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import jax
import numpy as np

from scoremle.devices import in_host_memory, part_axis, to_numpy
from scoremle.files import is_writer
from scoremle.processes import together
from scoremle.training.checkpoints import Checkpoints

__all__ = ["Saving", "bytes_of_copy"]

logger = logging.getLogger(__name__)


class Saving:
    """Saves one state at a time, as a copy, to one store after the other.

    As a context manager it waits at the end until all is on disk, also after an error, which is
    then raised. If a save failed meanwhile, a line says so.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "save")
        self._under_way: Future[None] | None = None

    def copy(self, state: Any) -> Any:
        """A state to save, when the one before is on disk. All processes of a run call it.

        Args:
            state: a tree of arrays.
        """
        self.wait()
        return jax.tree.map(_copy, state)

    def save(self, store: Checkpoints, number: int, copy: Any, note: dict[str, Any]) -> None:
        """Begins to save a copy, after what is under way; if that fails, not at all.

        Args:
            store: the checkpoints.
            number: of the checkpoint.
            copy: what ``copy`` gave.
            note: in values of JSON.
        """
        self._under_way = self._thread.submit(_save, self._under_way, store, number, copy, note)

    def wait(self) -> None:
        """Returns when all is on disk, in all processes. Raises what a save raised."""
        if under_way := self._under_way:
            wait([under_way])  # an interrupt leaves it under way
            self._under_way = None
            under_way.result()
            together("save")

    def __enter__(self) -> "Saving":
        return self

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self.wait()
            elif self._under_way and (own := self._under_way.exception()):
                logger.error("%s", own)  # other processes may not be here to meet
        finally:
            self._thread.shutdown()


def _copy(leaf: Any) -> Any:
    """Copies to host memory what this process has to write; the rest becomes a placeholder."""
    if part_axis(leaf) is not None:
        return in_host_memory(leaf)
    if not is_writer():
        return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)  # it takes no memory
    # On a CPU what is fetched is the memory of the state itself, which the next step uses up.
    return np.array(to_numpy(leaf))


def _save(
    before: Future[None] | None, store: Checkpoints, number: int, copy: Any, note: dict[str, Any]
) -> None:
    if before:
        before.result()
    store.save(number, copy, note)


def bytes_of_copy(state: Any) -> int:
    """Bytes of each device's memory that a copy takes: its share on a CPU, else 0.

    Args:
        state: a tree of arrays.
    """

    def of(leaf: Any) -> int:
        split = part_axis(leaf) is not None
        count = jax.device_count() if split else jax.local_device_count()
        return leaf.size * leaf.dtype.itemsize // count

    on_cpu = jax.default_backend() == "cpu"
    return sum(map(of, jax.tree.leaves(state))) if on_cpu else 0
