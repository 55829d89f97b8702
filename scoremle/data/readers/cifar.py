"""CIFAR-10 and CIFAR-100, the binary or the Python version, packed or unpacked.

A binary record is the labels (one byte; for CIFAR-100 the coarse and the fine one) and then red,
green and blue, 1024 bytes each, row by row. The Python version has the same rows in pickles.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from posixpath import basename
from typing import Any

import numpy as np

from scoremle.bounded import MAX_BATCH
from scoremle.data.archive import Source
from scoremle.data.readers.base import Chunk, Options, Reading, as_labels
from scoremle.data.unpickle import unpickle
from scoremle.errors import UserError

PIXELS = 3 * 32 * 32


def read_cifar10(path: Path, options: Options) -> Reading:
    names = {f"data_batch_{i}": "train" for i in range(1, 6)} | {"test_batch": "test"}
    return _read(path, names, label_bytes=1)


def read_cifar100(path: Path, options: Options) -> Reading:
    return _read(path, {"train": "train", "test": "test"}, label_bytes=2)


def _read(path: Path, names: Mapping[str, str], *, label_bytes: int) -> Reading:
    source = Source(path, nested=True)
    return Reading(_chunks(source, names, label_bytes), source.sha256)


def _chunks(source: Source, names: Mapping[str, str], label_bytes: int) -> Iterator[Chunk]:
    # All of it before the first is given: archives hold the batches in any order.
    binary, python = [f"{name}.bin" for name in names], list(names)
    batches = source.files(lambda name: basename(name) in {*binary, *python}, MAX_BATCH)
    found = {basename(name): content for name, content in batches}
    files = next((kind for kind in (binary, python) if found.keys() >= set(kind)), None)
    if files is None:
        likely = binary if any(name in found for name in binary) else python
        missing = [name for name in likely if name not in found]
        raise UserError(
            f"{source.path}: no {', '.join(missing)} in it; fetch it again, or give another"
            " path=PLACE"
        )
    for number, (name, split) in enumerate(zip(files, names.values(), strict=True), 1):
        where, content = f"{source.path}: {name}", found.pop(name)
        if files is binary:
            images, labels = _binary(content, label_bytes, where)
        else:
            images, labels = unpickle_rows(content, where)
        yield Chunk(images, split, number / len(files), labels)


def _binary(content: bytes, label_bytes: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    size = label_bytes + PIXELS
    if not content or len(content) % size:
        raise UserError(
            f"{where}: truncated or not a CIFAR batch: {len(content)} bytes are not a whole number"
            f" of records of {size}; fetch it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return from_rows(records[:, label_bytes:], 32), records[:, label_bytes - 1].astype(int)


def unpickle_rows(content: bytes, where: str) -> tuple[np.ndarray, Any]:
    """Images and labels of a pickled batch: a dict with ``data`` [n, 3 size^2] and labels."""
    batch = unpickle(content, where)
    if not isinstance(batch, dict):
        raise UserError(f"{where}: a pickle of {type(batch).__name__}, not of a batch")
    named = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in batch.items()}
    return rows_and_labels(named, where)


def rows_and_labels(batch: Mapping[str, Any], where: str) -> tuple[np.ndarray, Any]:
    """Images and labels of a batch: a mapping with ``data`` [n, 3 size^2] and labels."""
    rows = batch.get("data")
    labels = batch.get("fine_labels", batch.get("labels"))
    if not isinstance(rows, np.ndarray) or labels is None:
        raise UserError(f"{where}: not a batch: it lacks data or labels")
    size = round((rows.shape[-1] / 3) ** 0.5) if rows.ndim == 2 else 0
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3 * size**2 or not size:
        raise UserError(
            f"{where}: data is {rows.dtype} of shape {rows.shape}, not uint8 (n, 3 x size x size)"
        )
    # One by one: a list of lists of lists may hold more numbers than fit anywhere.
    if isinstance(labels, list) and all(type(n) is int and 0 <= n < 1 << 31 for n in labels):
        labels = np.array(labels, int)
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        raise UserError(f"{where}: its labels are not a list of whole numbers")
    return from_rows(rows, size), as_labels(labels, len(rows), where)


def from_rows(rows: np.ndarray, size: int) -> np.ndarray:
    """Rows of channels one after the other, as images [n size size 3]."""
    return rows.reshape(-1, 3, size, size).transpose(0, 2, 3, 1)
