"""Where arrays lie: whole on each device, or their rows split over all devices."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from scoremle.errors import UserError

__all__ = ["check_devices", "replicate", "replicated", "split_rows"]

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


def replicated(devices: Devices = None) -> NamedSharding:
    """Whole on each device."""
    return _placement(devices)


def replicate(tree: Any, devices: Devices = None) -> Any:
    """The arrays of a tree, whole on each device."""
    return jax.device_put(tree, replicated(devices))


def split_rows(tree: Any, devices: Devices = None, *, axis: int = 0) -> Any:
    """The arrays of a tree, the rows of this axis split over the devices.

    Every process knows the whole arrays, and sends its own devices their rows.
    """
    placement = _placement(devices, *[None] * axis, AXIS)

    def split(array: np.ndarray) -> Array:
        return jax.make_array_from_callback(array.shape, placement, lambda rows: array[rows])

    return jax.tree.map(split, tree)


def _placement(devices: Devices, *axes: str | None) -> NamedSharding:
    mesh = Mesh(np.array(devices or jax.devices()), (AXIS,))
    return NamedSharding(mesh, PartitionSpec(*axes))
