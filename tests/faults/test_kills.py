"""The program, killed at random moments: the same command ends as if nothing had been.

Each job takes a minute, so only ``benchmarks/faults.py`` runs them. tests/training/test_loop.py
and tests/cli/test_main.py have one kill each.
"""

import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.faults import SEED, report
from helpers.places import ROOT
from helpers.tiny_runs import TINY, digest, npz

from scoremle.experiment.results import read_results
from scoremle.experiment.workdir import Workdir

pytestmark = pytest.mark.skipif(not SEED, reason="minutes: python benchmarks/faults.py runs it")

KILLS = 2


class Train:
    """From nothing: checkpoints and the log of the training."""

    def begin(self, tiny, folder):
        folder.mkdir()

    def command(self, folder):
        return *TINY, f"--workdir={folder}", "--mode=train"

    def result(self, folder):
        for store in (Workdir(folder).snapshots, Workdir(folder).preemption):
            for number in store.numbers():
                store.verify(number)
        names = digest(folder)
        return names["config.json"], names["metrics.jsonl"], Workdir(folder).snapshots.numbers()


class Evaluate(Train):
    def begin(self, tiny, folder):
        shutil.copytree(tiny.workdir, folder)

    def command(self, folder):
        return *TINY, f"--workdir={folder}", "--mode=eval"

    def result(self, folder):
        results = read_results(folder / "eval" / "results.json")
        values = [npz(path)["bpd"].tolist() for path in sorted(folder.glob("eval/*.npz"))]
        return {name: facts["mean"] for name, facts in results.items()}, values


class Score(Evaluate):
    def begin(self, tiny, folder):
        super().begin(tiny, folder)
        images = np.random.default_rng(0).integers(0, 17, (40, 8, 8, 1), np.uint8)
        np.save(folder / "images.npy", images)

    def command(self, folder):
        return "score", folder, folder / "images.npy", f"--out={folder}/scores.csv"

    def result(self, folder):
        return (folder / "scores.csv").read_text()


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
