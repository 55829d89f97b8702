"""SHA-256 of all numbers of a tree, also where no process has an array whole.

Such an array is hashed in parts, one for each device, by the process that has it. The hashes of
the parts are an array themselves, with a row for each device.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from scoremle.devices import part_axis, split_rows, to_numpy

__all__ = ["model_hash", "tree_hash"]

Named = Iterable[tuple[str, Any]]
# The place of an object in memory, in words: another one in each process.
PLACE = re.compile(r" at 0x[0-9a-f]+")


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree, by name and in order."""
    named = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in named]


def tree_hash(tree: Any) -> str:
    """Hash in hexadecimal of the names, dtypes, shapes and values of all leaves.

    Args:
        tree: of arrays.
    """
    return hash_of(named_leaves(tree))


def model_hash(model: Any) -> str:
    """``tree_hash`` of a model, and of what its numbers mean: the fields that are not leaves.

    A function counts by its name.

    Args:
        model: a pytree.
    """
    structure = PLACE.sub("", str(jax.tree.structure(model)))
    return hash_of([(structure, np.zeros(0)), *named_leaves(model)])


def hash_of(named: Named, in_parts: Collection[str] = ()) -> str:
    """The hash of the tree with these leaves, without the values of those ``in_parts``.

    One leaf at a time is fetched from its devices.
    """
    digest = hashlib.sha256()
    for name, leaf in named:
        values = leaf if name in in_parts else np.asarray(to_numpy(leaf))
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
        if name not in in_parts:
            digest.update(values.tobytes())
    return digest.hexdigest()


def part_axes(named: Named) -> dict[str, int]:
    """The leaves of which each device has a part, by name, and the axis that is split."""
    axes = ((name, part_axis(leaf)) for name, leaf in named)
    return {name: axis for name, axis in axes if axis is not None}


def part_hashes(named: Named, axes: Mapping[str, int]) -> UInt8[jax.Array, "n k 32"]:
    """SHA-256 of each device's shard of each leaf, for n devices and k leaves.

    A process hashes the shards of its own devices.
    """
    found, count = dict(named), jax.device_count()
    rows = np.zeros((count, len(axes), 32), np.uint8)
    for column, (name, axis) in enumerate(axes.items()):
        size = found[name].shape[axis]
        for part in found[name].addressable_shards:
            first = part.index[axis].indices(size)[0]
            rows[first * count // size, column] = _sha256(part.data)
    return split_rows(rows)


def same_parts(named: Named, axes: Mapping[str, int], hashes: UInt8[np.ndarray, "n k 32"]) -> bool:
    """Whether the leaves are unchanged since their parts were hashed."""
    found = dict(named)
    return all(
        np.array_equal(_sha256(part), hashes[row, column])
        for column, (name, axis) in enumerate(axes.items())
        for row, part in enumerate(np.split(np.asarray(to_numpy(found[name])), len(hashes), axis))
    )


def _sha256(values: Any) -> UInt8[np.ndarray, "32"]:
    return np.frombuffer(hashlib.sha256(np.asarray(values).tobytes()).digest(), np.uint8)
