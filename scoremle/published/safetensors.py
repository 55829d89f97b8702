"""Arrays in one plain file, the safetensors format (version 0.3 and later of its library).

Eight bytes give the length of a JSON header: name -> dtype, shape, and where its bytes begin and
end in what follows. Written by hand, since the format is shorter than a dependency.
"""

import json
import os
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from scoremle.bounded import LONGEST_JSON, MAX_MODEL, File, array_bytes
from scoremle.errors import UserError, damaged
from scoremle.files import named, opened, write_atomically

__all__ = ["is_file", "notes", "read", "write"]

DTYPES = {
    "float32": "F32", "float16": "F16", "float64": "F64", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "bool": "BOOL",
    "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64",
}  # fmt: skip
KINDS = {kind: jnp.dtype(name) for name, kind in DTYPES.items()}
ALIGNMENT = 8
NOTES = "__metadata__"
NOT_WHOLE = "not a complete safetensors file"


def write(path: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> None:
    """Writes named arrays, and notes beside them.

    Args:
        path: of the file.
        arrays: by name.
        notes: texts by name.
    """
    header: dict[str, object] = {NOTES: dict(notes)}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        kind = DTYPES[array.dtype.name]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())


def is_file(path: Path) -> bool:
    """Whether this is a file of tensors, by its ending or its first bytes.

    Args:
        path: of any file.
    """
    with opened(named(path), MAX_MODEL) as file:
        begin = file.read(9)
    return path.suffix == ".safetensors" or begin[8:] == b"{"


def read(path: Path) -> dict[str, np.ndarray]:
    """The named arrays of a file, mapped from disk. Raises UserError if it is damaged.

    Args:
        path: of the file.
    """
    with opened(path, MAX_MODEL) as file, damaged(path, NOT_WHOLE, ""):
        start, header = _header(file)
        header.pop(NOTES, None)
        for other in {facts["dtype"] for facts in header.values()} - KINDS.keys():
            raise UserError(f"{path}: tensors of type {other!r:.20} are not read; F32 is")
        # Once, since each mapping is an open file, of which a process may have a thousand.
        content = np.memmap(file, np.uint8, "r")[start:]
        arrays = {name: _array(content, facts) for name, facts in header.items()}
        spans = sorted(facts["data_offsets"] for facts in header.values())
        if any(one[1] > other[0] for one, other in pairwise(spans)):
            raise ValueError("tensors lie over each other")
    return arrays


def notes(path: Path) -> dict[str, str]:
    """The notes beside the arrays of a file. Raises UserError if it is damaged.

    Args:
        path: of the file.
    """
    with opened(path, MAX_MODEL) as file, damaged(path, NOT_WHOLE, ""):
        found = _header(file)[1].get(NOTES, {})
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise ValueError("its notes are not texts")
    return found


def _header(file: File) -> tuple[int, dict[str, Any]]:
    """Reads the header, and the offset at which the arrays begin."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    # The format allows 100 MB; networks that are read here have 100 kB.
    if size < 8 or not 2 <= length <= min(size - 8, LONGEST_JSON):
        raise ValueError("its header is cut off")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    return 8 + length, header


def _array(content: np.ndarray, facts: Mapping[str, Any]) -> np.ndarray:
    dtype, shape = KINDS[facts["dtype"]], tuple(facts["shape"])
    begin, end = facts["data_offsets"]
    if not all(type(n) is int for n in (begin, end)) or not 0 <= begin <= end <= len(content):
        raise ValueError("a tensor lies outside of it")
    if array_bytes(shape, dtype.itemsize) != end - begin:
        raise ValueError("a tensor has another size than its shape")
    return content[begin:end].view(dtype).reshape(shape)
