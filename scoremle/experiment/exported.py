"""Record of an exported file: config and data set, beside it or in its notes.

The published format has no room for them: a sealed PATH.json contains them. A .safetensors has
notes, which hold texts.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from scoremle.bounded import MAX_MODEL
from scoremle.errors import UserError
from scoremle.experiment.config import config_of
from scoremle.experiment.record import CONFIG, DATA, DataFacts
from scoremle.files import inside, named, read_sealed, sha256_of, write_sealed
from scoremle.published import safetensors
from scoremle.records import check_record
from scoremle.training.checkpoints import first_difference, leaves

if TYPE_CHECKING:
    from scoremle.experiment.workdir import Workdir

__all__ = ["export_notes", "is_export", "read_record", "record_path", "write_record"]

REMEDY = "export the checkpoint again, or import it with --name"


class _Content(TypedDict):
    """A record, or the notes of a file; a record has the SHA-256 of its file."""

    config: dict[str, Any]
    data: DataFacts
    sha256: NotRequired[str]


def record_path(file: Path) -> Path:
    """Path of the record of a file in the published format.

    Args:
        file: the exported one.
    """
    return file.with_name(f"{file.name}.json")


def write_record(workdir: "Workdir", file: Path) -> Path:
    """Writes the record beside a file of a working directory, and returns its path.

    Args:
        workdir: the working directory.
        file: the exported one.
    """
    write_sealed(record_path(file), _record(workdir) | {"sha256": sha256_of(file, MAX_MODEL)})
    return record_path(file)


def read_record(file: Path) -> tuple[ConfigDict, dict[str, Any]] | None:
    """Config and facts of the data of a file; None without a record.

    Args:
        file: the exported one.

    Raises UserError if the record is damaged, or was written for another file.
    """
    path = record_path(file)
    if not path.is_file():
        return None
    content = read_sealed(inside(path.parent, path.name), REMEDY)
    found = _checked(content, path)
    sha256 = sha256_of(named(file), MAX_MODEL)
    if content.get("sha256", sha256) != sha256:
        raise UserError(f"{path} is of another file than {file}: {REMEDY}")
    return found


def export_notes(workdir: "Workdir", step: int) -> dict[str, str]:
    """Notes of a .safetensors with the averaged parameters at a step.

    Args:
        workdir: the working directory.
        step: of the training.
    """
    return {"step": str(step), **{name: json.dumps(v) for name, v in _record(workdir).items()}}


def is_export(path: Path) -> bool:
    """Whether this is a .safetensors of an export, by its notes.

    Args:
        path: of any file.
    """
    whole = path.suffix == ".safetensors" and path.is_file()
    return whole and {CONFIG, DATA} <= safetensors.notes(named(path)).keys()


def load_export(path: Path) -> tuple[ConfigDict, dict[str, Any], dict[str, np.ndarray], int]:
    """Config, facts of the data, averaged parameters by name, and step of a .safetensors.

    Raises UserError for one that is damaged.
    """
    texts = safetensors.notes(named(path))
    try:
        content = {name: json.loads(texts[name]) for name in (CONFIG, DATA)}
        step = int(texts["step"])
    except (ValueError, KeyError, RecursionError):
        raise UserError(f"{path}: its notes are damaged: export it again") from None
    return *_checked(content, path), safetensors.read(named(path)), step


def as_tree(arrays: Mapping[str, np.ndarray], template: Any, path: Path) -> Any:
    """The tree of arrays with these names. Dots part names, and may be in them.

    Raises UserError for arrays in a file that are not those of a template.
    """
    if words := first_difference(leaves(arrays), leaves(flatten_dict(template, sep="."))):
        raise UserError(f"{path} {words}: it is not of the network that its notes name")
    return unflatten_dict({each: arrays[".".join(each)] for each in flatten_dict(template)})


def _record(workdir: "Workdir") -> dict[str, Any]:
    return {CONFIG: json.loads(workdir.config().to_json()), DATA: workdir.data_facts()}


def _checked(content: Mapping[str, Any], where: Path) -> tuple[ConfigDict, dict[str, Any]]:
    check_record(content, _Content, where)
    return config_of(content[CONFIG], where), content[DATA]
