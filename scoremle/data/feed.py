"""Transfer of the images of a training step to the device.

Either all images lie on the device, and a step gathers its own by their indices; or a thread
reads the next batches ahead (of a mapped file, from disk) and sends them. Both give the same
images, since both are the same function of (seed, step).
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from scoremle.data.image_set import BatchRows, ImageSet
from scoremle.types import AnyArray

# Of the device's memory, which the network needs more than the data.
SHARE = 1 / 4
# Where the device does not report its memory: on a CPU, which has that of the process.
USUAL_MEMORY = 4 << 30
AHEAD = 8


class Feed(NamedTuple):
    """``gather(resident, batch_of(images)(step))`` are the images of a step; it runs within it.

    They are the images that the feed was made for, or the same in another order.
    """

    resident: Any
    gather: Callable[[Any, Any], Array]
    batch_of: Callable[[ImageSet], Callable[[int], Any]]


def feed(images: ImageSet, on_device: str = "auto") -> Feed:
    """Makes a Feed of training images.

    Args:
        images: whose training images a step needs.
        on_device: "true": all lie on the device; "auto": if they take at most a quarter of its
            memory. Else the next batches are read ahead.
    """
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", USUAL_MEMORY)
    fits = images.train.nbytes <= SHARE * memory
    if on_device == "true" or (on_device == "auto" and fits):
        return Feed(images.train, _gather, lambda ordered: ordered.rows)
    return Feed((), lambda _, batch: batch, lambda ordered: Prefetch(ordered.batch))


def _gather(images: AnyArray, rows: BatchRows) -> Array:
    batch = jnp.asarray(images)[rows.indices]
    return jnp.where(rows.flipped[:, None, None, None], batch[:, :, ::-1], batch)


class Prefetch:
    """``batch``, whose next values a thread makes while steps come in order."""

    def __init__(self, batch: Callable[[int], np.ndarray], ahead: int = AHEAD) -> None:
        self._batch, self._ahead = batch, ahead
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._coming: dict[int, Future[np.ndarray]] = {}

    def __call__(self, step: int) -> np.ndarray:
        wanted = range(step, step + self._ahead + 1)
        for other in self._coming.keys() - set(wanted):
            self._coming.pop(other).cancel()
        for next_step in wanted:
            if next_step not in self._coming:
                self._coming[next_step] = self._pool.submit(self._batch, next_step)
        return self._coming[step].result()
