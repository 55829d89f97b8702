"""Work on many images in parts, each a small file: a killed run goes on from its finished parts.

A part holds rows of arrays, one for each image of a range, its own place (the pass and the first
image), and a seal of all that and of the folder's name. Whatever ranges the parts cover are taken
from them, and the rest is worked on, so that a run may go on with batches of another size, and
parts of several runs may lie together. A part that is damaged, or that was made for another
folder or place, is named and computed again.
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int, Shaped

from scoremle.errors import first_line, out_of_memory
from scoremle.files import SEAL, inside, read_npz, seal, write_npz
from scoremle.processes import check_agreed, stop_if_asked
from scoremle.progress import progress

logger = logging.getLogger(__name__)

# Digits of hashes in results: enough to distinguish any two.
HASH_LENGTH = 16
# The name of a finished part, with its pass and its first image.
PART = re.compile(r"pass(\d+)_[a-z]+(\d+)(?:\D.*)?\.npz")

Arrays = dict[str, np.ndarray]
# The pass and the indices of some images, to arrays with a row for each of them.
Work = Callable[[int, Int[np.ndarray, " size"]], Arrays]
# Rows so far, and which of them are there, in words.
Describe = Callable[[Arrays, Bool[np.ndarray, "passes n"]], str]


def fingerprint(facts: dict[str, Any]) -> str:
    """A short name for settings: the same for the same facts alone."""
    return seal(facts)[:12]


def content_hash(images: np.ndarray) -> str:
    """A short name for the content of images."""
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()[:HASH_LENGTH]


def parts_in(above: Path, facts: dict[str, Any]) -> Path:
    """The folder of finished parts with these facts.

    Args:
        above: the folder of all parts.
        facts: all that a value depends on.

    Raises UserError for a link on the way.
    """
    return inside(above.parent, above.name, fingerprint(facts), writing=True)


def facts_of_data(data: Shaped[np.ndarray, "n *d"]) -> dict[str, Any]:
    """Facts of data: their content and shape.

    Args:
        data: [n ...] images or points.
    """
    return {"data": content_hash(data), "shape": list(data.shape)}


def resumable_map(
    work: Work,
    n: int,
    *,
    size: int,
    passes: int = 1,
    folder: Path | None = None,
    label: str = "",
    unit: str = "image",
    describe: Describe = lambda rows, done: "",
    share: slice = slice(None),
    least: int = 1,
) -> Arrays:
    """Maps ``work`` over images 0 to n - 1 in each pass; returns its arrays [passes n ...].

    It is called with ``size`` indices each time, so that it compiles once; where fewer are left,
    the last of them is repeated. Finished parts are kept in ``folder``, whose name must identify
    all that a row depends on. Progress over all passes is shown under ``label``. Where only a
    ``share`` of the images is worked on, rows of the others are zero, unless their parts are
    there.

    Where memory does not suffice for ``size`` of them, it is halved, to a multiple of ``least``,
    and a warning says so. Where no such half is left, what ``work`` raised is raised. For no
    images it is called once, without any, and gives one pass.
    """
    if n == 0:
        return {name: np.asarray(of)[None] for name, of in work(0, np.arange(0)).items()}
    rows: Arrays = {}
    done = np.zeros((passes, n), bool)
    others = np.ones(n, bool)
    others[share] = False

    def put(part: Arrays) -> None:
        number, first = part.pop("place")
        if number >= passes or first >= n:
            return
        for name, values in part.items():
            values = values[: n - first]
            if name not in rows:
                rows[name] = np.zeros((passes, n, *values.shape[1:]), values.dtype)
            rows[name][number, first : first + len(values)] = values
            done[number, first : first + len(values)] = True

    for part in _finished(folder):
        put(part)
    check_agreed({f"hash of what is finished of {label}": content_hash(done)})
    total = int((done | ~others).sum())
    shown = f"{label}, {passes} passes of {n:,}" if label and passes > 1 else label
    with progress(shown, total, unit, done=int(done.sum())) as advance:
        if done.sum() == total:
            advance(total, describe(rows, done))
        todo = [*_missing(done | others, size)][::-1]
        while todo:
            number, first, stop = todo.pop()
            if stop - first > size:  # it was halved meanwhile
                todo.append((number, first + size, stop))
                stop = first + size
            index = np.minimum(first + np.arange(size), stop - 1)
            try:
                found = work(number, index)
            except (MemoryError, RuntimeError) as error:
                size = _halved(size, least, unit, error)
                todo.append((number, first, stop))
                continue
            part = {name: np.asarray(values)[: stop - first] for name, values in found.items()}
            part["place"] = np.asarray([number, first])
            if folder:
                sealed = {**part, SEAL: np.asarray(_seal(folder, part))}
                write_npz(folder / f"pass{number}_{unit}{first}.npz", sealed)
            put(part)
            advance(int(done.sum()), describe(rows, done))
            stop_if_asked()
    return rows


def missing(n: int, *, passes: int, folder: Path) -> Int[np.ndarray, " k"]:
    """Indices of those of n images that lack a finished part in ``folder``, in any pass."""
    done = np.zeros((passes, n), bool)
    for part in _finished(folder):
        number, first = part.pop("place")
        if number < passes:
            done[number, first : first + len(next(iter(part.values())))] = True
    return np.flatnonzero(~done.all(axis=0))


def _halved(size: int, least: int, unit: str, error: Exception) -> int:
    """A size for which memory may suffice; raises the error if there is none, or it is another."""
    half = size // 2 // least * least
    # Several processes of one run must work on equal sizes: one of them can't change its own.
    if not half or not out_of_memory(error) or jax.process_count() > 1:
        raise error
    logger.warning(
        "%d %ss at once are too many for memory (%s): continuing with %d at once",
        size, unit, first_line(error), half,
    )  # fmt: skip
    return half


def _finished(folder: Path | None) -> Iterator[Arrays]:
    """The parts there that are whole."""
    for path in filter(is_part, sorted(folder.glob("pass*.npz")) if folder else ()):
        if (part := read_part(path)) is not None:
            yield part
        else:
            logger.warning(
                "%s is damaged or was made for another place: its images are computed again", path
            )


def is_part(path: Path) -> bool:
    """Whether this is the name of a finished part."""
    return PART.fullmatch(path.name) is not None


def read_part(path: Path) -> Arrays | None:
    """The arrays of a finished part; None if it is damaged, or was made for another place.

    Parts of earlier versions have no seal: of these, the checksums of the file are all there is.
    """
    part = read_npz(path)
    if part is None or "place" not in part or part["place"].shape != (2,):
        return None
    stated = part.pop(SEAL, None)
    # A row for each image, in every column.
    lengths = {array.shape[:1] for name, array in part.items() if name != "place"}
    if len(lengths) != 1 or () in lengths:
        return None
    number, first = part["place"].tolist()
    at_its_place = PART.fullmatch(path.name)
    named = at_its_place and at_its_place.groups() == (str(number), str(first))
    sealed = stated is None or str(stated) == _seal(path.parent, part)
    return part if named and sealed else None


def _seal(folder: Path, part: Arrays) -> str:
    """SHA-256 of a part and of the names of its folder and of the one above."""
    digest = hashlib.sha256(os.fsencode("/".join(folder.absolute().parts[-2:])))
    for name, array in sorted(part.items()):
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _missing(done: Bool[np.ndarray, "passes n"], size: int) -> Iterator[tuple[int, int, int]]:
    """Pass, first and end of what is to be done, in order, at most ``size`` images each."""
    for number, row in enumerate(done):
        (edges,) = np.diff(row, prepend=True, append=True).nonzero()
        for begin, end in edges.reshape(-1, 2).tolist():
            for first in range(begin, end, size):
                yield number, first, min(first + size, end)
