"""A prepared folder: what training opens, and where such folders are kept.

    train.npy, test.npy                  uint8 [n h w c], values in range(levels)
    train_labels.npy, test_labels.npy    integers, where the source has labels
    meta.json                            what it is, how it was made, SHA-256 of the arrays
    .verified.json                       which files had it when they were last read

An array is compared with its SHA-256 when it is opened. That is remembered by the size, time and
inode of the file, so that the next time costs nothing; with $SCOREMLE_VERIFY=always it is compared
each time, which also finds what a disk has lost by itself.

A folder is made under another name and renamed, with meta.json written last: one that has it is
whole. The cache is $SCOREMLE_DATA, or scoremle/data in the user's cache folder.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from scoremle import files
from scoremle.bounded import LONGEST_JSON
from scoremle.data.readers.arrays import map_npy
from scoremle.data.readers.base import Options
from scoremle.errors import UserError, first_line
from scoremle.records import GreyLevels, check_record

__all__ = ["cache_folder", "is_prepared", "made_whole"]

META = "meta.json"
VERIFIED = ".verified.json"
VERIFY = "SCOREMLE_VERIFY"
# In 1, sets of fewer grey levels than their source were divided by the images of the source.
FORMAT, FEWER_LEVELS = 1, 2


class _Splits(TypedDict):
    train: int
    test: int


class _Hashes(TypedDict):
    train: str
    test: str


class _Options(TypedDict):
    size: int
    channels: int
    fit: str
    levels: int


class _Meta(TypedDict):
    """Fields of meta.json that are read anywhere."""

    name: str
    version: str
    source: str
    source_sha256: str
    counts: _Splits
    shape: tuple[int, int, int]
    levels: GreyLevels
    source_levels: int
    split: str
    labels: bool
    sha256: _Hashes
    duplicates: dict[str, int]
    constant_images: int
    skipped: list[str]
    notes: dict[str, int]
    options: _Options
    crop: NotRequired[str]
    orientation: NotRequired[str]


@dataclass(frozen=True)
class Prepared:
    """A prepared folder; its arrays are mapped, not read.

    Args:
        folder: that was prepared.
    """

    folder: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The record in meta.json. Raises UserError if it is damaged, or of another version."""
        meta = files.read_sealed(files.inside(self.folder, META), self._remedy)
        if meta.get("format") not in (FORMAT, FEWER_LEVELS):
            raise UserError(
                f"{self.folder / META} is not of a data set that this version prepared;"
                " prepare it again"
            )
        check_record(meta, _Meta, self.folder / META)
        return meta

    def images(self, split: str) -> np.ndarray:
        """The images of a split, uint8 [n h w c]. Raises UserError if they are damaged.

        Args:
            split: "train" or "test".
        """
        return self._array(split)

    def labels(self, split: str) -> np.ndarray | None:
        """Labels of a split, int32 [n]; None if the source has none.

        Args:
            split: "train" or "test".

        Raises UserError if they are damaged.
        """
        return self._array(f"{split}_labels") if self.meta["labels"] else None

    def verify(self) -> None:
        """Compares all arrays with their SHA-256. Raises UserError if one is damaged."""
        for split in ("train", "test"):
            self._array(split, always=True)
            if self.meta["labels"]:
                self._array(f"{split}_labels", always=True)

    @property
    def _remedy(self) -> str:
        return f"remove {self.folder} and prepare it again"

    def _array(self, name: str, *, always: bool = False) -> np.ndarray:
        path, split = files.inside(self.folder, f"{name}.npy"), name.removesuffix("_labels")
        of_one, kind = (self.meta["shape"], np.uint8) if name == split else ([], np.int32)
        shape = (self.meta["counts"][split], *of_one)
        try:
            array = map_npy(path)
        except MemoryError:
            raise
        except Exception as error:  # a damaged header may raise anything
            raise UserError(f"{path} is damaged ({first_line(error)}); {self._remedy}") from error
        if array.shape != shape or array.dtype != kind:
            raise UserError(
                f"{path} holds {array.dtype} of shape {array.shape}, not {kind.__name__} of"
                f" {shape}; {self._remedy}"
            )
        # Of labels earlier versions have none.
        if sha256 := self.meta.get("sha256", {}).get(name):
            self._compare(path, array, sha256, always or os.environ.get(VERIFY) == "always")
        return array

    def _compare(self, path: Path, array: np.ndarray, sha256: str, always: bool) -> None:
        state = path.stat()
        version = [state.st_size, state.st_mtime_ns, state.st_ino, sha256]
        verified: dict[str, Any] = {}
        with suppress(UserError):  # where it is damaged, or not there
            verified = files.read_json(files.inside(self.folder, VERIFIED))
        if verified.get(path.name) == version and not always:
            return
        if hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() != sha256:
            raise UserError(f"{path} is damaged (its checksum differs); {self._remedy}")
        with suppress(UserError):  # where nothing can be written, it is compared each time
            files.write_json(self.folder / VERIFIED, {**verified, path.name: version})


def format_of(options: Options) -> int:
    """The format of a folder that is prepared with these options."""
    return FEWER_LEVELS if options.levels else FORMAT


def is_prepared(folder: Path) -> bool:
    """Whether a folder is a prepared data set.

    Args:
        folder: which need not exist.
    """
    return (folder / META).is_file()


def cache_folder() -> Path:
    """Folder in which data sets are prepared by default."""
    if stated := os.environ.get("SCOREMLE_DATA"):
        return Path(stated)
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "scoremle" / "data"


@contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the name of ``folder`` when it is full.

    If another process was first, its folder stays and this one is removed.

    Raises UserError if that one is of other data or options.
    """
    temporary = files.temporary_beside(folder)
    with files.writing(folder):
        files.make_folder(folder.parent)
        _remove_abandoned(folder)
        temporary.mkdir()
    try:
        yield temporary
        with files.writing(folder):
            files.sync_all(temporary)
            try:
                temporary.rename(folder)
            except OSError:
                if not is_prepared(folder):
                    raise
                both = (each / META for each in (folder, temporary))
                if len({files.read_bytes(each, LONGEST_JSON) for each in both}) > 1:
                    raise UserError(
                        f"{folder} was made of something else meanwhile, by another process: name"
                        " another folder"
                    ) from None
            files.sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Removes what killed processes left that were to make this folder."""
    for left in folder.parent.glob(".*.tmp"):
        if left.name.startswith(files.beginning(folder)) and files.is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
