"""SVHN in format 2: train_32x32.mat and test_32x32.mat with X [32 32 3 n] and y [n 1].

The digit 0 has the label 10 in the files and 0 here. The extra images are not read.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from scoremle.bounded import MAX_MAT, check_ratio, check_size
from scoremle.data.archive import Source
from scoremle.data.readers.base import Chunk, Options, Reading, as_labels
from scoremle.errors import UserError, damaged

NUMBERS = {"uint8", "int8", "uint16", "int16", "uint32", "int32", "single", "double"}
COMPRESSED, ARRAY = 15, 14
# So much at once becomes 16 MiB at most.
PIECE = 16 << 10
FILES = {"train_32x32.mat": "train", "test_32x32.mat": "test"}


def read_svhn(path: Path, options: Options) -> Reading:
    source = Source(path)
    return Reading(_chunks(source), source.sha256)


def _chunks(source: Source) -> Iterator[Chunk]:
    missing = set(FILES)
    for name, content in source.files(lambda n: n.rsplit("/", 1)[-1] in FILES, MAX_MAT):
        file = name.rsplit("/", 1)[-1]
        missing.remove(file)
        images, labels = _read(content, f"{source.path}: {name}")
        yield Chunk(images, FILES[file], source.done, labels)
    if missing:
        raise UserError(f"{source.path}: no {', '.join(sorted(missing))} in it")


def _read(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    from scipy.io import loadmat, whosmat

    with damaged(where, "truncated or no .mat file"):
        content = _unpacked(content, where)
        _check_lengths(content)
        # Cells may hold cells, so deep that scipy's reader overflows the stack.
        kinds = {kind for name, _, kind in whosmat(io.BytesIO(content)) if name in ("X", "y")}
        if not kinds <= NUMBERS:
            raise ValueError(f"X or y is of {', '.join(sorted(kinds))}")
        found = loadmat(io.BytesIO(content), variable_names=["X", "y"])
    x, y = found.get("X"), found.get("y")
    if x is None or y is None or x.dtype != np.uint8 or x.shape[:3] != (32, 32, 3) or x.ndim != 4:
        raise UserError(f"{where}: lacks X, uint8 of shape (32, 32, 3, n), or y")
    return x.transpose(3, 0, 1, 2), as_labels(y.ravel(), x.shape[3], where) % 10


def _unpacked(content: bytes, where: str) -> bytes:
    """The file without compression: scipy then reads no more than is there, whatever it claims.

    A header of 128 bytes ends with the byte order; then parts follow: kind, length, content.
    """
    tag = _tag(content)
    parts, place, length = [content[:128]], 128, 0
    while place < len(content):
        kind, size = tag.unpack_from(content, place)
        part = content[place : place + 8 + size]
        place += len(part)
        for piece in _inflated(part[8:]) if kind == COMPRESSED else (part,):
            length += len(piece)
            check_size(where, length, MAX_MAT)
            check_ratio(where, length, len(content))
            parts.append(piece)
    return b"".join(parts)


def _tag(content: bytes) -> struct.Struct:
    """Kind and length of a part, in the file's order of bytes."""
    return struct.Struct({b"IM": "<2I", b"MI": ">2I"}[content[126:128]])


def _check_lengths(content: bytes) -> None:
    """Raises ValueError for a part of an array that is longer than it: scipy makes room first."""
    tag, place = _tag(content), 128
    while place < len(content):
        kind, size = tag.unpack_from(content, place)
        end = place + 8 + size
        place = place + 8 if kind == ARRAY else end
        while place < end:
            kind, size = tag.unpack_from(content, place)
            # A short one has its length beside its kind, and its content in place of the length.
            place += 8 if kind >> 16 else 8 + size + -size % 8
        if place > min(end, len(content)):
            raise ValueError("a part is longer than what it is in")


def _inflated(packed: bytes) -> Iterator[bytes]:
    unpack = zlib.decompressobj()
    for start in range(0, len(packed), PIECE):
        if not unpack.eof:
            yield unpack.decompress(packed[start : start + PIECE])
