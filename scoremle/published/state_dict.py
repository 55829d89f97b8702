"""Flax's msgpack state dicts, the format of published checkpoints: reads them safely, and writes.

A state dict is one message of nested maps with names as keys. An array in it is an extension of
type 1, whose content is a message of its own: (shape, name of the dtype, bytes). Type 3 is the
same for a scalar, type 2 a complex number. An array beyond 2**30 bytes is a map of its shape and
of flat chunks. (flax.serialization, flax 0.3.3 to 0.12.)

Whoever made a file may have meant harm. Nothing in a message is code; what it claims (lengths,
shapes, numbers of entries) is checked against the bytes that are there before memory is taken. A
first pass finds the end of the message without building anything.
"""

import mmap
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np

from scoremle.bounded import MAX_ENTRIES, MAX_MODEL, array_bytes
from scoremle.errors import UserError
from scoremle.files import opened, write_bytes
from scoremle.training.checkpoints import Damaged

__all__ = ["read", "write"]

Tree = dict[str, Any]

ARRAY, COMPLEX, SCALAR = 1, 2, 3
CHUNKED = "__msgpack_chunked_array__"
CHUNK_BYTES = 2**30
LIMITS = {  # names have 30 letters
    "max_str_len": 1000,
    "max_bin_len": 0,
    "max_array_len": 0,
    "max_map_len": MAX_ENTRIES,
    "max_ext_len": CHUNK_BYTES + 1000,
}
DTYPES = {
    name: np.dtype(getattr(jnp, name))
    for name in (
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float16", "bfloat16", "float32", "float64", "complex64", "complex128",
    )
} | {"bool": np.dtype(bool)}  # fmt: skip


def read(path: Path) -> Tree:
    """The nested dict of arrays in a file.

    Args:
        path: of the file.

    Raises Damaged if it is not one, or not whole.
    """
    entries = 0

    def as_map(pairs: list[tuple[str, Any]]) -> Any:
        nonlocal entries
        entries += len(pairs)
        if entries > MAX_ENTRIES:
            raise ValueError(f"more than {MAX_ENTRIES} entries")
        tree = dict(pairs)
        return _joined(tree) if CHUNKED in tree else tree

    try:
        with opened(path, MAX_MODEL) as file:
            _check_whole(file, os.fstat(file.fileno()).st_size)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                tree = msgpack.unpackb(
                    content, ext_hook=_extension, object_pairs_hook=as_map, **LIMITS
                )
    except msgpack.OutOfData:
        raise Damaged("it ends too early") from None
    except UserError:
        raise
    except (ValueError, msgpack.UnpackException) as error:
        raise Damaged(f"not a flax checkpoint: {error or type(error).__name__}") from None
    if not isinstance(tree, dict):
        raise Damaged("not a flax checkpoint: no map of names")
    return tree


def write(path: Path, tree: Tree) -> None:
    """Writes a nested dict of arrays, in the order that it has.

    Args:
        path: of the file.
        tree: nested dicts of arrays.
    """
    content = msgpack.packb(tree, default=_packed, strict_types=True)
    write_bytes(path, content)


def _check_whole(file: Any, size: int) -> None:
    """Walks once through the message, keeping nothing of it."""
    unpacker = msgpack.Unpacker(file, max_buffer_size=2 * CHUNK_BYTES, **LIMITS)
    unpacker.skip()
    if unpacker.tell() != size:
        raise ValueError(f"{size - unpacker.tell()} bytes follow its end")


def _joined(tree: Tree) -> np.ndarray:
    """The array of a map of chunks."""
    try:
        shape, chunks = (
            [part[str(i)] for i in range(len(part))] for part in (tree["shape"], tree["chunks"])
        )
        whole = np.concatenate(chunks)
        if array_bytes(shape, whole.itemsize) != whole.nbytes:
            raise ValueError("an array whose shape is not that of its chunks")
        return whole.reshape(shape)
    except (KeyError, TypeError):
        raise ValueError("an array with chunks missing") from None


def _extension(code: int, content: bytes) -> Any:
    if code == COMPLEX:
        parts = msgpack.unpackb(content, max_array_len=2)
        pair = isinstance(parts, list) and len(parts) == 2
        if not pair or not all(isinstance(part, float) for part in parts):
            raise ValueError("a complex number of other than two parts")
        return complex(*parts)
    if code not in (ARRAY, SCALAR):
        raise ValueError(f"an extension of type {code}")
    array = _array(content)
    return array if code == ARRAY else array[()]


def _array(content: bytes) -> np.ndarray:
    """A view of the bytes, once shape, dtype and length are found to agree."""
    parts = msgpack.unpackb(content, raw=True, max_array_len=32, max_map_len=0, max_ext_len=0)
    if not isinstance(parts, list) or len(parts) != 3:
        raise ValueError("an array of other than shape, dtype and bytes")
    shape, name, data = parts
    if not (isinstance(shape, list) and isinstance(name, bytes) and isinstance(data, bytes)):
        raise ValueError("an array of other than shape, dtype and bytes")
    dtype = DTYPES.get(name.decode("ascii", "replace"))
    if dtype is None:
        raise ValueError(f"an array of {name[:20]!r}, which is not a numeric type")
    size = array_bytes(shape, dtype.itemsize)
    if size != len(data):
        raise ValueError(f"an array of {size} bytes by its shape {shape} that has {len(data)}")
    return np.frombuffer(data, dtype).reshape(shape)


def _packed(value: Any) -> msgpack.ExtType:
    array = np.asarray(value)
    parts = array.shape, array.dtype.name, array.tobytes()
    return msgpack.ExtType(ARRAY, msgpack.packb(parts))
