"""Benchmarks run to their end: the documents' figures are of their commands."""

import subprocess
import sys

import pytest
from helpers.places import ROOT

# The quickest form of each that needs neither a GPU, a training nor files of others.
QUICK = [
    "coding.py digits --steps 4", "interop.py", "network.py --quick blocks",
    "network.py --quick compile", "network.py --quick shares", "network.py --quick torch",
    "peers.py --quick --subjects mixture", "vectors.py --rows=2",
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("command", QUICK)
def test_a_benchmark_runs(command, tmp_path):
    script, *rest = command.split()
    found = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *rest],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip()
