"""What comes of faults, damage and kills, for as long as one likes.

    python benchmarks/faults.py [--minutes=10 | --long] [--seed=1]

The tests of ``tests/faults`` are run again and again: faults at operations on files, damage to
every file, mutations of true files, and kills of the program at random moments, also of one of
several processes that share a run, which may hang, too. Each round has a seed of its own, from
which all that is random follows. After so many minutes (--long: at Ctrl-C) nothing new is begun,
and a table says what came how often. The exit code is 1, and what was found is printed, if
anything came that docs/reliability.md does not allow.
"""

import argparse
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Of tests/faults, the quickest first.
TESTS = ("saves", "mutations", "faults", "damage", "kills", "several")
FORBIDDEN = "not allowed"
# A line of helpers.faults.report.
COUNTS = re.compile(r"^([\w, ]+): (\{.*\})$", re.MULTILINE)
EXAMPLES = "40"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--long", action="store_true", help="until Ctrl-C")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    options = parser.parse_args()
    end = time.monotonic() + (math.inf if options.long else 60 * options.minutes)
    counts: Counter[tuple[str, str]] = Counter()
    with suppress(KeyboardInterrupt):
        for seed in itertools.count(options.seed):
            for test in TESTS:
                if time.monotonic() < end:
                    counts += _tried(seed, test)
            if time.monotonic() > end:
                break
    print("| what | outcome | times |\n|---|---|---|")
    for (what, outcome), times in sorted(counts.items()):
        print(f"| {what} | {outcome} | {times:,} |")
    sys.exit(any(outcome == FORBIDDEN for _, outcome in counts))


def _tried(seed: int, test: str) -> Counter[tuple[str, str]]:
    """What a test says that it counted; says how it failed if it did."""
    file = f"tests/faults/test_{test}.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-xqs", "--timeout=0", "-p", "no:cacheprovider", file],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "SCOREMLE_SEED": str(seed), "SCOREMLE_EXAMPLES": EXAMPLES},
    )  # fmt: skip
    found = Counter({
        (what, outcome): times
        for what, counts in COUNTS.findall(done.stdout)
        for outcome, times in json.loads(counts).items()
    })  # fmt: skip
    print(f"seed {seed}, {test}: {found.total()}", flush=True)
    if done.returncode:
        print(done.stdout, flush=True)
        found[test, FORBIDDEN] += 1
    return found


if __name__ == "__main__":
    main()
