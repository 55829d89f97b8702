"""Files that are there whole or not at all."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from scoremle.errors import UserError

__all__ = ["read_json", "read_npz", "write_atomically", "write_json", "write_npz", "writing"]


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of ``path`` when all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
