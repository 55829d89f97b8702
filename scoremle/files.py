"""Files that are there whole or not at all, after a kill and after a lost power.

What a number depends on is sealed: a file says the SHA-256 of what it says, so that a change is
seen when it is read. Files of earlier versions have no seal, and are read as they are.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from scoremle.errors import UserError

__all__ = [
    "SEAL", "make_folder", "read_json", "read_npz", "read_sealed", "seal", "sync", "sync_all",
    "write_atomically", "write_json", "write_npz", "write_sealed", "writing",
]  # fmt: skip

# The name that a seal has beside what it seals.
SEAL = "seal"


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of ``path`` when all is on disk."""
    with writing(path):
        make_folder(path.parent)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            yield temporary
            # In this order: a name must not be on disk before its content.
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


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
        content = json.loads(path.read_text())
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
            return dict(saved)
    except Exception:
        # Damaged files come out of zipfile, zlib and numpy as every kind of exception.
        return None
