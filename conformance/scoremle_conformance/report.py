"""What was found, as a table for a person, as JSON, and as a page of several libraries."""

import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scoremle_conformance.adapter import ABILITIES, Adapter
from scoremle_conformance.adapters import ADAPTERS
from scoremle_conformance.checks import (
    CHECKS,
    EXACT_DIMS,
    FAIL,
    NOT_APPLICABLE,
    PASS,
    Case,
    examine,
)
from scoremle_conformance.signatures import Signature, diagnose

__all__ = ["Report", "as_issue", "as_markdown", "as_record", "as_table", "examined", "write_json"]


@dataclass(frozen=True)
class Report:
    """An adapter, its cases, and what is wrong with it."""

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
    if case.verdict == NOT_APPLICABLE or np.isinf(found.error):
        return found.words
    error, limit = (
        f"{x:.3g}" if not abs(x) >= 1000 else f"{x:,.0f}" for x in (found.error, found.limit)
    )
    return f"{error} {found.words} (limit {limit})"


def as_table(report: Report) -> str:
    """One line a case, then what is wrong."""
    adapter = report.adapter
    lines = [f"{_title(adapter)}, {adapter.setting}: {_set(adapter)}", ""]
    for case in report.cases:
        lines.append(f"{case.verdict:<15} {case.check:<12} {case.name}: {_measured(case)}")
    lines += ["", *(f"{check:<12} {verdict(report.of(check))}" for check in CHECKS), ""]
    lines += [f"WRONG: {fault.name}: {fault.words}" for fault in report.faults]
    return "\n".join(lines if report.faults else [*lines, "nothing wrong was found"])


def as_issue(report: Report) -> str:
    """Text for the maintainers: what fails, and the smallest example; "" if nothing does.

    The example is the failure of fewest dimensions whose values are known, with the point at which
    the library is furthest off; none where all have so many that nobody would read their numbers.
    """
    adapter, failed = report.adapter, [case for case in report.cases if case.verdict == FAIL]
    if not failed:
        return ""
    named = "; ".join(fault.name for fault in report.faults)
    command = f"python -m scoremle_conformance {_library(adapter)} --setting {adapter.setting}"
    return "\n\n".join([
        f"# {_title(adapter)}: log p is off ({named})",
        f"Setting: {_set(adapter)}. Python {platform.python_version()}, numpy {np.__version__}.",
        *(f"{fault.name}: {fault.words}." for fault in report.faults),
        *_smallest(failed),
        f"What fails, by `{command}`:",
        "\n".join(f"- {case.check}, {case.name}: {_measured(case)}" for case in failed),
    ])  # fmt: skip


def _smallest(failed: list[Case]) -> list[str]:
    known = [
        case.evidence for case in failed
        if case.evidence and case.evidence.answers.shape == case.evidence.truth.shape
        and case.evidence.answers.ndim == 1 and case.evidence.field.dims <= EXACT_DIMS
    ]  # fmt: skip
    if not known:
        return []
    found = min(known, key=lambda each: each.field.dims)
    i = int(np.argmax(np.nan_to_num(np.abs(found.answers - found.truth), nan=np.inf)))
    subject, path = found.field.subject, found.field.path
    numbers = {"weights": subject.weights, "means": subject.means, "variances": subject.variances}
    axes = [] if subject.h is None else [f"on the axes of I - 2 h h', h = {subject.h.tolist()}"]
    data = [f"{name} {each.tolist()}" for name, each in numbers.items()]
    what = "log P of the image" if found.kind else "log p(x)"
    return [
        f"Data are a mixture of Gaussians: {', '.join([*data, *axes])}. The network is the exact"
        f" {found.field.output} of these on the path {path}, to t = {path.stop:g}, whose prior is"
        f" N(0, {path.prior_std:g}^2 I). So {what} has a closed form, and at one point",
        f"    x = {found.x[i].tolist()}\n    {what}, closed form: {found.truth[i]:.6f} nats\n"
        f"    {what}, found:       {found.answers[i]:.6f} nats",
    ]


def _title(adapter: Adapter) -> str:
    return f"{adapter.name} {adapter.version}".strip()


def _library(adapter: Adapter) -> str:
    """The argument of the command that examines it."""
    place = f"{type(adapter).__module__}:{type(adapter).__qualname__}"
    return adapter.name if ADAPTERS.get(adapter.name) == place else place


def _set(adapter: Adapter) -> str:
    return adapter.settings[adapter.setting]


def as_record(report: Report) -> dict[str, Any]:
    """The same for a program, in values of JSON. A number that is not finite is null."""
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
    loaded = ("numpy", "scipy", "torch", "jax")
    versions = {name: sys.modules[name].__version__ for name in loaded if name in sys.modules}
    content = {
        "versions": {"Python": platform.python_version(), **versions},
        "reports": [as_record(report) for report in reports],
    }
    beside = file.with_name(file.name + ".part")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(file)


def as_markdown(files: list[Path]) -> str:
    """The tables of all reports in ``files``, and what failed."""
    loaded = [json.loads(file.read_text()) for file in files]
    records = [record for file in loaded for record in file["reports"]]
    versions = sorted({f"{name} {v}" for file in loaded for name, v in file["versions"].items()})
    results = [
        [
            *_named(record),
            *(mark.replace(NOT_APPLICABLE, "-") for mark in record["checks"].values()),
            "; ".join(record["faults"]) or "nothing found",
        ]
        for record in records
    ]
    settings = [[*_named(record)[::2], record["set"]] for record in records]
    absent = [[words, _lacking(records, words)] for words in ABILITIES.values()]
    parts = [
        f"With {', '.join(versions)}.",
        _table(["library", "version", "setting", *CHECKS, "what is wrong"], results),
        "### The settings",
        _table(["library", "setting", "what is set"], settings),
        "### What fails",
        "\n\n".join(filter(None, map(_failures, records))) or "Nothing.",
        "### What is not declared, and so not tested",
        _table(["what", "not declared by"], [row for row in absent if row[1]]),
    ]
    return "\n\n".join(parts)


def _named(record: dict[str, Any]) -> list[str]:
    return [record["library"], record["version"], record["setting"]]


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _failures(record: dict[str, Any]) -> str:
    failed = [case for case in record["cases"] if case["verdict"] == FAIL]
    lines = [f"- {case['check']}, {case['case']}: {case['told']}" for case in failed]
    head = f"*{record['library']}*, {record['setting']}:"
    return "\n".join([head, "", *lines]) if failed else ""


def _lacking(records: list[dict[str, Any]], words: str) -> str:
    """The libraries to which a question was not applicable for want of this ability."""

    def lacks(record: dict[str, Any]) -> bool:
        absent = (c["words"] for c in record["cases"] if c["verdict"] == NOT_APPLICABLE)
        return any(words in reason for reason in absent)

    return ", ".join(dict.fromkeys(r["library"] for r in records if lacks(r)))
