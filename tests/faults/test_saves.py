"""A save with a fault at operations on files throughout, whichever library asks for them.

Orbax writes arrays in threads, through TensorStore, which is C++. So the system's own functions
are replaced, in processes that are really killed. The test tries an operation here and there;
``benchmarks/faults.py`` tries each.
"""

import json
import subprocess
import sys
from collections import Counter

from helpers.faults import SEED, preloaded, report
from helpers.places import ROOT

STRIDE = 23


def test_whatever_fails_in_a_save_a_whole_checkpoint_is_restored(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tests/helpers/failing_saves.py", tmp_path,
         str(2 + SEED % STRIDE), str(STRIDE)],
        capture_output=True, text=True, env=preloaded(tmp_path), timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(row) for row in done.stdout.splitlines()]
    report("faults within a save", Counter(row["outcome"] for row in rows))
    assert not [row for row in rows if row["outcome"] == "wrong"]
    assert len(rows) >= 3 * 100 // STRIDE
