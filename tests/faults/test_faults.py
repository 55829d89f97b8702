"""At every operation on files, one after the other: an error, a full disk, a kill, a signal.

Whatever fails, what is there is the old state or the new one, whole; an error is one line; a
signal ends the work, leaves nothing that is half written, and does not damage what is read; and
the same work done again ends as if nothing had been. The numbers of these tests stand in
docs/reliability.md.
"""

import errno
import gc
import itertools
import logging
import shutil
import signal
import subprocess
import threading
from collections import Counter

import jax
import numpy as np
import pytest
from helpers import small_places
from helpers.faults import SEED, Faults, Killed, report
from helpers.marks import some

from scoremle import data
from scoremle.cli.signals import ANSWERED, answered
from scoremle.data import prepared
from scoremle.data.readers.base import ImageReport
from scoremle.errors import Stopped, UserError
from scoremle.experiment import score_table
from scoremle.experiment.results import add_results, read_results
from scoremle.experiment.workdir import Workdir
from scoremle.files import read_npz, read_sealed, write_npz
from scoremle.model import Scores
from scoremle.published import PublishedCheckpoints
from scoremle.resumable import resumable_map
from scoremle.training import checkpoints
from scoremle.training.checkpoints import Checkpoints
from scoremle.training.checksums import tree_hash
from scoremle.training.saving import Saving
from scoremle.training.writers import JsonLines

# A killed process leaves files open, and Orbax the readers of what can't be read.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def nothing_is_left_behind():
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def orbax_writes_each_tree_once(tmp_path, monkeypatch):
    """What Orbax has written is then copied, by another program: it takes a tenth of the time."""
    write = checkpoints._write

    def copied(path, tree, meta):
        made = tmp_path / "made" / f"{tree_hash(tree)}_{len(meta)}"
        if not made.exists():
            write(made, tree, meta)
        subprocess.run(["cp", "-r", made, path], check=True)

    monkeypatch.setattr(checkpoints, "_write", copied)


OLD, NEW = ({"a": np.full(3, fill, np.float32)} for fill in (1.0, 2.0))
TEMPLATE = jax.eval_shape(lambda: OLD)


class Save:
    """A checkpoint more, of which one too many is removed."""

    number, keep = 3, 2

    def begin(self, folder):
        for number in (1, 2):
            Checkpoints(folder, keep=None).save(number, OLD, {})

    def work(self, folder):
        self._save(Checkpoints(folder, keep=self.keep), self.number, NEW, {"new": True})

    def _save(self, *checkpoint):
        with Saving() as saves:
            saves.save(*checkpoint)

    def state(self, folder):
        store = Checkpoints(folder, keep=None)
        there = [store.restore(TEMPLATE, number) for number in store.numbers()]
        assert len(there) >= 2  # none is lost that was there
        return there[-1].number, there[-1].meta, tree_hash(there[-1].tree)


class Replace(Save):
    """A checkpoint in place of another of its number."""

    number, keep = 2, None


class ReplacePublished(Save):
    """The same in place of a published file."""

    def begin(self, folder):
        shutil.copytree(self.theirs, folder)

    def work(self, folder):
        store = PublishedCheckpoints(folder, keep=None)
        self._save(store, 1, small_places.state(20), {"step": 20})

    def state(self, folder):
        restored = PublishedCheckpoints(folder, keep=None).restore(small_places.TEMPLATE, 1)
        return restored.meta["step"], tree_hash(restored.tree)


class Evaluate:
    """Parts, values of images, and a result beside those there are."""

    def begin(self, folder):
        add_results(folder / "results.json", {"old": {"mean": 1.0}})

    def work(self, folder):
        rows = resumable_map(small_places.work, 4, size=2, folder=folder / small_places.PARTS)
        np.testing.assert_array_equal(rows["bpd"][0], 3.0 + np.arange(4) / 8)
        write_npz(folder / "new.npz", rows)
        add_results(folder / "results.json", {"new": {"mean": float(rows["bpd"].mean())}})

    def state(self, folder):
        results = read_results(folder / "results.json")
        if "new" in results:
            assert read_npz(folder / "new.npz") is not None
        return {name: facts["mean"] for name, facts in results.items()}


class Score:
    """A table of scores in place of another."""

    def begin(self, folder):
        folder.mkdir()
        self._write(folder, 3.0)

    def work(self, folder):
        self._write(folder, 4.0)

    def state(self, folder):
        return (folder / "scores.csv").read_text()

    def _write(self, folder, bpd):
        scores = Scores.of_passes({"bpd": np.full((2, 5), bpd)}, dims=10)
        images = np.zeros((5, 4, 4, 1), np.uint8)
        reports = [ImageReport(name, image) for name, image in zip("abcde", images, strict=True)]
        rows = score_table.rows(reports, images, scores, np.zeros(0), passes=2)
        score_table.write_csv(
            folder / "scores.csv", rows, dims=16, reference=0, estimator="exact"
        )


class Prepare:
    """Data prepared, and opened."""

    def begin(self, folder):
        folder.mkdir()

    def work(self, folder):
        if not data.is_prepared(folder / "set"):
            small_places.prepare(folder / "set", 5)
        data.Prepared(folder / "set").images("train")

    def state(self, folder):
        if not prepared.is_prepared(folder / "set"):
            return None
        found = data.Prepared(folder / "set")
        found.verify()
        return found.images("test").tobytes()


class Begin:
    """What a training writes beside its checkpoints, under its lock."""

    def begin(self, folder):
        Workdir(folder).describe(small_places.EXPERIMENT)
        self._rows(folder).write(10, {"loss": 1.0})

    def work(self, folder):
        place = Workdir(folder)
        with place.locked():
            place.describe(small_places.EXPERIMENT)
            rows = self._rows(folder)
            rows.rewind(10)
            rows.write(20, {"loss": 0.5})

    def state(self, folder):
        place = Workdir(folder)
        assert read_sealed(place.config_path, "") == small_places.EXPERIMENT.config
        assert place.levels() == 17
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return lines[0], lines[1:] == ['{"step": 20, "loss": 0.5}']

    def _rows(self, folder):
        return JsonLines(folder / "metrics.jsonl")


JOBS = [Save, Replace, ReplacePublished, Evaluate, Score, Prepare, Begin]
ERRORS = (errno.ENOSPC, errno.EIO)
HALF_WRITTEN = (".tmp", ".new", ".old")
FAULTS = (errno.ENOSPC, signal.SIGTERM, errno.EIO, signal.SIGINT)


def wait_for_saves():
    """As Python does before it ends. A signal may come while the thread is started."""
    for thread in threading.enumerate():
        if thread.name.startswith("save"):
            thread.join()


def run(work, folder, n, fault, **more):
    """Works with a fault; which operation failed, or None if there were fewer than n."""
    with Faults(folder, n, fault, **more) as faults:
        try:
            with answered():
                work(folder)
        except (UserError, OSError) as error:  # of an OSError the command makes a line, too
            assert fault in ERRORS and "\n" not in str(error), error
        except Killed:
            assert fault is None
        except (Stopped, KeyboardInterrupt) as end:
            assert isinstance(end, KeyboardInterrupt if fault == signal.SIGINT else Stopped)
            wait_for_saves()
            assert not [path for path in folder.rglob("*") if path.suffix in HALF_WRITTEN]
        else:
            assert faults.kind is None or fault in ERRORS, "it does not end"
    return faults.kind


@pytest.mark.parametrize("each", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("job", JOBS)
def test_whatever_fails_the_old_state_or_the_new_is_whole(job, each, tmp_path):
    """A kill at ``each`` operation, and each other fault; or at every third, and these in turn."""
    job = job()
    if isinstance(job, ReplacePublished):
        job.theirs = small_places.make(tmp_path / "places") / "theirs"
    begun, folder, counts = tmp_path / "begun", tmp_path / "work", Counter()
    job.begin(begun)
    old = job.state(begun)
    shutil.copytree(begun, tmp_path / "ended")
    job.work(tmp_path / "ended")
    new = job.state(tmp_path / "ended")
    assert old != new
    for n in itertools.count(1) if each else itertools.count(1 + SEED % 3, 3):
        for fault in (None, *(FAULTS if each else [FAULTS[(n + SEED) % len(FAULTS)]])):
            shutil.copytree(begun, folder)
            kind = run(job.work, folder, n, fault)
            assert job.state(folder) in (old, new), (n, kind, fault)
            job.work(folder)
            assert job.state(folder) == new, (n, kind, fault)
            shutil.rmtree(folder)
            counts["survived" if kind else "no fault"] += 1
        if kind is None:
            break
    report(f"faults, {type(job).__name__.lower()}", counts)


class Restore(Save):
    """A checkpoint, of several that are there."""

    def work(self, folder):
        Checkpoints(folder, keep=None).restore(TEMPLATE)


@some("fault", [errno.EIO, *ANSWERED], quick=[errno.EIO])
@pytest.mark.parametrize("job", [Restore, Evaluate, Prepare, Begin])
def test_what_can_not_be_read_loses_nothing_and_a_signal_is_no_damage(
    job, fault, tmp_path, caplog
):
    """Read again where all is done: by then there are files of each kind."""
    job, done, folder, counts = job(), tmp_path / "done", tmp_path / "work", Counter()
    job.begin(done)
    job.work(done)
    new = job.state(done)
    for n in itertools.count(1):
        shutil.copytree(done, folder)
        with caplog.at_level(logging.WARNING, "scoremle"):
            kind = run(job.work, folder, n, fault, reads=True)
        assert fault == errno.EIO or "damaged" not in caplog.text
        assert job.state(folder) == new, n
        job.work(folder)
        assert job.state(folder) == new, n
        shutil.rmtree(folder)
        if kind is None:
            break
        counts["survived"] += 1
    assert counts
    report(f"faults of reading, {type(job).__name__.lower()}", counts)


def test_a_checkpoint_that_can_not_be_read_is_named_and_the_one_before_taken(tmp_path, caplog):
    Save().begin(tmp_path)
    counts = Counter()
    for n in itertools.count(1):
        caplog.clear()
        with (
            Faults(tmp_path, n, errno.EIO, reads=True) as faults,
            caplog.at_level(logging.WARNING, "scoremle"),
        ):
            try:
                number = Checkpoints(tmp_path, keep=None).restore(TEMPLATE).number
            except UserError as error:
                number = None
                assert "is damaged" in str(error)
        if faults.kind is None:
            break
        assert number != 1 or "checkpoint_2 is damaged" in caplog.text
        counts["refused" if number is None else f"checkpoint {number} restored"] += 1
    report("faults of reading", counts)
    assert counts["checkpoint 1 restored"]
