"""Arrays in one plain file, the safetensors format (version 0.3 and later of its library).

Eight bytes give the length of a JSON header: name -> dtype, shape, and where its bytes begin and
end in what follows. Written by hand, since the format is shorter than a dependency.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from scoremle.files import write_atomically

__all__ = ["write"]

DTYPES = {"float32": "F32", "float16": "F16", "float64": "F64", "int32": "I32", "uint8": "U8"}
ALIGNMENT = 8


def write(path: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> None:
    """Writes named arrays, and notes beside them."""
    header: dict[str, object] = {"__metadata__": dict(notes)}
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
