"""A model of a published family in a working directory: a copy of its files, and their record.

published/        the files that the model is read from
published.json    sealed: the family, where the files were, and the SHA-256 of each

It is evaluated as a checkpoint of one's own is, by the number 0, and not trained on.
"""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import jax.numpy as jnp

from scoremle import files
from scoremle.bounded import MAX_MODEL
from scoremle.errors import UserError
from scoremle.model import ScoreModel
from scoremle.published.store import PublishedCheckpoints
from scoremle.records import FileName, check_record
from scoremle.training.checkpoints import Restored
from scoremle.training.step import TrainState
from scoremle.zoo.families import FAMILIES

__all__ = ["Imported"]

FOLDER, RECORD = "published", "published.json"
# Number of its one checkpoint.
NUMBER = 0
REMEDY = "put its copy back, or import the model into another folder"


class _Record(TypedDict):
    family: str
    origin: str
    files: dict[FileName, str]


@dataclass(frozen=True)
class Imported:
    """The model in a working directory of this ``folder``."""

    folder: Path

    @property
    def files(self) -> Path:
        """Folder of the copies."""
        return files.inside(self.folder, FOLDER)

    @property
    def is_there(self) -> bool:
        return (self.folder / RECORD).is_file()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what an import that was stopped may leave."""
        return (FOLDER, RECORD, "data.json") if self.is_there else (FOLDER,)

    @cached_property
    def record(self) -> _Record:
        """Record of the model. Raises UserError if its file was altered."""
        found: Any = files.read_sealed(files.inside(self.folder, RECORD), REMEDY)
        check_record(found, _Record, self.folder / RECORD)
        if found["family"] not in FAMILIES:
            raise UserError(f"{self.folder / RECORD}: no family {found['family']!r} is known here")
        return found

    def write(self, family: str, path: Path) -> None:
        """Copies the model at ``path``; the record comes last.

        Args:
            family: its name in ``FAMILIES``.
            path: of the model's file or folder.
        """
        hashes = {}
        for name, source in FAMILIES[family].files(path).items():
            place = files.inside(self.folder, FOLDER, name, writing=True)
            with (
                files.opened(files.named(source), MAX_MODEL) as file,
                files.write_atomically(place) as temporary,
                temporary.open("wb") as copy,
            ):
                shutil.copyfileobj(file, copy)
                copy.flush()
                hashes[name] = files.sha256_of(temporary, MAX_MODEL)
        record = {"family": family, "origin": str(path.absolute()), "files": hashes}
        files.write_sealed(self.folder / RECORD, record)

    def check(self) -> None:
        """Raises UserError if a file is missing, not as it was copied, or not among these."""
        names = {
            str(path.relative_to(self.files)) for path in self.files.rglob("[!.]*")
            if path.is_file()
        }  # fmt: skip
        if others := sorted(names - {*self.record["files"]}):
            raise UserError(f"{self.files / others[0]} was not imported: remove it")
        for name, expected in self.record["files"].items():
            file = files.inside(self.folder, FOLDER, name)
            if not file.is_file() or files.sha256_of(file, MAX_MODEL) != expected:
                raise UserError(f"{file} is not as it was imported: {REMEDY}")

    def load(self) -> ScoreModel:
        """The model. Raises UserError for altered files."""
        self.check()
        family = FAMILIES[self.record["family"]]
        return family.load(self.files / family.main)


class ImportedCheckpoints(PublishedCheckpoints):
    """The store of a working directory with an imported model, which is its one checkpoint."""

    def __init__(self, imported: Imported) -> None:
        super().__init__(imported.files, keep=None)
        self.imported = imported

    def numbers(self) -> list[int]:
        return [NUMBER]

    def path(self, number: int) -> Path:
        return self.folder

    def restore(self, template: Any, number: int | None = None) -> Restored:
        if number not in (None, NUMBER):
            raise UserError(f"no checkpoint {number} of an imported model, only {NUMBER}")
        model = self.imported.load()
        return Restored(TrainState(jnp.zeros((), int), model, model, ()), {"step": 0}, NUMBER)
