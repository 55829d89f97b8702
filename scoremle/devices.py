"""Placement of arrays, whole on each device or sharded over all; and the memory that is free.

The devices are those of all processes of a run.
"""

import math
import os
import resource
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from scoremle.errors import UserError, first_line

AXIS = "data"
# Address space that the smallest model takes to be compiled and run, on two cores.
LEAST_ROOM = 2 << 30
# Arrays of fewer numbers stay whole on each device: little would be saved.
SMALL = 2**12
Devices = Sequence[jax.Device] | None  # all, if None


def check_devices() -> None:
    """Raises UserError if JAX finds nothing to compute on, before it has to compute."""
    try:
        jax.devices()
    except Exception as error:  # an assertion, where the plugin of a required platform is missing
        none = "none of that platform answers"
        text = first_line(error).partition(" (set ")[0] if str(error) else none
        names = jax.config.values["jax_platforms"]
        raise UserError(
            f"JAX finds no device (JAX_PLATFORMS is {names!r}): {text}; unset JAX_PLATFORMS, or"
            " install JAX for that platform"
        ) from None
    room = _address_space()
    if room and room.free < LEAST_ROOM and jax.default_backend() == "cpu":
        raise UserError(
            f"the address space has a limit of {in_gib(room.whole)} (ulimit -v), and of the"
            f" {in_gib(room.free)} that are left XLA needs {in_gib(LEAST_ROOM)} to compile: it"
            " would end the process without a word; raise the limit, or limit a container instead"
        )


class Memory(NamedTuple):
    """Bytes that a device has, and those that are free."""

    whole: int
    free: int


def memory() -> Memory | None:
    """Memory of the first device; None if it is unknown.

    A CPU has the memory of its machine or container, divided by the number of devices made of it.
    """
    device = jax.local_devices()[0]
    if stats := device.memory_stats():
        whole = stats.get("bytes_limit", 0)
        return Memory(whole, whole - stats.get("bytes_in_use", 0)) if whole else None
    if device.platform != "cpu" or (machine := memory_of_machine()) is None:
        return None
    count = jax.local_device_count()
    return Memory(machine.whole // count, machine.free // count)


def memory_of_machine() -> Memory | None:
    """Memory of this machine or container; None if it is unknown."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        whole, free = (os.sysconf(f"SC_{name}_PAGES") * page for name in ("PHYS", "AVPHYS"))
    except (AttributeError, OSError, ValueError):  # not known on this system
        return None
    with suppress(OSError, ValueError, StopIteration):  # with what can be freed
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(x for x in lines if x.startswith("MemAvailable:")).split()[1])
    with suppress(OSError, ValueError):  # "max" where there is no limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        with suppress(OSError, StopIteration):  # what the system keeps of files can be freed
            lines = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
            used -= int(next(x for x in lines if x.startswith("inactive_file ")).split()[1])
        whole, free = min(whole, limit), min(free, limit - used)
    if limited := _address_space():
        whole, free = min(whole, limited.whole), min(free, limited.free)
    return Memory(whole, free)


def _address_space() -> Memory | None:
    """The bytes of addresses that this process may have, and has left; None without a limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # no Linux
        return None
    return Memory(limit, limit - pages * resource.getpagesize())


def check_room(tree: Any) -> None:
    """Raises UserError where the arrays of a tree, which a file may only map, don't fit memory."""
    size, room = sum(leaf.nbytes for leaf in jax.tree.leaves(tree)), memory()
    if room and size > room.free:
        raise UserError(
            f"its arrays take {in_gib(size)} of memory, of which {in_gib(room.free)} are free"
        )


def placed(tree: Any) -> Any:
    """Copies of the arrays of a tree as JAX's. Raises UserError where memory does not suffice."""
    check_room(tree)
    return jax.device_put(tree, may_alias=False)  # jnp.asarray has a program for each shape


class Needs(NamedTuple):
    """Bytes on each device: of what a program is given, and of what it makes beside that.

    ``given`` are parameters, the state and images, ``work`` activations, gradients and results.
    """

    given: int
    work: int


def needs(lowered: jax.stages.Lowered) -> Needs | None:
    """Compiles a program and returns the memory that it needs; None if XLA does not report it."""
    found = lowered.compile().memory_analysis()
    if found is None:
        return None
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    return Needs(found.argument_size_in_bytes, found.temp_size_in_bytes + new)


def in_gib(size: float) -> str:
    """A number of bytes, for people."""
    return f"{size / 2**30:.3g} GiB"


# By program, shapes and types: XLA has to compile for it.
NEEDED: WeakKeyDictionary[Any, dict[Any, Needs | None]] = WeakKeyDictionary()


def within_memory(program: Any) -> Callable[..., Any]:
    """A compiled function that raises MemoryError where its work is more than is free.

    So on a CPU, by XLA's account, before the first call of each shape: the system would kill the
    process. Other devices raise an error of their own.
    """
    known: set[Any] = set()
    # Functions of models (`core/programs.py`) have a program for each model that is a function.
    parted = getattr(program, "parted", lambda *arguments, **static: (program, arguments, static))

    def call(*arguments: Any, **static: Any) -> Any:
        one, arguments, static = parted(*arguments, **static)
        leaves, structure = jax.tree.flatten(arguments)
        kinds = ((np.shape(leaf), getattr(leaf, "dtype", type(leaf))) for leaf in leaves)
        shapes = structure, *kinds, *static.items()
        if (one, shapes) not in known and jax.default_backend() == "cpu":
            needed = NEEDED.setdefault(one, {})
            if shapes not in needed:
                needed[shapes] = needs(one.lower(*arguments, **static))
            wanted, room = needed[shapes], memory()
            if room and wanted and wanted.work > room.free:
                text = f"{in_gib(wanted.work)} are needed, {in_gib(room.free)} are free"
                raise MemoryError(text)
            known.add((one, shapes))
        return one(*arguments, **static)

    return call


def to_numpy(tree: Any) -> Any:
    """The arrays of a tree, whole, as numpy, in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(_whole, tree)


def _whole(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_replicated:
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def of_this_process(leaf: Any) -> list[np.ndarray]:
    """The array, or this process's shards of it."""
    if part_axis(leaf) is None:
        return [np.asarray(leaf)]
    return [np.asarray(part.data) for part in leaf.addressable_shards]


def part_axis(leaf: Any) -> int | None:
    """The axis along which an array is split over several processes; None if each has it whole."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return None
    return cast(NamedSharding, leaf.sharding).spec.index(AXIS)


def in_host_memory(leaf: Array) -> Array:
    """A copy of an array that is split over several processes: each has its part in its host."""
    sharding = leaf.sharding.with_memory_kind("pinned_host")
    return jax.block_until_ready(jax.device_put(leaf, sharding))


def in_any_process(flags: np.ndarray) -> np.ndarray:
    """Combines flags by "or" over all processes; each gets the same result."""
    if jax.process_count() == 1:
        return flags
    return np.logical_or.reduce(np.asarray(multihost_utils.process_allgather(flags)))


def replicated(devices: Devices = None) -> NamedSharding:
    """Whole on each device."""
    return _placement(devices)


def replicate(tree: Any, devices: Devices = None) -> Any:
    """The arrays of a tree, whole on each device."""
    sharding = replicated(devices)
    return put(tree, jax.tree.map(lambda _: sharding, tree))


def shardings(tree: Any, *, sharded: bool) -> Any:
    """Shardings of the arrays of a tree: whole on each device, or ``sharded`` over all.

    Sharding splits the longest axis that divides by the number of devices; small arrays, and
    those without such an axis, stay whole.
    """

    def of(leaf: Any) -> NamedSharding:
        axis = split_axis(leaf.shape, jax.device_count()) if sharded else None
        return replicated() if axis is None else _placement(None, *[None] * axis, AXIS)

    return jax.tree.map(of, tree)


def split_axis(shape: Sequence[int], count: int) -> int | None:
    """The axis of a sharded array that is split over so many devices, if it is."""
    axes = [axis for axis, size in enumerate(shape) if size % count == 0]
    longest = max(axes, key=lambda axis: shape[axis], default=None)
    return longest if math.prod(shape) >= SMALL else None


def bytes_of_each(tree: Any, count: int) -> int:
    """Bytes that each of so many devices has of a tree that is sharded over them."""

    def of(leaf: Any) -> int:
        pieces = 1 if split_axis(leaf.shape, count) is None else count
        return leaf.size * leaf.dtype.itemsize // pieces

    return sum(map(of, jax.tree.leaves(tree)))


def put(tree: Any, places: Any) -> Any:
    """The arrays of a tree, each where its sharding says.

    An array that is not yet on the devices of all processes is whole in every process.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, places)
    return jax.tree.map(_put, tree, places)


def _put(leaf: Any, sharding: NamedSharding) -> Array:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        numbers = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda rows: whole[rows])


def split_rows(tree: Any, devices: Devices = None, *, axis: int = 0) -> Any:
    """The arrays of a tree, the rows of this axis split over the devices.

    Every process has the whole arrays, and sends its own devices their rows.
    """
    placement = _placement(devices, *[None] * axis, AXIS)
    return jax.tree.map(lambda leaf: _put(leaf, placement), tree)


def round_up(rows: int, devices: Devices = None) -> int:
    """Rounds a number of rows up to a multiple of the number of devices."""
    count = len(devices or jax.devices())
    return -(-rows // count) * count


def shared(tree: Any) -> Any:
    """Arrays of so many rows each, split over all devices if they divide, else whole on each."""
    rows = len(jax.tree.leaves(tree)[0])
    return split_rows(tree) if rows == round_up(rows) else replicate(tree)


def _placement(devices: Devices, *axes: str | None) -> NamedSharding:
    mesh = Mesh(np.array(devices or jax.devices()), (AXIS,))
    return NamedSharding(mesh, PartitionSpec(*axes))
