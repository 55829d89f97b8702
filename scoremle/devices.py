"""Where arrays lie, whole on each device or their rows split over all, and what room they have.

The devices are those of all processes of a run.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from scoremle.errors import UserError

__all__ = [
    "Memory", "Needs", "check_devices", "fetch", "in_gib", "memory", "needs", "replicate",
    "replicated", "split_rows", "within_memory",
]  # fmt: skip

AXIS = "data"


Devices = Sequence[jax.Device] | None  # all, if None


def check_devices() -> None:
    """Raises UserError if JAX finds nothing to compute on, before it is asked to compute."""
    try:
        jax.devices()
    except Exception as error:  # an assertion, where the plugin of an asked platform is missing
        text = next(iter(str(error).splitlines()), type(error).__name__).partition(" (set ")[0]
        asked = jax.config.values["jax_platforms"]
        raise UserError(
            f"JAX finds no device (JAX_PLATFORMS is {asked!r}): {text}; unset JAX_PLATFORMS, or"
            " install JAX for that platform"
        ) from None


class Memory(NamedTuple):
    """Bytes that a device has, and those that are free."""

    whole: int
    free: int


def memory() -> Memory | None:
    """Of the first device; None if nothing tells.

    A CPU's is the machine's or its container's; where several devices are made of it, each has its
    share.
    """
    device = jax.local_devices()[0]
    if stats := device.memory_stats():
        whole = stats.get("bytes_limit", 0)
        return Memory(whole, whole - stats.get("bytes_in_use", 0)) if whole else None
    return _of_machine() if device.platform == "cpu" else None


def _of_machine() -> Memory | None:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        whole, free = (os.sysconf(f"SC_{name}_PAGES") * page for name in ("PHYS", "AVPHYS"))
    except (AttributeError, OSError, ValueError):  # the system does not tell
        return None
    with suppress(OSError, ValueError, StopIteration):  # more: what it would give up for us
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(x for x in lines if x.startswith("MemAvailable:")).split()[1])
    with suppress(OSError, ValueError):  # "max" where there is no limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        whole, free = min(whole, limit), min(free, limit - used)
    count = jax.local_device_count()
    return Memory(whole // count, free // count)


class Needs(NamedTuple):
    """Bytes on each device: of what a program is given, and of what it makes beside that.

    ``given`` are parameters, the state and images, ``work`` activations, gradients and results.
    """

    given: int
    work: int


def needs(lowered: jax.stages.Lowered) -> Needs | None:
    """Of a program, which is compiled for that; None where XLA does not tell."""
    found = lowered.compile().memory_analysis()
    if found is None:
        return None
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    return Needs(found.argument_size_in_bytes, found.temp_size_in_bytes + new)


def in_gib(size: float) -> str:
    """A number of bytes, for people."""
    return f"{size / 2**30:.3g} GiB"


def within_memory(program: Any) -> Callable[..., Any]:
    """The same compiled function, which raises MemoryError where its work is more than is free.

    So on a CPU, by XLA's account, before the first call of each shape: the system would kill the
    process. Other devices raise an error of their own.
    """
    known: set[Any] = set()

    def call(*arguments: Any, **static: Any) -> Any:
        shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(arguments))
        if shapes not in known and jax.default_backend() == "cpu":
            _check_room(program.lower(*arguments, **static))
            known.add(shapes)
        return program(*arguments, **static)

    return call


def _check_room(lowered: jax.stages.Lowered) -> None:
    there, wanted = memory(), needs(lowered)
    if there and wanted and wanted.work > there.free:
        raise MemoryError(f"{in_gib(wanted.work)} are needed, {in_gib(there.free)} are free")


def fetch(tree: Any) -> Any:
    """The arrays of a tree, whole, as numpy, in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(_whole, tree)


def _whole(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_replicated:
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def replicated(devices: Devices = None) -> NamedSharding:
    """Whole on each device."""
    return _placement(devices)


def replicate(tree: Any, devices: Devices = None) -> Any:
    """The arrays of a tree, whole on each device."""
    placement = replicated(devices)
    if jax.process_count() == 1:
        return jax.device_put(tree, placement)

    def spread(leaf: Any) -> Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf  # it is there already
        if jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(spread(jax.random.key_data(leaf)))
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, placement, lambda rows: whole[rows])

    return jax.tree.map(spread, tree)


def split_rows(tree: Any, devices: Devices = None, *, axis: int = 0) -> Any:
    """The arrays of a tree, the rows of this axis split over the devices.

    Every process knows the whole arrays, and sends its own devices their rows.
    """
    placement = _placement(devices, *[None] * axis, AXIS)

    def split(leaf: Array | np.ndarray) -> Array:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(split(jax.random.key_data(leaf)))
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, placement, lambda rows: array[rows])

    return jax.tree.map(split, tree)


def _placement(devices: Devices, *axes: str | None) -> NamedSharding:
    mesh = Mesh(np.array(devices or jax.devices()), (AXIS,))
    return NamedSharding(mesh, PartitionSpec(*axes))
