"""Reads all files in a place (a workdir, a prepared data set, checkpoints, results, a model)
and compares them with their checksums. Prints a line for each damaged file: the damage, the place,
and what to do. The exit code is 2 if a file is damaged, else 0.

    scoremle verify runs/digits
    scoremle verify ~/.cache/scoremle
"""

import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import scoremle
from scoremle.cli import checks
from scoremle.cli.parser import Parser
from scoremle.errors import UserError, damaged, in_a_line
from scoremle.terminal import say

NEEDS = "scoremle.experiment.workdir"


def arguments(parser: Parser) -> None:
    parser.add("path", "a folder, with all below it, or a file", type=Path)


def check(options: Any) -> None:
    checks.exists(options.path)


def run(options: Any) -> None:
    """Verifies all files there, and prints the damaged ones. Raises UserError if any is."""
    path = options.path
    found = list(verify(scoremle.files.named(path)))
    if not found:
        raise UserError(f"{path} holds nothing that could be verified")
    lines = list(dict.fromkeys(line for line in found if isinstance(line, str)))
    whole = f"{found.count(True)} as written, {found.count(False)} readable (no checksum)"
    say(*lines, f"{path}: {whole}, {len(lines)} damaged")
    if lines:
        raise UserError(f"{path}: {len(lines)} damaged, as listed")


def verify(path: Path, folder: Path | None = None) -> Iterator[bool | str]:
    """For each thing at a place and below it: whether a checksum agreed, or what is damaged.

    ``folder`` is where the place was found; None: the user named it.
    """
    is_link = folder is not None and path.is_symlink()
    if not (is_link or os.access(path, os.R_OK | os.X_OK * path.is_dir())):
        yield f"{path}: you may not read it: change its permissions"
        return
    kind = next((kind for kind in _kinds() if kind.is_one(path)), None)
    if folder and is_link:
        yield from _linked(path, folder, path.is_dir() or kind is not None)
        return
    if kind:
        yield _verified(path, kind)
    if path.is_dir() and (kind is None or kind.holds):
        for below in sorted(path.iterdir()):
            # What is hidden, or has these endings, is on its way in or out.
            if not below.name.startswith(".") and below.suffix not in (".new", ".old"):
                yield from verify(below, folder or path)


def _linked(link: Path, folder: Path, matters: bool) -> Iterator[str]:
    """A line if a link leads nowhere, or out; its target in the folder is verified there."""
    try:
        link.stat()
        scoremle.files.inside(folder, str(link.relative_to(folder)))
    except UserError as error:
        if matters:
            yield str(error)
    except OSError as error:
        yield f"{link}: {error.strerror}; remove it"


# Kinds -------------------------------------------------------------------------------------------

CHECKPOINT = re.compile(r"checkpoint_\d+")
UNREADABLE = "it can't be read"
COPY = "put a copy back"
RECORD = "put its copy back, or move it away and run the training's command, which writes it anew"
AGAIN = "remove it, and run the command again that wrote it"
BEFORE = "put a copy back, or remove it: the one before is taken"
PART = "remove it: its images are computed again"
RESULT = "move it away and evaluate again"
LOG = "continue the training, or remove it"


class Kind(NamedTuple):
    """Things of one kind, and what to do if one is damaged.

    ``read`` raises UserError or Damaged for one that is. ``sealed``: whether it has a checksum;
    None: ``read`` returns that. ``holds``: whether others are in it.
    """

    is_one: Callable[[Path], bool]
    read: Callable[[Path], Any]
    sealed: bool | None
    remedy: str
    holds: bool = False


def _verified(path: Path, kind: Kind) -> bool | str:
    from scoremle.training.checkpoints import Damaged

    try:
        sealed = kind.read(path)
        return sealed if kind.sealed is None else kind.sealed
    except (UserError, Damaged, OSError) as error:
        text, place = in_a_line(str(error)), in_a_line(str(path))
        named = text if place in text else f"{place}: {text}"
        return named if kind.remedy in named else f"{named}; {kind.remedy}"


@cache
def _kinds() -> tuple[Kind, ...]:
    """The kinds: a thing is of the first that it fits."""
    from scoremle.coding.rates import KIND
    from scoremle.data import Prepared, is_prepared
    from scoremle.evaluation.result import Result
    from scoremle.experiment.results import are_sealed, read_results
    from scoremle.experiment.workdir import Workdir
    from scoremle.files import SEAL, read_json, read_npz, read_sealed
    from scoremle.published import safetensors
    from scoremle.resumable import is_part, read_part
    from scoremle.training.checkpoints import Checkpoints, Damaged
    from scoremle.training.writers import read_log

    def is_checkpoint(path: Path) -> bool:
        return CHECKPOINT.fullmatch(path.name) is not None and path.is_dir()

    def checkpoint(path: Path) -> None:
        Checkpoints(path.parent, keep=None).verify(int(path.name.removeprefix("checkpoint_")))

    def is_published(path: Path) -> bool:
        name = path.name.removesuffix(".pth")
        return CHECKPOINT.fullmatch(name) is not None and not path.is_dir()

    def is_workdir(path: Path) -> bool:
        with suppress(UserError):  # a link in the place of a folder, which is named for itself
            return (path / "config.json").is_file() and Workdir(path).begun
        return False

    def results(path: Path) -> bool:
        for name, facts in read_results(path).items():
            if isinstance(facts, dict) and "values_hash" in facts:
                Result.read(name, facts, path.parent).arrays()
        return are_sealed(path)

    def record(path: Path) -> bool:
        read_sealed(path, RECORD)
        return SEAL in read_json(path)

    def arrays(path: Path) -> None:
        if (read_part if is_part(path) else read_npz)(path) is None:
            raise Damaged("its arrays can't be read, or are of another place")

    return (
        Kind(is_prepared, lambda path: Prepared(path).verify(), True, "prepare it again"),
        Kind(is_checkpoint, checkpoint, True, BEFORE),
        Kind(is_published, scoremle.published.read, False, COPY),
        Kind(is_workdir, lambda path: Workdir(path).check_records(), True, RECORD, holds=True),
        Kind(is_part, arrays, True, PART),
        Kind(lambda path: path.name == "results.json", results, None, RESULT),
        Kind(_ends(".json"), record, None, RECORD),
        Kind(_ends(".npz"), arrays, True, AGAIN),
        Kind(_ends(".safetensors"), safetensors.read, False, COPY),
        Kind(_ends(".pt", ".bin"), _tensors, None, COPY),
        Kind(_ends(".jsonl"), read_log, False, LOG),
        Kind(_ends(".png"), _picture, True, AGAIN),
        Kind(_begins(KIND), _coded, True, COPY),
        Kind(_begins(b'{\n  "statistic"'), _detector, True, "fit it anew"),
    )


def _ends(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.suffix in suffixes and not path.is_dir()


# Their readers take JAX, for which a folder without them does not wait.
def _coded(path: Path) -> None:
    from scoremle.coding.file import read_coded

    read_coded(path)


def _detector(path: Path) -> None:
    from scoremle.anomaly.detector import Detector

    Detector.read(path)


def _begins(content: bytes) -> Callable[[Path], bool]:
    from scoremle.bounded import MAX_FILE

    def is_one(path: Path) -> bool:
        with suppress(UserError):  # a link, or what is not a plain file
            if path.is_file():
                with scoremle.files.opened(path, MAX_FILE) as file:
                    return file.read(len(content)) == content
        return False

    return is_one


def _tensors(path: Path) -> bool:
    """Reads a file of PyTorch: a zip with a checksum of each member, or an old kind without."""
    from scoremle.published import pytorch, torch_file

    with scoremle.files.opened(path, scoremle.bounded.MAX_MODEL) as file:
        if not zipfile.is_zipfile(file):
            pytorch.load_pth(path)
            return False
        with damaged(path, UNREADABLE, ""), scoremle.bounded.open_zip(file, path) as archive:
            torch_file.check_zip(archive, path.stat().st_size)
            if name := archive.testzip():
                raise ValueError(name)
    return True


def _picture(path: Path) -> None:
    from PIL import Image

    most = scoremle.bounded.MAX_PICTURE
    with damaged(path, UNREADABLE, ""), scoremle.files.opened(path, most) as file:
        try:
            Image.open(file, formats=["PNG"]).verify()
        except Image.UnidentifiedImageError:  # its words have a Python object
            raise ValueError("its beginning is not that of a PNG") from None
