"""A prepared folder: what training opens, and where such folders are kept.

    train.npy, test.npy                  uint8 [n h w c], values in range(levels)
    train_labels.npy, test_labels.npy    integers, where the source has labels
    meta.json                            what it is, and how it was made

A folder is made under another name and renamed, with meta.json written last: one that has it is
whole. The cache is $SCOREMLE_DATA, or scoremle/data in the user's cache folder.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from scoremle.data.readers.arrays import map_npy
from scoremle.errors import UserError
from scoremle.files import read_json
from scoremle.records import check_record

__all__ = ["FORMAT", "META", "Prepared", "cache_folder", "is_prepared", "made_whole"]

META = "meta.json"
FORMAT = 1
ABANDONED = 24 * 3600.0


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
    """What of meta.json is read anywhere."""

    name: str
    version: str
    source: str
    source_sha256: str
    counts: _Splits
    shape: tuple[int, int, int]
    levels: int
    source_levels: int
    split: str
    labels: bool
    sha256: _Hashes
    duplicates: dict[str, int]
    constant_images: int
    skipped: list[str]
    notes: dict[str, int]
    options: _Options


@dataclass(frozen=True)
class Prepared:
    """An opened folder; arrays are mapped, not read."""

    folder: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        meta = read_json(self.folder / META)
        if meta.get("format") != FORMAT:
            raise UserError(
                f"{self.folder / META} is not of a data set that this version prepared;"
                " prepare it again"
            )
        check_record(meta, _Meta, self.folder / META)
        if not 2 <= meta["levels"] <= 256:
            raise UserError(f"{self.folder / META}: levels must be from 2 to 256")
        return meta

    def images(self, split: str) -> np.ndarray:
        """The images of train or test."""
        return self._array(f"{split}.npy", self.meta["counts"][split])

    def labels(self, split: str) -> np.ndarray | None:
        """Their labels, if the source has any."""
        if not self.meta["labels"]:
            return None
        return self._array(f"{split}_labels.npy", self.meta["counts"][split])

    def _array(self, name: str, count: int) -> np.ndarray:
        path = self.folder / name
        try:
            array = map_npy(path)
        except Exception as error:  # a damaged header may raise anything
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{path} is damaged ({text}); remove {self.folder} and prepare it again"
            ) from error
        if len(array) != count:
            raise UserError(
                f"{path} holds {len(array)} rows, not {count}; remove {self.folder} and prepare"
                " it again"
            )
        return array


def is_prepared(folder: Path) -> bool:
    return (folder / META).is_file()


def cache_folder() -> Path:
    """Where data sets are prepared that were given no other place."""
    if stated := os.environ.get("SCOREMLE_DATA"):
        return Path(stated)
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "scoremle" / "data"


@contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the name of ``folder`` when it is full.

    If another process was first, its folder stays and this one is removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}."
    _remove_abandoned(folder.parent, prefix)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        try:
            temporary.rename(folder)
        except OSError:
            if not is_prepared(folder):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """What a killed process left, once nothing was written to it for a day."""
    for folder in parent.glob(f"{prefix}*"):
        times = [file.stat().st_mtime for file in (folder, *folder.glob("*"))]
        if time.time() - max(times) > ABANDONED:
            shutil.rmtree(folder, ignore_errors=True)
