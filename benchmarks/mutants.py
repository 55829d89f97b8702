"""Would the tests notice? Each wrong change of ``tests/helpers/mutants.py``, and its tests run.

    python benchmarks/mutants.py [--only=TEXT] [--results=FILE]

A copy of the checkout is changed, one change at a time, and the tests that should see the change
are run to the first that fails: the one that saw it last time, then the quick, the slow and the
long ones. Changes that no longer apply to the source are named first, and left out. What was
found is kept in a file (mutants.jsonl), so that a run that was stopped goes on; a change whose
source or tests were edited since is run again. The cheapest come first. At the end the tests that
failed are run without a change: there they must pass, else their failing says nothing. Then comes
a table by room, and the changes that no test noticed. All changes take hours.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from common import ROOT, parser_of

from helpers.mutants import CHANGES, SEEN_BY  # isort: skip
from helpers.source import changed  # isort: skip

COPIED = ("scoremle", "tests", "examples", "benchmarks", "docs", "main.py",
          "pyproject.toml", "README.md", "CHANGELOG.md", "Makefile")  # fmt: skip
SECONDS = 1200
# What the exit code of pytest says (5: no such tests). Any other: nothing was left to be tested.
ENDED = {0: "survived", 1: "noticed", 5: "survived"}
STAGES = ("not slow and not long", "slow and not long", "long")

Change = tuple[str, ...]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--only", default="", help="changes of files with this in their names")
    parser.add_argument("--results", type=Path, default=ROOT / "mutants.jsonl")
    options = parser.parse_args()
    chosen = [change for change in CHANGES if options.only in change[0] and applies(change)]
    with tempfile.TemporaryDirectory() as folder:
        found = Found(options.results, _copied(Path(folder) / "copy"))
        outcomes = {change: found.outcome(change) for change in sorted(chosen, key=found.cost)}
        found.check(chosen)
    _report(outcomes)


def applies(change: Change) -> bool:
    """Whether the source and the tests of a change are there; a line if they are not."""
    file, definition, old, new, *_ = change
    source = ROOT / "scoremle" / file
    missing = [name for name in _tests(change) if not (ROOT / name).is_file()]
    if not source.is_file() or changed(source.read_text(), definition, old, new) is None:
        print(f"no longer applies: {file}: {definition}: {old!r}")
    elif missing or not _tests(change):
        print(f"no such tests: {file}: {', '.join(missing) or 'none is named'}")
    else:
        return True
    return False


class Found:
    """What became of each change: looked up in a file, else tried in a copy of the checkout."""

    def __init__(self, path: Path, copy: Path) -> None:
        self.path, self.copy = path, copy
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        self.known = {each["key"]: each for each in found}
        # Of other versions too, the newest last.
        self.seen_by = {tuple(each["change"][:4]): each["by"] for each in found}
        self.seconds = {_tests(each["change"]): each.get("seconds", 0) for each in found}

    def cost(self, change: Change) -> float:
        """Seconds: what the same tests took before, else guessed from their length."""
        length = sum((self.copy / name).stat().st_size for name in _tests(change))
        return self.seconds.get(_tests(change)) or length / 1000

    def outcome(self, change: Change) -> str:
        """Noticed, survived, slow (the tests did not end in time) or broken (nor begin)."""
        key = _key(change, self.copy)
        if key not in self.known:
            start = time.monotonic()
            outcome, by, why = _tried(change, self.copy, self.seen_by.get(change[:4], ""))
            seconds = round(time.monotonic() - start, 1)
            found = {"key": key, "outcome": outcome, "by": by, "why": why, "change": change,
                     "seconds": seconds}  # fmt: skip
            with self.path.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(f"{outcome:9}{seconds:5.0f} s  {change[0]}: {change[2]!r}  {by}", flush=True)
            self.known[key] = found
        return self.known[key]["outcome"]

    def check(self, changes: list[Change]) -> None:
        """Ends the program if a test that noticed a change fails without it too."""
        by = {self.known[_key(change, self.copy)]["by"] for change in changes} - {""}
        if by and _pytest(self.copy, "", sorted(by)).returncode:
            raise SystemExit("tests that noticed changes fail without any: run the tests")


def _tests(change: Sequence[str]) -> tuple[str, ...]:
    names = (change[4] if len(change) > 4 else SEEN_BY.get(change[0], "")).split()
    return tuple(f"tests/{name}" for name in names)


def _key(change: Change, copy: Path) -> str:
    """The same while the change, its source and its tests are."""
    files = [copy / "scoremle" / change[0], *(copy / name for name in _tests(change))]
    content = json.dumps(change).encode() + b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(content).hexdigest()[:16]


def _copied(copy: Path) -> Path:
    copy.mkdir()
    for name in COPIED:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
    # Compiled programs are kept: most are the same whatever was changed.
    (ROOT / ".jax_cache").mkdir(exist_ok=True)
    (copy / ".jax_cache").symlink_to(ROOT / ".jax_cache")
    return copy


def _tried(change: Change, copy: Path, likely: str) -> tuple[str, str, str]:
    """How the tests ended with the change, which failed, and how. ``likely``: it comes first."""
    file, definition, old, new, *_ = change
    source = copy / "scoremle" / file
    text = source.read_text()
    source.write_text(changed(text, definition, old, new))
    tests = _tests(change)
    try:
        if likely and (ended := _pytest(copy, "", [likely])).returncode == 1:
            return "noticed", *_failed(ended.stdout)
        for marked in STAGES:
            ended = _pytest(copy, marked, tests)
            if ENDED.get(ended.returncode) != "survived":
                break
    except subprocess.TimeoutExpired:
        return "slow", "", ""
    finally:
        source.write_text(text)
    return ENDED.get(ended.returncode, "broken"), *_failed(ended.stdout)


def _failed(output: str) -> tuple[str, str]:
    """The test that failed, and what it said."""
    found = re.search(r"^(?:FAILED|ERROR) ([\w/.:]+)(.*)$", output, re.M)
    return (found[1], found[2][:200]) if found else ("", "")


def _pytest(copy: Path, marked: str, tests: Iterable[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-xq", "-p", "no:cacheprovider", "-m", marked, *tests],
        cwd=copy, capture_output=True, text=True, timeout=SECONDS,
        env={**os.environ, "PYTHONPATH": str(copy)},
    )  # fmt: skip


def _report(outcomes: dict[Change, str]) -> None:
    rooms = Counter((change[0].partition("/")[0], outcome) for change, outcome in outcomes.items())
    print("| room | changes | noticed |\n|---|---|---|")
    for room in sorted({room for room, _ in rooms}):
        total = sum(count for (of, _), count in rooms.items() if of == room)
        print(f"| `{room}` | {total} | {rooms[room, 'noticed']} |")
    for change, outcome in outcomes.items():
        if outcome != "noticed":
            print(f"{outcome}: {change[0]}: {change[1]}\n    {change[2]!r}\n    -> {change[3]!r}")
    counts = Counter(outcomes.values())
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
