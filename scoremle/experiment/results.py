"""results.json of an evaluation: each result by its name, with a seal of both."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scoremle.errors import UserError
from scoremle.experiment.lock import alone
from scoremle.files import SEAL, read_json, seal, write_json

__all__ = ["add_results", "read_results"]

# Seconds for others to write theirs.
LONGEST_WAIT = 60.0


def read_results(path: Path) -> dict[str, Any]:
    """What lies in the file; nothing if there is none.

    Raises UserError if it can't be read, or if a result is not as it was written.
    """
    results = read_json(path) if path.exists() else {}
    for name, result in results.items():
        for label, facts in _facts(name, result):
            rest = {key: value for key, value in facts.items() if key != SEAL}
            if facts.get(SEAL) not in (None, _seal(label, rest)):
                raise UserError(
                    f"{path}: {name} is not as it was written: move the file away and evaluate"
                    " again; finished parts are kept"
                )
    return results


def add_results(path: Path, results: Mapping[str, Any]) -> None:
    """Adds results, each a record or a list of records, in place of those of the same names.

    Another process that adds its own at the same time loses none of them.
    """
    new = json.loads(json.dumps(results))
    for name, result in new.items():
        for label, facts in _facts(name, result):
            facts[SEAL] = _seal(label, facts)
    with alone(path.with_name(f".{path.name}.lock"), "writing results", wait=LONGEST_WAIT):
        write_json(path, {**read_results(path), **new})


def _facts(name: str, result: Any) -> list[tuple[str, dict[str, Any]]]:
    """The records of a result, each with a name of its own."""
    records = result if isinstance(result, list) else [result]
    return [(f"{name} {i}", facts) for i, facts in enumerate(records) if isinstance(facts, dict)]


def _seal(label: str, facts: Mapping[str, Any]) -> str:
    return seal([label, dict(facts)])
