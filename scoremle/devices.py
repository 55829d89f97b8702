"""Where arrays lie: whole on each device, or their rows split over all devices."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

__all__ = ["replicate", "replicated", "split_rows"]

AXIS = "data"


def replicated() -> NamedSharding:
    """Whole on each device."""
    return _placement()


def replicate(tree: Any) -> Any:
    """The arrays of a tree, whole on each device."""
    return jax.device_put(tree, replicated())


def split_rows(tree: Any, axis: int = 0) -> Any:
    """The arrays of a tree, the rows of this axis split over all devices.

    Every process knows the whole arrays, and sends its own devices their rows.
    """
    placement = _placement(*[None] * axis, AXIS)

    def split(array: np.ndarray) -> Array:
        return jax.make_array_from_callback(array.shape, placement, lambda rows: array[rows])

    return jax.tree.map(split, tree)


def _placement(*axes: str | None) -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.devices()), (AXIS,)), PartitionSpec(*axes))
