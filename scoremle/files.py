"""Files that are there whole or not at all, after a kill and after a lost power.

While a file or folder is written, its name says which process of which machine writes it: no two
write to the same, and what a process left that is gone can be told and removed.

Of several processes of one run the first writes. The others do the same work, and what they would
write is dropped.

What a number depends on is sealed: a file says the SHA-256 of what it says, so that a change is
seen when it is read. Files of earlier versions have no seal, and are read as they are.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from scoremle.errors import UserError

__all__ = [
    "SEAL", "for_this_process", "is_abandoned", "is_gone", "is_writer",
    "leave_writing_to_others", "machine", "make_folder", "read_json", "read_npz", "read_sealed",
    "seal", "sync", "sync_all", "temporary_beside", "write_atomically", "write_json", "write_npz",
    "write_sealed", "writing",
]  # fmt: skip

# The name that a seal has beside what it seals.
SEAL = "seal"
# Bytes of JSON: more than any record has. Read, they may take thirty times as much memory.
LONGEST_JSON = 16 << 20
# What temporary_beside makes: the machine and the process are its groups.
TEMPORARY = re.compile(r"\..+\.([\w-]+)\.(\d+)\.[0-9a-f]{8}\.tmp")
# Seconds without a write, after which nobody writes any more.
ABANDONED = 24 * 3600.0


_is_writer = True


def is_writer() -> bool:
    """Does this process write files?"""
    return _is_writer


def leave_writing_to_others() -> None:
    """From now on this process writes no files."""
    global _is_writer
    _is_writer = False


@contextmanager
def for_this_process() -> Iterator[None]:
    """What is written in this block is this process's own, whoever writes the rest."""
    global _is_writer
    before, _is_writer = _is_writer, True
    try:
        yield
    finally:
        _is_writer = before


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of ``path`` when all is on disk."""
    with writing(path):
        make_folder(path.parent)
        _sweep(path.parent)
        temporary = temporary_beside(path)
        try:
            yield temporary
            if is_writer():
                # In this order: a name must not be on disk before its content.
                sync(temporary)
                os.replace(temporary, path)
                sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """A new name beside ``path``, for what is to take its place."""
    owner = f"{machine()}.{os.getpid()}.{secrets.token_hex(4)}"
    return path.with_name(f".{path.name[:80]}.{owner}.tmp")


def is_abandoned(temporary: Path) -> bool:
    """Is the process gone that wrote this, or was nothing written to it for a day?"""
    owner = TEMPORARY.fullmatch(temporary.name)
    if owner and is_gone(owner[1], int(owner[2])):
        return True
    times = [place.stat().st_mtime for place in (temporary, *temporary.glob("*"))]
    return _now_in(temporary.parent) - max(times) > ABANDONED


def _now_in(folder: Path) -> float:
    """The time by the clock that files in a folder get: this machine's own may be a day ahead."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


@cache
def machine() -> str:
    """This machine, or the container on it, within which processes have their numbers."""
    facts = [name := socket.gethostname()]
    with suppress(OSError):  # a name alone may be that of many machines
        facts.append(str(os.stat("/proc/self/ns/pid").st_ino))
        facts.append(Path("/etc/machine-id").read_text())
    return f"{re.sub('[^A-Za-z0-9-]', '-', name)}-{seal(facts)[:8]}"


def is_gone(of_machine: str, process: int) -> bool:
    """Is this a process that is certain to have ended? Of other machines nothing is certain."""
    if of_machine != machine():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # or a number that no process has
        return True
    except OSError:  # another user's
        pass
    return False


@cache
def _sweep(folder: Path) -> None:
    """Removes, once a process, the files that others had begun to write in a folder."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):  # another process removes it too
            if TEMPORARY.fullmatch(path.name) and is_abandoned(path):
                path.unlink()


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, on disk when this returns."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in new:
        sync(place.parent)


def sync(place: Path) -> None:
    """Returns when a file, or the list of names in a folder, is on disk."""
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems can't do it with a folder, and need not.
        if error.errno != errno.EINVAL or not place.is_dir():
            raise
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """The same for all that is in a folder, and the folder."""
    for place in (*folder.rglob("*"), folder):
        sync(place)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says against it becomes a UserError with the file's name."""
    try:
        yield
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror or error}") from error


def write_json(path: Path, content: Any) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError if there is none."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        with path.open("rb") as file:
            text = file.read(LONGEST_JSON + 1)
        if len(text) > LONGEST_JSON:
            raise ValueError(f"it has more than {LONGEST_JSON} bytes")
        content = json.loads(text.decode())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object {{...}}: mend it, or move it away")
    return content


def seal(content: Any) -> str:
    """SHA-256 in hexadecimal of what JSON says of a content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON object, and in it the seal of all else."""
    as_read = json.loads(json.dumps(content))
    write_json(path, {**as_read, SEAL: seal(as_read)})


def read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file, without its seal, if it has one.

    Raises UserError if there is none, or with the ``remedy`` if the seal is not that of the rest.
    """
    content = read_json(path)
    stated = content.pop(SEAL, None)
    if stated not in (None, seal(content)):
        raise UserError(f"{path} is not as it was written: {remedy}")
    return content


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    # To an open file, since numpy appends .npz to the name of any other.
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **cast(Any, arrays))


def read_npz(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file; None if there is none, or none that can be read without unpickling."""
    try:
        # Opened here, since numpy leaves open what it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            arrays = dict(saved)
    except Exception:
        # Damaged files come out of zipfile, zlib and numpy as every kind of exception.
        return None
    # What does not begin like an array comes as bytes.
    return arrays if all(isinstance(each, np.ndarray) for each in arrays.values()) else None
