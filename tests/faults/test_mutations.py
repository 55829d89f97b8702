"""Every reader on mutations of true files: what the file declares, or one line; nothing else.

``SCOREMLE_EXAMPLES`` is how many mutations of each file are tried. ``benchmarks/faults.py`` tries
others, for as long as it is told. What takes long to read is left to the long tests.
"""

import functools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers.faults import SEED, report
from helpers.places import ROOT

pytest.importorskip("hypothesis")
from helpers.subjects import SUBJECTS

EXAMPLES = os.environ.get("SCOREMLE_EXAMPLES", "2")


LONG = {name for name, subject in SUBJECTS.items() if subject.share < 1}


@functools.cache
def found(long):
    """For each subject what was said, and how its process ended."""
    names = LONG if long else SUBJECTS.keys() - LONG
    done = subprocess.run(
        [sys.executable, ROOT / "tests/helpers/mutations.py", EXAMPLES, str(SEED), *names],
        capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = (row.split("\t") for row in done.stdout.splitlines())
    found = {name: (said, code) for name, said, code in rows}
    report("mutations", sum((Counter(json.loads(said)) for said, _ in found.values()
                             if said.startswith("{")), Counter()))  # fmt: skip
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited on Linux")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in SUBJECTS]
)
def test_a_mutation_is_refused_in_a_line_or_read_as_declared(name):
    said, code = found(name in LONG)[name]
    assert code == "0" and said[0] in '{"', said.encode().decode("unicode_escape")
    if isinstance(counts := json.loads(said), str):
        pytest.skip(counts)
    assert sum(counts.values()) > 2
