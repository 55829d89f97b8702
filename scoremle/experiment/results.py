"""results.json of an evaluation: each result by its name, sealed; and the values beside it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scoremle.errors import UserError
from scoremle.evaluation.result import Result, check_facts
from scoremle.experiment.consistency import Verdict
from scoremle.experiment.lock import locked
from scoremle.files import SEAL, inside, read_json, seal, unsealed, write_json
from scoremle.records import Name, check_record

__all__ = ["RESULTS", "are_sealed", "measured", "of_newest", "read_results"]

RESULTS = "results.json"

# Seconds for others to write theirs.
LONGEST_WAIT = 60.0


def read_results(path: Path) -> dict[str, Any]:
    """Reads the results in the file; none without the file.

    Args:
        path: of results.json.

    Raises UserError if it can't be read, if a result was altered, or if a fact is of another type
    than it must be, such as a name that no file can have.
    """
    results = read_json(path) if path.exists() else {}
    check_record(results, dict[Name, Any], path)
    for name, result in results.items():
        for label, facts in _facts(name, result):
            if unsealed(facts, label) is None:
                raise UserError(
                    f"{path}: {name} is not as it was written: move the file away and evaluate"
                    " again; finished parts are kept"
                )
        if isinstance(result, dict):
            check_facts(result, f"{path}: {name}")
        else:
            check_record(result, list[Verdict] | None, f"{path}: {name}")
    return results


def are_sealed(path: Path) -> bool:
    """Whether all records in the file have a seal: those of earlier versions have none.

    Args:
        path: of results.json.
    """
    records = (_facts(name, result) for name, result in read_results(path).items())
    return all(SEAL in facts for found in records for _, facts in found)


def measured(folder: Path, *names: str) -> list[Result]:
    """The results in a folder that are means over images, in the order of their making.

    Args:
        folder: that of the results, or one above it.
        names: lead from the folder to that of the results.

    Raises UserError as ``read_results``, and for one that lacks what is said wherever it is shown.
    """
    found = read_results(inside(folder, *names, RESULTS))
    return [
        Result.read(name, facts, inside(folder, *names))
        for name, facts in found.items() if isinstance(facts, dict) and "mean" in facts
    ]  # fmt: skip


def of_newest(results: Sequence[Result]) -> list[Result]:
    """The results of the newest checkpoint, at its last step: its number may have been replaced.

    Args:
        results: of any checkpoints.
    """
    newest = max(((result.checkpoint, result.step) for result in results), default=None)
    return [result for result in results if (result.checkpoint, result.step) == newest]


def add_results(path: Path, results: Mapping[str, Any]) -> None:
    """Adds results, each a record or a list of records, in place of those of the same names.

    Another process that adds its own at the same time loses none of them.
    """
    new = json.loads(json.dumps(results))
    for name, result in new.items():
        for label, facts in _facts(name, result):
            facts[SEAL] = seal([label, facts])
    with locked(path.with_name(f".{path.name}.lock"), "writing results", wait=LONGEST_WAIT):
        write_json(path, {**read_results(path), **new})


def _facts(name: str, result: Any) -> list[tuple[str, dict[str, Any]]]:
    """The records of a result, each with a name of its own."""
    records = result if isinstance(result, list) else [result]
    return [(f"{name} {i}", facts) for i, facts in enumerate(records) if isinstance(facts, dict)]
