"""Types of arguments, and checks of these that several commands share.

Nothing of JAX or NumPy is imported: mistakes in arguments are found at once.
"""

import argparse
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from scoremle.errors import UserError, as_flag, no_chain, no_labels, no_model
from scoremle.experiment.folders import WRITTEN
from scoremle.experiment.shipped import NAMES, place_of
from scoremle.terminal import is_stream

# A fraction is above it: with a smaller one, counts would overflow.
LEAST = 1e-10


def at_least(least: int) -> Callable[[str], int]:
    """The type of an integer that is not below ``least``, and of at most 32 bits."""

    def integer(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not an integer from {least}")
        if int(text) >= 2**32:
            raise argparse.ArgumentTypeError(f"{text} is not below {2**32}")
        return int(text)

    return integer


def fraction(text: str) -> float:
    """The type of a number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not LEAST < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1, above {LEAST:g}")
    return value


# The type of a seed. JAX takes 32 bits of it: a larger one would be another one.
seed = at_least(0)


def folder_name(text: str) -> str:
    """The type of the name of a folder below WORKDIR, to which no training writes."""
    path = Path(os.path.normpath(text))
    if path.is_absolute() or not path.parts or path.parts[0] in (os.pardir, *WRITTEN):
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder of its own in WORKDIR")
    return text


# Places ------------------------------------------------------------------------------------------


def exists(place: Path) -> None:
    """Raises UserError if nothing is at a place."""
    if not place.exists():
        raise UserError(f"there is no folder or file {place}")


def ending(flag: str, place: Path, *endings: str) -> None:
    """Raises UserError for the name of a file to write that has none of the endings."""
    if place.suffix.lower() not in endings:
        raise UserError(f"{flag}{place}: the name to write must end in {' or '.join(endings)}")


def model(options: Any) -> None:
    """Raises UserError for a model that is not there.

    What ``hf:`` and ``FILE.py:function`` name is left to the command. A label, and steps of its
    own, are refused for a model that was trained here: it has none.
    """
    place = place_of(options.model)
    if not ((options.model and place.exists()) or ":" in options.model):
        raise no_model(options.model, NAMES)
    if (place / "config.json").is_file() and not (place / "published.json").exists():
        if getattr(options, "label", ""):
            raise no_labels("--label")
        if getattr(options, "estimator", "") == "steps" and options.steps is None:
            raise no_chain(as_flag)


def writable(flag: str, place: Path, *, force: bool | None, kind: str = "") -> None:
    """Raises UserError if no file can be written there, or one exists and ``force`` is not given.

    Args:
        flag: how the user named the place; "" for the place alone.
        place: of the file.
        force: write over what is there; None: the command never does.
        kind: the ending of its name, if that has one and is no stream's; "": any.
    """
    what = ""
    if str(place) == "-":
        what = "name /dev/stdout, or a file"
    elif is_stream(place) and place.is_file():
        what = "it leads to a file; name that file here"
    elif place.is_symlink() and not (is_stream(place) or place.is_dir()):
        what = f"it is a link; name its target, {real(place)}"
    elif place.is_dir():
        what = "it is a folder; name a file to write"
    elif folder := _refusing(place.absolute().parent):
        what = f"{folder} can't be written to; name a file to write"
    if what:
        raise UserError(f"can't write {flag}{place}: {what}")
    if place.exists() and not (force or is_stream(place)):
        way = "move it away" if force is None else "--force writes over it"
        raise UserError(f"{place} is there: {way}, or name another file")
    if kind and place.suffix and not is_stream(place):
        ending(flag, place, kind)


def different(read: Iterable[str | Path | None], *written: Path | None) -> None:
    """Raises UserError where a file to write is one to read, too, or another to write.

    What is read may be ``FILE.py:function``, or a folder with pictures.
    """
    files = [real(re.sub(r"(?<=\.py):.*", "", str(each))) for each in read if each]
    known = [*files, *(real(place) for place in written if place)]
    for place in filter(None, written):
        path = real(place)
        if known.count(path) > 1 and not is_stream(place):
            raise UserError(f"{place} is named for two files: name another")
        if path.exists() and any(folder in path.parents for folder in files):
            from scoremle.data.readers.decoding import is_picture  # of NumPy, and seldom needed

            if is_picture(path.name):
                raise UserError(f"{place} is one of the pictures to read: name another file")


def real(place: str | Path) -> Path:
    """The path without links, but for those that lead to themselves."""
    return Path(os.path.realpath(place))


def takes_files(*folders: Path) -> None:
    """Raises UserError for a folder, there already or not, in which no file can be made."""
    for folder in folders:
        if refusing := _refusing(folder.absolute()):
            raise UserError(f"{refusing} can't be written to: let this user write there")


def _refusing(folder: Path) -> Path | None:
    """The folder, or the nearest above it that is there, if no file can be made in that."""
    above = (folder, *folder.parents)
    nearest = next(place for place in above if place.exists() or place.is_symlink())
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError:  # in some, such as /proc, nobody may
        return nearest
    return None
