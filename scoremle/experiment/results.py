"""results.json of an evaluation: each result by its name, sealed; and the values beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from scoremle.errors import UserError
from scoremle.experiment.facts import RESULTS
from scoremle.experiment.lock import alone
from scoremle.files import SEAL, read_json, read_npz, seal, write_json
from scoremle.records import check_record

__all__ = ["add_results", "measured", "read_results", "read_values"]

# Seconds for others to write theirs.
LONGEST_WAIT = 60.0


# What is said of each result wherever it is shown.
TOLD = (
    "kind", "metric", "unit", "stderr", "estimator", "checkpoint", "step", "split", "images",
    "passes", "full_pass", "augmentation", "eps",
)  # fmt: skip


def read_results(path: Path) -> dict[str, Any]:
    """What lies in the file; nothing if there is none.

    Raises UserError if it can't be read, if a result is not as it was written, or if what it says
    is of another kind than it must be, such as a name that can't be one of files.
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
    check_record(results, RESULTS, path)
    return results


def measured(path: Path) -> dict[str, dict[str, Any]]:
    """The results in the file that are means over images.

    Raises UserError as ``read_results``, and for one that lacks what is said wherever it is shown.
    """
    results = read_results(path)
    found = {n: r for n, r in results.items() if isinstance(r, dict) and "mean" in r}
    for name, facts in found.items():
        if lacking := [field for field in TOLD if field not in facts]:
            raise UserError(f"{path}: {name} lacks {lacking[0]}; evaluate again")
    return found


def read_values(path: Path, column: str) -> Float[np.ndarray, "passes n"] | None:
    """A column of the arrays of a result; None where there is none that can be read."""
    values = (read_npz(path) or {}).get(column, np.zeros(0))
    return values if values.ndim == 2 and values.dtype.kind == "f" else None


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
