"""Where arrays lie, and the processes that share the work.

An array lies whole on each device, or its rows are split over all devices. A run may be several
processes, each with devices of its own: all run the same program on the same numbers, the first
writes files and talks, and they agree at which step to stop.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from scoremle.errors import UserError
from scoremle.files import leave_writing_to_others
from scoremle.terminal import mute

__all__ = [
    "asked_to_stop", "check_devices", "fetch", "join", "replicate", "replicated", "split_rows",
    "together",
]  # fmt: skip

AXIS = "data"
# Seconds without a sign of life, after which a process is taken for dead and all others end.
HEARTBEAT = 30


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


def join(coordinator: str = "", processes: int | None = None, process: int | None = None) -> None:
    """Makes this process one of a run; to be called before anything else of JAX.

    Args:
        coordinator: HOST:PORT of the first process; '': as the cluster says (SLURM, Open MPI,
            Kubernetes, cloud TPU).
        processes: how many there are; None: as the cluster says.
        process: which of them this is, from 0; None: as the cluster says.

    Raises UserError where the cluster does not say it, and if the others can't be reached.
    """
    jax.config.update("jax_enable_preemption_service", True)
    try:
        jax.distributed.initialize(
            coordinator or None, processes, process, heartbeat_timeout_seconds=HEARTBEAT
        )
    except (ValueError, RuntimeError) as error:
        text = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"the processes of this run can't be joined: {text}; say --coordinator=HOST:PORT,"
            " --processes=N and --process=I, or start them by a cluster that JAX knows"
        ) from None
    # All devices meet now. Later, one that still compiles would keep the others waiting too long.
    ones = split_rows(np.ones(jax.device_count(), np.float32))
    jax.block_until_ready(jax.jit(jnp.sum, out_shardings=replicated())(ones))
    if jax.process_index():
        leave_writing_to_others()
        mute()


def asked_to_stop(call: int) -> bool:
    """Has any process of a run been asked to end (SIGTERM)? All get the same answer at a call.

    Each gives the number of its call, one more each time: they stop at the first call that none
    has made yet. A process alone has no others to ask.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(call)


def together(what: str) -> None:
    """Waits until all processes of a run are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


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
