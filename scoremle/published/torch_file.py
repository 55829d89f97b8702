"""Files of ``torch.save``, read without PyTorch: arrays and plain containers of them.

Since version 1.6 a file is a zip: a pickle, ``NAME/data.pkl``, and the storages that it names,
each a member, ``NAME/data/KEY``. Before, it was five pickles, of which the fourth holds the
content and the fifth the keys of the storages; behind them lies each storage, its length first. A
tensor is a view of a storage.

The pickle is interpreted, as those of batches are (``data/unpickle.py``): what it may name are
tensors, their types, and the plainest containers.
"""

import io
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from scoremle.bounded import (
    LONGEST_PICKLE,
    MOST_SHARED,
    File,
    array_bytes,
    open_zip,
    read_member,
    read_no_further,
)
from scoremle.data.unpickle import KNOWN_NAMES, PickledName, PickleReader, of
from scoremle.errors import UserError, damaged

__all__ = ["check_zip"]

CONTENT = "/data.pkl"
# The first bytes of a zip, whose table of members is its end.
ZIP = b"PK\x03\x04"
# The first pickle of a file that is not a zip.
MAGIC = 0x1950A86A20F9469CFC6C
KINDS = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    "Bool": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class _Kind:
    """Stands for a class of storages, and for a type of numbers."""

    name: str


@dataclass(frozen=True)
class _Storage:
    kind: np.dtype
    content: bytes


class _Tensors(PickleReader):
    """Carries out a pickle whose storages ``find`` gives: by key, of so many bytes."""

    names: ClassVar[Mapping[str, Any]] = {
        **KNOWN_NAMES,
        **{f"torch.{name}Storage": _Kind(kind) for name, kind in KINDS.items()},
        **{f"torch.{kind}": _Kind(kind) for kind in KINDS.values()},
        "collections.OrderedDict": PickledName("OrderedDict"),
        "torch.Size": PickledName("Size"),
        "torch.device": PickledName("device"),
        "torch._utils._rebuild_tensor_v2": PickledName("tensor"),
        "torch._utils._rebuild_parameter": PickledName("parameter"),
    }

    def __init__(self, size: int, find: Callable[[str, int], bytes]) -> None:
        super().__init__(size)
        self._find, self._left = find, MOST_SHARED * size

    def stored(self, key: Any) -> _Storage:
        what, kind, name, _, count, *view = of(tuple, key)
        if what != "storage" or any(part is not None for part in view):
            raise ValueError("it names something else than storages")
        dtype = jnp.dtype(of(_Kind, kind).name)
        return _Storage(dtype, self._find(of(str, name), array_bytes((count,), dtype.itemsize)))

    def called(self, name: str, *arguments: Any) -> Any:
        match name, *arguments:
            case "tensor", _Storage() as storage, start, tuple(shape), tuple(steps), *how:
                if any(how[2:]):  # behind its gradient and hooks
                    raise ValueError("a tensor is a view of the conjugate of another one")
                return self._tensor(storage, start, shape, steps)
            case "parameter", np.ndarray() as array, *_:
                return array
            case ("OrderedDict",):
                return {}
            case ("Size", tuple(value)) | ("device", str(value), *_):
                return value
        return super().called(name, *arguments)

    def with_state(self, target: Any, state: Any) -> Any:
        # Of a state dict the versions of its modules, as an attribute.
        return target if isinstance(target, dict) else super().with_state(target, state)

    def _tensor(self, storage: _Storage, start: Any, shape: tuple, steps: tuple) -> np.ndarray:
        size = array_bytes(shape, storage.kind.itemsize)
        self._left -= size
        # Steps of zero make a large tensor of a few bytes.
        if size > len(storage.content) or self._left < 0:
            raise ValueError("its tensors have more numbers than there are in the file")
        first, *strides = (array_bytes((n,), storage.kind.itemsize) for n in (start, *steps))
        return np.ndarray(shape, storage.kind, storage.content, first, strides)


def is_zip(file: File) -> bool:
    """Whether this is a zip with a pickle that names its tensors."""
    try:
        with damaged("the zip", "odd or damaged"), open_zip(file, "the zip") as archive:
            return any(name.endswith(CONTENT) for name in archive.namelist())
    except UserError:
        return False


def read(file: File, size: int) -> Any:
    """The content of a file of so many bytes, its tensors as arrays.

    Raises UserError for what would run code or take far more memory than it has bytes; a damaged
    file may raise any exception.
    """
    return _of_zip(file, size) if zipfile.is_zipfile(file) else _of_pickles(file, size)


def check_zip(archive: zipfile.ZipFile, size: int) -> None:
    """Raises ValueError unless the members are no larger than the file, as PyTorch writes them.

    Args:
        archive: an opened file.
        size: its bytes.
    """
    if sum(info.file_size for info in archive.infolist()) > size:
        raise ValueError("its members are compressed, or overlap")


def _of_zip(file: File, size: int) -> Any:
    with open_zip(file, "the zip") as archive:
        check_zip(archive, size)
        members = {info.filename: info for info in archive.infolist()}
        (pickle,) = (name for name in members if name.endswith(CONTENT))
        if members[pickle].file_size > LONGEST_PICKLE:
            raise ValueError(f"its pickle has more than {LONGEST_PICKLE} bytes")
        folder, known = pickle.removesuffix(CONTENT), dict[str, bytes]()
        order = members.get(f"{folder}/byteorder")
        if order and read_member(archive, order) != b"little":
            raise ValueError("its numbers have another order of bytes")

        def find(name: str, length: int) -> bytes:
            if name not in known:
                known[name] = read_member(archive, members[f"{folder}/data/{name}"])
            if length > len(known[name]):
                raise ValueError("a storage is cut off")
            return known[name]

        return _Tensors(size, find).read(read_member(archive, members[pickle]))


def _of_pickles(file: File, size: int) -> Any:
    file.seek(0)
    head = io.BytesIO(file.read(LONGEST_PICKLE))
    if head.getvalue().startswith(ZIP):
        raise ValueError("its zip is cut off: fetch it again")
    lengths: dict[str, int] = {}

    def note(name: str, length: int) -> bytes:
        lengths[name] = length
        return b""

    if PickleReader(size).read(head) != MAGIC:
        raise ValueError("it begins as no file of PyTorch does")
    for _ in range(2):  # the version, and what the machine was
        PickleReader(size).read(head)
    start = head.tell()
    _Lengths(size, note).read(head)
    keys = PickleReader(size).read(head)
    file.seek(head.tell())
    storages = {}
    for key in of(list, keys):
        file.read(struct.calcsize("q"))  # the number of its numbers
        storages[key] = read_no_further(file, lengths[key])
        if len(storages[key]) < lengths[key]:
            raise ValueError("a storage is cut off")
    head.seek(start)
    return _Tensors(size, lambda name, length: storages[name]).read(head)


class _Lengths(_Tensors):
    """Finds out how long the storages behind the pickles are."""

    def _tensor(self, *_: Any) -> np.ndarray:
        return np.zeros(0)  # there are no numbers yet
