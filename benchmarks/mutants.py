"""Would the tests notice? Each wrong change of ``tests/helpers/mutants.py``, and its tests run.

    python benchmarks/mutants.py [--only=TEXT] [--results=FILE]

A copy of the checkout is changed, one change at a time, and the tests that should see the change
are run to the first that fails. What was found is kept in a file (mutants.jsonl), so that a run
that was stopped goes on; a change whose source or tests were edited since is run again. It ends
with a table of those that no test noticed. All changes take hours.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.mutants import CHANGES, SEEN_BY  # noqa: E402

COPIED = ("scoremle", "tests", "configs", "examples", "benchmarks", "docs", "main.py",
          "pyproject.toml", "README.md", "CHANGELOG.md", "Makefile")  # fmt: skip
SECONDS = 1200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="changes of files with this in their names")
    parser.add_argument("--results", type=Path, default=ROOT / "mutants.jsonl")
    options = parser.parse_args()
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    known = {found["key"]: found["noticed"] for found in map(json.loads, lines)}
    chosen = [change for change in CHANGES if options.only in change[0]]
    with tempfile.TemporaryDirectory() as folder:
        for change in chosen:
            if _key(change) not in known:
                known[_key(change)] = _noticed(change, Path(folder))
                found = {"key": _key(change), "noticed": known[_key(change)], "change": change}
                with options.results.open("a") as file:
                    file.write(json.dumps(found) + "\n")
                print(f"{found['noticed']:9} {change[0]}: {change[1]!r}", flush=True)
    _report(chosen, known)


def _tests(change: tuple[str, ...]) -> list[str]:
    return (change[3] if len(change) > 3 else SEEN_BY[change[0]]).split()


def _key(change: tuple[str, ...]) -> str:
    """The same while the change, its source and its tests are."""
    files = [ROOT / "scoremle" / change[0], *(ROOT / "tests" / name for name in _tests(change))]
    content = json.dumps(change).encode() + b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(content).hexdigest()[:16]


def _noticed(change: tuple[str, ...], folder: Path) -> str:
    """"noticed", "survived", or "slow" if the tests did not end in time."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in COPIED:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
    # Compiled programs are kept: most are the same whatever was changed.
    (ROOT / ".jax_cache").mkdir(exist_ok=True)
    (copy / ".jax_cache").symlink_to(ROOT / ".jax_cache")
    file, old, new, *_ = change
    text = (copy / "scoremle" / file).read_text()
    (copy / "scoremle" / file).write_text(text.replace(old, new))
    tests = [f"tests/{name}" for name in _tests(change)]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        ended = subprocess.run(
            command, cwd=copy, capture_output=True, timeout=SECONDS,
            env={**os.environ, "PYTHONPATH": str(copy)},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "slow"
    return "survived" if ended.returncode == 0 else "noticed"


def _report(chosen: list[tuple[str, ...]], known: dict[str, str]) -> None:
    for change in chosen:
        if known[_key(change)] != "noticed":
            print(f"{known[_key(change)]}: {change[0]}\n    {change[1]!r}\n    -> {change[2]!r}")
    counts = Counter(known[_key(change)] for change in chosen)
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
