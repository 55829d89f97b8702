"""Bounds of what a file of others may be and claim, each with its reason.

A size that a file declares is compared with one of these, or with the bytes that are there, before
room is made for it. What is named twice counts twice.
"""

import io
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from scoremle.errors import UserError

# A file that is open, or content as one.
File = io.BufferedReader | io.BytesIO

# Bytes of a file ---------------------------------------------------------------------------------

# JSON, also the header of a .safetensors: more than any record has. It becomes objects of up to
# twenty times its size.
LONGEST_JSON = 8 << 20
# The pickle in a .pt, which has names and shapes: of 6000 tensors it has 1 MB. It becomes objects
# of up to seventy times its size.
LONGEST_PICKLE = 4 << 20
# Logs and tables of text: a row for each step of the longest published training has 260 MB.
MAX_TEXT = 512 << 20
# What is read whole. The largest real file is a batch of ImageNet 64x64, 1.6 GB.
MAX_FILE = 4 << 30
# Parameters: a network of pixels with 4e9 of them, the largest known, has 17 GB.
MAX_MODEL = 32 << 30
# Arrays of images, which are mapped and not read: ImageNet at 256x256 has 250 GB.
MAX_ARRAYS = 1 << 40
# A batch of CIFAR, all of which are in memory at once, or a file of SVHN. The largest has 182 MB.
MAX_BATCH = 256 << 20
# CelebA's list of 200,000 names has 4 MB.
MAX_PARTITION = 64 << 20
# Pixels of a picture. Above this Pillow itself warns of a decompression bomb. They take 320 MB,
# and twice that while a progressive JPEG is decoded, or one with alpha is put on white.
MAX_PIXELS = 80_000_000
# No file of so many pixels is longer, even as a BMP with 4 bytes for each.
MAX_PICTURE = 4 * MAX_PIXELS + (1 << 20)
# Networks of pixels are of 1024 at most: beyond this, what is taken to be an image fills a memory.
LARGEST_SIDE = 1 << 12
# The most pixels in all scans of a JPEG together. A progressive one has ten or twenty scans.
MAX_SCANNED = 1 << 31

# Parts of a file ---------------------------------------------------------------------------------

# Names and attributes of a member of a tar, and the header of a .npy. Longer ones also take old
# Pythons minutes to read.
MAX_HEADER = 64 << 10
# The list of members of a zip: 150 MB for the PNG files of ImageNet.
MAX_LISTING = 256 << 20
# Named things in a file of parameters. The largest published state has 6000.
MAX_ENTRIES = 100_000
# Commands of a pickle. Those of batches and of parameters have up to 300,000. Each makes 100 bytes
# at most, beside what the file holds.
MAX_COMMANDS = 1 << 21
# Tensors of a file share storages where weights are tied: all together they have no more than so
# many times its size.
MOST_SHARED = 4
# The most axes of an array: numpy allows 64, and files here have 5 at most.
MAX_AXES = 32

# What becomes of a file --------------------------------------------------------------------------

# Memory that a .xz may need: xz -9 makes files that need 65 MiB.
MAX_XZ = 256 << 20
# Images hardly compress; even black ones as BMP stay below this, and bombs are at 1000 and more.
# So it is with holes: bytes that a file has, and that take no place on the disk.
MAX_RATIO = 200
# What unpacks to less is not a bomb.
SMALL = 64 << 20
CHUNK = 1 << 20


def check_size(where: str | Path, size: int, limit: int) -> None:
    """Raises UserError for what is longer than any real file of its kind, before it is read."""
    if not 0 <= size <= limit:
        raise UserError(
            f"{where}: refused: of {size} bytes; files of its kind have {limit} at most"
        )


def check_ratio(where: str | Path, unpacked: int, packed: int) -> None:
    """Raises UserError for what unpacks to far more than images do."""
    if unpacked > SMALL and unpacked > MAX_RATIO * packed:
        raise UserError(
            f"{where}: refused: it unpacks to more than {MAX_RATIO} times its size, as a"
            " decompression bomb does"
        )


def array_bytes(shape: Sequence[Any], itemsize: int) -> int:
    """The bytes of an array of a declared shape. Raises ValueError for an invalid shape.

    Args:
        shape: as a file has it, which may be of anything.
        itemsize: bytes of a number.
    """
    if len(shape) > MAX_AXES or not all(type(n) is int and 0 <= n <= MAX_ARRAYS for n in shape):
        raise ValueError("a shape is not a short list of whole numbers")
    return math.prod(shape) * itemsize


def read_no_further(stream: Any, limit: int) -> bytes:
    """Up to ``limit`` bytes, for which no room is made before they are there."""
    chunks = []
    while limit and (chunk := stream.read(min(limit, CHUNK))):
        chunks.append(chunk)
        limit -= len(chunk)
    return b"".join(chunks)


# Zips, and arrays in them ------------------------------------------------------------------------


@contextmanager
def open_zip(file: File, where: str | Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip, and checks the sizes that its members state.

    Raises UserError for one that unpacks to far more than it has.
    """
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(_Listed(file)) as archive:
        infos = archive.infolist()
        check_ratio(where, sum(info.file_size for info in infos), size)
        for info in infos:
            # Python unpacks the others without any bound.
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(
                    f"{where}: its member {info.filename!r} is neither stored nor deflated; pack"
                    " it with the default settings of zip"
                )
        yield archive


class _Listed:
    """A file that refuses zipfile a list of members that is longer than ``MAX_LISTING``."""

    def __init__(self, file: File) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if size > MAX_LISTING:
            raise zipfile.BadZipFile(f"its list of members has {size} bytes")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The content of a member, no longer than the zip says."""
    with archive.open(info) as stream:
        return read_no_further(stream, info.file_size)


def read_arrays(file: File, where: str | Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a .npz. One that is damaged may raise any exception.

    Pickled objects and bombs are refused.
    """
    with open_zip(file, where) as archive:
        infos = archive.infolist()
        check_size(where, sum(info.file_size for info in infos), MAX_FILE)
        members = ((info.filename, read_member(archive, info)) for info in infos)
        return {name.removesuffix(".npy"): _array(content) for name, content in members}


def _array(content: bytes) -> np.ndarray:
    """A .npy, without a copy."""
    return np.ndarray(buffer=content, **npy_header(io.BytesIO(content), len(content)))


def npy_header(stream: File, size: int) -> dict[str, Any]:
    """The header of a .npy of so many bytes: numpy's arguments for the array that it declares.

    One that is damaged may raise any exception. Pickled objects are refused, and an array that is
    longer than the file.
    """
    form, start = np.lib.format, stream.read(12)
    # In version 1 the header's length has 2 bytes. numpy reads the header before it checks that.
    if start[6:7] != b"\x01" and int.from_bytes(start[8:], "little") > MAX_HEADER:
        raise ValueError(f"its header has more than {MAX_HEADER} bytes")
    stream.seek(0)
    headers = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}
    shape, fortran, kind = headers[form.read_magic(stream)](stream)
    if kind.hasobject:
        raise ValueError("it holds pickled objects, which could run code")
    if not kind.itemsize or array_bytes(shape, kind.itemsize) > size - stream.tell():
        raise ValueError("its shape contradicts its size")
    order = "F" if fortran else "C"
    return {"shape": shape, "dtype": kind, "order": order, "offset": stream.tell()}
