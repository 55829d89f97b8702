"""A save with a fault at operations on files throughout, whichever library asks for them.

Orbax writes arrays in threads, through TensorStore, which is C++. So the system's own functions
are replaced, in processes that are really killed. The quick test tries an operation here and
there, the long one each; ``benchmarks/faults.py`` does so in turn.
"""

import json
import subprocess
import sys
from collections import Counter

import pytest
from helpers.faults import SEED, preloaded, report
from helpers.places import ROOT

LONGEST = 1500


@pytest.mark.timeout(LONGEST)
@pytest.mark.parametrize("stride", [37, pytest.param(1, marks=pytest.mark.long)])
def test_whatever_fails_in_a_save_a_whole_checkpoint_is_restored(stride, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tests/helpers/failing_saves.py", tmp_path,
         str(2 + SEED % stride), str(stride)],
        capture_output=True, text=True, env=preloaded(tmp_path), timeout=LONGEST,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(row) for row in done.stdout.splitlines()]
    report("faults within a save", Counter(row["outcome"] for row in rows))
    assert not [row for row in rows if row["outcome"] == "wrong"]
    assert len(rows) >= 10
