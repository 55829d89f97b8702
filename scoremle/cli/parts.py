"""Finished parts of a command's work, in a hidden folder beside the file that it writes."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scoremle.cli.signals import going_on
from scoremle.terminal import is_stream


def above(out: Path) -> Path:
    """The folder of all parts for a file. Pictures beside it are read again without them."""
    return (Path() if is_stream(out) else out.parent) / f".{out.name}.parts"


@contextmanager
def kept(parts: Path) -> Iterator[None]:
    """In the block a signal raises with words on the parts that the same command resumes from."""
    words = f"finished batches are in {parts.parent}: the same command resumes"
    with going_on(words, within=parts):
        yield


def remove(parts: Path) -> None:
    """Removes the parts of work that is done, and the folder of all parts if it is empty."""
    shutil.rmtree(parts, ignore_errors=True)
    with suppress(OSError):  # parts of an interrupted run of other work may be there
        parts.parent.rmdir()
