"""Several processes of one run, of which one is killed, hangs, or has a clock that moves back.

Nothing is lost but work since the last save, no number is wrong, and each process that is not
killed ends with a line. Minutes, so only ``benchmarks/faults.py`` runs it;
tests/experiment/test_processes.py has a part of it.
"""

import os
import shutil
import signal
import time
from collections import Counter

import numpy as np
import pytest
from helpers.faults import SEED, report
from helpers.jobs import Evaluate, Score, Train
from helpers.several import LONGEST, Run, parameters, together

pytestmark = pytest.mark.skipif(not SEED, reason="minutes: python benchmarks/faults.py runs it")

KILLS = int(os.environ.get("SCOREMLE_KILLS", "3"))
LINE = "scoremle: error: "
# A clock that shows an hour less from its tenth second on.
CLOCK = """
import time
open(__file__ + ".used", "w").close()
real, begun = time.time, time.monotonic()
time.time = lambda: real() - 3600 * (time.monotonic() - begun > 10)
"""


# A save at every tenth step, and nothing else that takes long.
QUICK = (
    "--config.training.n_iters=60", "--config.training.log_freq=10",
    "--config.training.eval_freq=60", "--config.training.snapshot_sampling=False",
    "--config.model.attn_resolutions=()",
)  # fmt: skip


class Trains(Train):
    """Two processes that share a training."""

    def start(self, folder, logs, processes=2, **environment):
        run = together((*self.command(folder), *QUICK), logs, processes, **environment)
        if processes > 1:
            run.until_connected()
        return run

    def finish(self, folder, logs, *more, **environment):
        run = self.start(folder, logs, *more, **environment)
        assert set(run.codes()) == {0}, run.texts()
        return self.made(folder, logs)

    def made(self, folder, logs):
        return self.result(folder)


class TrainsInParts(Trains):
    """The same, with a state of which each has a part, and writes it."""

    def command(self, folder):
        return *super().command(folder), "--config.devices.fsdp", "--config.model.nf=32"


class Evaluates(Evaluate, Trains):
    """Two processes that share an evaluation."""

    def start(self, folder, logs):
        run = together(self.command(folder), logs)
        run.until_connected()
        return run


class Scores(Score, Trains):
    """Two jobs, each with its share; a third command makes the table."""

    def command(self, folder):
        return *super().command(folder), "--estimator=bound", "--repeats=2"

    def start(self, folder, logs):
        return Run([(*self.command(folder), f"--shard={i}/2") for i in (1, 2)], logs)

    def made(self, folder, logs):
        run = Run([(*self.command(folder), "--merge")], logs)
        assert run.codes() == [0], run.texts()
        return self.result(folder)


@pytest.fixture(params=[Trains, TrainsInParts, Evaluates, Scores])
def job(request):
    return request.param()


def begin(job, tiny, tmp_path, name="hit"):
    job.begin(tiny, tmp_path / name)
    return tmp_path / name


def test_any_of_them_is_killed(job, tiny, tmp_path):
    rng, logs, counts = np.random.default_rng(SEED), tmp_path / "logs", Counter()
    run = job.start(folder := begin(job, tiny, tmp_path, "whole"), logs)
    met = time.monotonic()
    assert set(run.codes()) == {0}, run.texts()
    seconds, whole = time.monotonic() - met, job.made(folder, logs)
    folder = begin(job, tiny, tmp_path)
    while counts.total() < KILLS:
        run = job.start(folder, logs)
        time.sleep(rng.uniform(0, seconds))
        victim, worker = int(rng.integers(2)), rng.integers(2) and not isinstance(job, Scores)
        if run.processes[victim].poll() is None:
            os.kill(run.worker(victim) if worker else run.processes[victim].pid, signal.SIGKILL)
            counts[_ends(run, None if worker else victim)] += 1
        else:  # too late: from the beginning again
            assert set(run.codes()) == {0}, run.texts()
            assert job.made(folder, logs) == whole
            shutil.rmtree(folder)
            begin(job, tiny, tmp_path)
    assert job.finish(folder, logs) == whole
    report(f"kills of one of two processes, {type(job).__name__.lower()}", counts)


def _ends(run, killed=None):
    """Says how those end that are left; each that was not done says a line."""
    codes = run.codes()
    for i, code in enumerate(codes):
        if i == killed:
            assert code in (0, -signal.SIGKILL)
        elif code:
            assert code == 2 and run.last(i).startswith(LINE), (code, run.texts())
    return "the others ended with a line" if 2 in codes else "the others were done"


@pytest.mark.parametrize("who", [0, 1])
def test_one_hangs(who, tiny, tmp_path):
    job, logs = Trains(), tmp_path / "logs"
    whole = job.finish(begin(job, tiny, tmp_path, "whole"), logs)
    folder = begin(job, tiny, tmp_path)
    run = job.start(folder, logs)
    worker = run.worker(who)
    os.kill(worker, signal.SIGSTOP)
    begun = time.monotonic()
    other = run.processes[1 - who].wait(LONGEST)
    seconds = time.monotonic() - begun
    assert other == 2 and run.last(1 - who).startswith(LINE), run.texts()
    os.kill(worker, signal.SIGCONT)
    assert run.processes[who].wait(LONGEST) == 2 and run.last(who).startswith(LINE), run.texts()
    assert job.finish(folder, logs) == whole
    what = "the first, where all meet, hangs" if who == 0 else "one of two processes hangs"
    report(what, {f"the other ends with a line after {seconds:.0f} s": 1})


def test_it_goes_on_with_fewer(tiny, tmp_path):
    job, logs = Trains(), tmp_path / "logs"
    whole = begin(job, tiny, tmp_path, "whole")
    job.finish(whole, logs)
    folder = begin(job, tiny, tmp_path)
    run = job.start(folder, logs)
    run.until_step(20)
    os.kill(run.worker(SEED % 2), signal.SIGKILL)
    _ends(run)
    job.finish(folder, logs, 1)
    np.testing.assert_allclose(parameters(folder), parameters(whole), atol=2e-6)
    steps = [(path / "metrics.jsonl").read_text().count("\n") for path in (whole, folder)]
    assert steps[0] == steps[1]
    report("one of two killed, and one goes on", {"ended as without a kill, within 2e-6": 1})


def test_a_clock_moves_back(tiny, tmp_path):
    job, logs, clock = Trains(), tmp_path / "logs", tmp_path / "clock"
    whole = job.finish(begin(job, tiny, tmp_path, "whole"), logs)
    clock.mkdir()
    (clock / "sitecustomize.py").write_text(CLOCK)
    folder = begin(job, tiny, tmp_path)
    run = job.start(folder, logs)
    run.until_step(20)
    os.kill(run.worker(0), signal.SIGKILL)  # who has the lock
    _ends(run)
    future = time.time() + 86400  # all files, and the lock of the dead, were written tomorrow
    assert (folder / ".training.lock").exists()
    for path in folder.rglob("*"):
        os.utime(path, (future, future))
    assert job.finish(folder, logs, PYTHONPATH=str(clock)) == whole
    assert (clock / "sitecustomize.py.used").exists()
    report("a clock that moves back", {"ended as without": 1})
