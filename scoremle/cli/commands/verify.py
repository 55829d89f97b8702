"""``scoremle verify PATH``: whether what lies there is as it was written.

Workdirs, prepared data sets, checkpoints, results and files of models are read whole and compared
with the checksums that they have. What is damaged is a line: what, where, what to do.
"""

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from scoremle import published
from scoremle.bounded import LONGEST_JSON, MAX_MODEL, MAX_PICTURE, MAX_TEXT, open_zip
from scoremle.data import Prepared, is_prepared
from scoremle.errors import UserError
from scoremle.experiment.results import read_results
from scoremle.experiment.workdir import Workdir
from scoremle.files import (
    SEAL,
    inside,
    named,
    opened,
    read_bytes,
    read_json,
    read_npz,
    read_sealed,
)
from scoremle.published import pytorch, safetensors, torch_file
from scoremle.resumable import read_part
from scoremle.terminal import in_a_line, say
from scoremle.training.checkpoints import Checkpoints, Damaged

__all__ = ["run", "verify"]


class Kind(NamedTuple):
    """Things of one kind: how they are told, and what to do if one is damaged.

    ``is_whole`` reads one. It says whether there was a checksum to compare with, and raises
    UserError or Damaged if it is damaged.
    """

    is_one: Callable[[Path], bool]
    is_whole: Callable[[Path], bool]
    remedy: str


def run(options: Any) -> None:
    """Verifies all that lies there, and says what is damaged. Raises UserError if anything is."""
    path = options.path
    if not path.exists():
        raise UserError(f"there is no folder or file {path}")
    found = list(verify(named(path)))
    if not found:
        raise UserError(f"{path} holds nothing that could be verified")
    for line in (damaged := list(dict.fromkeys(each for each in found if isinstance(each, str)))):
        say(line)
    whole = f"{found.count(True)} as written, {found.count(False)} readable (no checksum)"
    say(f"{path}: {whole}, {len(damaged)} damaged")
    if damaged:
        raise UserError(f"{path}: {len(damaged)} damaged, as listed")


def verify(path: Path, folder: Path | None = None) -> Iterator[bool | str]:
    """For each thing at a place and below it: whether a checksum agreed, or what is damaged.

    ``folder`` is where the place was found; None: the user named it.
    """
    kind = next((kind for kind in KINDS if kind.is_one(path)), None)
    if folder and path.is_symlink():
        yield from _linked(path, folder, path.is_dir() or kind is not None)
    elif kind:
        yield _verified(path, kind)
    elif path.is_dir():
        if _is_workdir(path):
            yield _verified(path, WORKDIR)
        for below in sorted(path.iterdir()):
            # What is hidden, or has these endings, is on its way in or out.
            if not below.name.startswith(".") and below.suffix not in (".new", ".old"):
                yield from verify(below, folder or path)


def _linked(link: Path, folder: Path, matters: bool) -> Iterator[str]:
    """A line if a link leads nowhere, or out; its target in the folder is verified there."""
    try:
        link.stat()
        inside(folder, str(link.relative_to(folder)))
    except UserError as error:
        if matters:
            yield str(error)
    except OSError as error:
        yield f"{link}: {error.strerror}; remove it"


def _verified(path: Path, kind: Kind) -> bool | str:
    try:
        return kind.is_whole(path)
    except (UserError, Damaged, OSError) as error:
        text, place = in_a_line(str(error)), in_a_line(str(path))
        named = text if place in text else f"{place}: {text}"
        return named if kind.remedy in named else f"{named}; {kind.remedy}"


# Kinds -------------------------------------------------------------------------------------------

COPY = "put a copy back"
RECORD = "put its copy back, or move it away and run the training's command, which writes it anew"


def _checkpoint(path: Path) -> bool:
    Checkpoints(path.parent, keep=None).verify(int(path.name.removeprefix("checkpoint_")))
    return True


def _published(path: Path) -> bool:
    published.read(path)
    return False


def _prepared(path: Path) -> bool:
    Prepared(path).verify()
    return True


def _records(path: Path) -> bool:
    Workdir(path).check_records()
    return True


def _results(path: Path) -> bool:
    read_results(path)
    return f'"{SEAL}"'.encode() in read_bytes(path, LONGEST_JSON)


def _json(path: Path) -> bool:
    read_sealed(path, RECORD)
    return SEAL in read_json(path)


def _part(path: Path) -> bool:
    if read_part(path) is None:
        raise Damaged("it is damaged or was made for another place")
    return True


def _npz(path: Path) -> bool:
    if read_npz(path) is None:
        raise Damaged("its arrays can't be read")
    return True


def _safetensors(path: Path) -> bool:
    safetensors.read(path)
    return False


def _tensors(path: Path) -> bool:
    """Of PyTorch: a zip with a checksum of each member, or a file of an old kind without."""
    with opened(path, MAX_MODEL) as file:
        if not zipfile.is_zipfile(file):
            pytorch.load(path)
            return False
        with _damage(), open_zip(file, path) as archive:
            torch_file.check_zip(archive, path.stat().st_size)
            if name := archive.testzip():
                raise ValueError(name)
    return True


def _lines(path: Path) -> bool:
    text = read_bytes(path, MAX_TEXT).decode(errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            raise Damaged(f"line {number} can't be read as JSON") from None
    return False


def _picture(path: Path) -> bool:
    with _damage(), opened(path, MAX_PICTURE) as file:
        Image.open(file, formats=["PNG"]).verify()
    return True


@contextmanager
def _damage() -> Iterator[None]:
    """Damaged files come out of zipfile and Pillow as every kind of exception."""
    try:
        yield
    except Exception as error:
        raise Damaged(f"it can't be read ({type(error).__name__}: {error})") from None


def _ends(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.suffix in suffixes and path.is_file()


def _is_workdir(path: Path) -> bool:
    with suppress(UserError):  # a link in the place of a folder, which is named for itself
        return (path / "config.json").is_file() and Workdir(path).begun
    return False


def _is_checkpoint(path: Path) -> bool:
    return path.name.removeprefix("checkpoint_").isdecimal() and path.is_dir()


def _is_published(path: Path) -> bool:
    number = path.name.removeprefix("checkpoint_").removesuffix(".pth")
    return number.isdecimal() and path.is_file()


WORKDIR = Kind(Path.is_dir, _records, RECORD)
AGAIN = "remove it, and run the command again that wrote it"
KINDS = (
    Kind(is_prepared, _prepared, "prepare it again"),
    Kind(_is_checkpoint, _checkpoint, "put a copy back, or remove it: the one before is taken"),
    Kind(_is_published, _published, COPY),
    Kind(lambda path: path.match("pass*.npz"), _part, "remove it: its images are worked on again"),
    Kind(lambda path: path.name == "results.json", _results, "move it away and evaluate again"),
    Kind(_ends(".json"), _json, RECORD),
    Kind(_ends(".npz"), _npz, AGAIN),
    Kind(_ends(".safetensors"), _safetensors, COPY),
    Kind(_ends(".pt", ".bin"), _tensors, COPY),
    Kind(_ends(".jsonl"), _lines, "go on with the training, which writes it anew"),
    Kind(_ends(".png"), _picture, AGAIN),
)
