"""Work on many images in parts, each a small file: what was killed goes on from what is finished.

A part holds rows of arrays, one for each image of a range, and its own place: the pass and the
first image. Whatever ranges the parts cover are taken from them, and the rest is worked on, so
that a run may go on with batches of another size, and parts of several runs may lie together.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from scoremle.files import read_npz, write_npz
from scoremle.progress import progress

__all__ = ["HASH_LENGTH", "Arrays", "content_hash", "fingerprint", "in_parts"]

# Digits of hashes in results: enough to tell any two apart.
HASH_LENGTH = 16

Arrays = dict[str, np.ndarray]
# The pass and the indices of some images, to arrays with a row for each of them.
Work = Callable[[int, Int[np.ndarray, " size"]], Arrays]
# Rows so far, and which of them are there, in words.
Describe = Callable[[Arrays, Bool[np.ndarray, "passes n"]], str]


def fingerprint(facts: dict[str, Any]) -> str:
    """A short name for settings: the same for the same facts alone."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def content_hash(images: np.ndarray) -> str:
    """A short name for the content of images."""
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()[:HASH_LENGTH]


def in_parts(
    work: Work,
    n: int,
    *,
    size: int,
    passes: int = 1,
    folder: Path | None = None,
    label: str = "",
    unit: str = "image",
    describe: Describe = lambda rows, done: "",
) -> Arrays:
    """What ``work`` gives for images 0 to n - 1 in each pass: arrays [passes n ...].

    It is called with ``size`` indices each time, so that it compiles once; where fewer are left,
    the last of them is repeated. Finished parts lie in ``folder``, whose name must stand for all
    that a row depends on. Progress is told under ``label``.
    """
    rows: Arrays = {}
    done = np.zeros((passes, n), bool)

    def put(part: Arrays) -> None:
        repeat, first = part.pop("place")
        if repeat >= passes or first >= n:
            return
        for name, values in part.items():
            values = values[: n - first]
            if name not in rows:
                rows[name] = np.zeros((passes, n, *values.shape[1:]), values.dtype)
            rows[name][repeat, first : first + len(values)] = values
            done[repeat, first : first + len(values)] = True

    for part in _finished(folder):
        put(part)
    with progress(label, done.size, unit, done=int(done.sum())) as tell:
        if done.all():
            tell(done.size, describe(rows, done))
        for repeat, first, stop in _missing(done, size):
            index = np.minimum(first + np.arange(size), stop - 1)
            found = work(repeat, index)
            part = {name: np.asarray(values)[: stop - first] for name, values in found.items()}
            part["place"] = np.asarray([repeat, first])
            if folder:
                write_npz(folder / f"pass{repeat}_{unit}{first}.npz", part)
            put(part)
            tell(int(done.sum()), describe(rows, done))
    return rows


def _finished(folder: Path | None) -> Iterator[Arrays]:
    """The parts that lie there and can be read."""
    for path in folder.glob("pass*.npz") if folder else ():
        part = read_npz(path)
        if part is not None and "place" in part:
            yield part


def _missing(done: Bool[np.ndarray, "passes n"], size: int) -> Iterator[tuple[int, int, int]]:
    """Pass, first and end of what is to be done, in order, at most ``size`` images each."""
    for repeat, row in enumerate(done):
        (edges,) = np.diff(row, prepend=True, append=True).nonzero()
        for begin, end in edges.reshape(-1, 2).tolist():
            for first in range(begin, end, size):
                yield repeat, first, min(first + size, end)
