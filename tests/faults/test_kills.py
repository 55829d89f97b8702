"""The program, killed at random moments: the same command ends as if nothing had been.

Each job takes a minute, so only ``benchmarks/faults.py`` runs them. tests/training/test_loop.py
and tests/cli/test_main.py have one kill each.
"""

import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.faults import SEED, report
from helpers.jobs import Evaluate, Score, Train
from helpers.places import ROOT

pytestmark = pytest.mark.skipif(not SEED, reason="minutes: python benchmarks/faults.py runs it")

KILLS = 2


def start(job, folder):
    command = [sys.executable, "-m", "scoremle", *job.command(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(job, folder):
    process = start(job, folder)
    _, said = process.communicate(timeout=500)
    assert process.returncode == 0, said.decode()
    return job.result(folder)


@pytest.mark.parametrize("job", [Train, Evaluate, Score])
def test_a_killed_command_is_run_again(job, tiny, tmp_path):
    job, rng = job(), np.random.default_rng(SEED)
    job.begin(tiny, tmp_path / "whole")
    job.begin(tiny, tmp_path / "killed")
    begun = time.monotonic()
    whole = finish(job, tmp_path / "whole")
    seconds = time.monotonic() - begun
    for _ in range(KILLS):
        process = start(job, tmp_path / "killed")
        time.sleep(rng.uniform(0, seconds))
        process.kill()
        process.communicate()
    assert finish(job, tmp_path / "killed") == whole
    report(f"kills, {type(job).__name__.lower()}", {"ended as without a kill": KILLS})
