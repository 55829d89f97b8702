"""What was found, as a table for a person, as JSON, and as a page of several libraries."""

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from scoremle_conformance.adapter import ABILITIES, Adapter
from scoremle_conformance.checks import CHECKS, FAIL, NOT_APPLICABLE, PASS, Case, examine
from scoremle_conformance.signatures import Signature, diagnose

__all__ = ["Report", "as_markdown", "as_record", "as_table", "examined", "write_json"]


@dataclass(frozen=True)
class Report:
    """An adapter, what it was asked, and what is wrong with it."""

    adapter: Adapter
    cases: list[Case]
    faults: list[Signature]

    @property
    def failed(self) -> bool:
        return any(case.verdict == FAIL for case in self.cases)

    def of(self, check: str) -> list[Case]:
        return [case for case in self.cases if case.check == check]


def examined(adapter: Adapter, *, quick: bool = False) -> Report:
    """The report of an adapter; ``quick`` leaves out large dimensions and repetitions."""
    cases = examine(adapter, quick=quick)
    return Report(adapter, cases, diagnose(adapter, cases))


def verdict(cases: list[Case]) -> str:
    """Of one check: it passes if all that applies does, and something applies."""
    verdicts = [case.verdict for case in cases]
    applied = len(verdicts) - verdicts.count(NOT_APPLICABLE)
    if not applied:
        return NOT_APPLICABLE
    passed = verdicts.count(PASS)
    failed = applied - passed
    return f"FAIL {failed}/{applied}" if failed else f"{PASS} {applied}/{applied}"


def _measured(case: Case) -> str:
    found = case.found
    if case.verdict == NOT_APPLICABLE:
        return found.words
    return f"{found.error:.2g} (up to {found.limit:.2g}) {found.words}"


def as_table(report: Report) -> str:
    """One line a case, then what is wrong."""
    adapter = report.adapter
    lines = [f"{adapter.name} {adapter.version}, {adapter.setting}: {_set(adapter)}", ""]
    for case in report.cases:
        lines.append(f"{case.verdict:<15} {case.check:<12} {case.name}: {_measured(case)}")
    lines += ["", *(f"{check:<12} {verdict(report.of(check))}" for check in CHECKS), ""]
    lines += [f"WRONG: {fault.name}: {fault.words}" for fault in report.faults]
    return "\n".join(lines if report.faults else [*lines, "nothing wrong was found"])


def _set(adapter: Adapter) -> str:
    return adapter.settings[adapter.setting]


def as_record(report: Report) -> dict[str, Any]:
    """The same for a program, in values that JSON knows. What is not finite is null."""
    adapter = report.adapter

    def number(x: float) -> float | None:
        return float(x) if np.isfinite(x) else None

    return {
        "library": adapter.name,
        "version": adapter.version,
        "setting": adapter.setting,
        "set": _set(adapter),
        "checks": {check: verdict(report.of(check)) for check in CHECKS},
        "faults": [fault.name for fault in report.faults],
        "cases": [
            {
                "check": case.check, "case": case.name, "verdict": case.verdict,
                "error": number(case.found.error), "limit": number(case.found.limit),
                "words": case.found.words, "told": _measured(case),
            }
            for case in report.cases
        ],
    }  # fmt: skip


def write_json(reports: list[Report], file: Path) -> None:
    """Writes reports, whole or not at all."""
    told = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "reports": [as_record(report) for report in reports],
    }
    beside = file.with_name(file.name + ".part")
    beside.write_text(json.dumps(told, indent=1) + "\n")
    beside.replace(file)


def as_markdown(files: list[Path]) -> str:
    """One table of all reports in ``files``, and below it what failed."""
    records = [r for file in files for r in json.loads(file.read_text())["reports"]]
    rows = [["library", "version", "setting", *CHECKS, "what is wrong"]]
    rows.append(["---"] * len(rows[0]))
    for record in records:
        marks = [mark.replace(NOT_APPLICABLE, "-") for mark in record["checks"].values()]
        wrong = "; ".join(record["faults"]) or "nothing found"
        rows.append([record["library"], record["version"], record["setting"], *marks, wrong])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    for record in records:
        lines += ["", f"### {record['library']}, {record['setting']}", "", f"{record['set']}.", ""]
        failed = [case for case in record["cases"] if case["verdict"] == FAIL]
        lines += [f"- {c['check']} fails: {c['case']}: {c['told']}" for c in failed]
        lines += [] if failed else ["- what applies passes"]
        needed = " ".join(c["words"] for c in record["cases"] if c["verdict"] == NOT_APPLICABLE)
        absent = [words for words in ABILITIES.values() if words in needed]
        lines += [f"- not declared, so not asked: {'; '.join(absent)}"] if absent else []
    return "\n".join(lines)
