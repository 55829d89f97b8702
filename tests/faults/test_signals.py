"""A signal at an operation on files of a command: its exit code says so, and nothing is lost.

Nothing that is read then is taken for damaged, and the same command ends as if nothing had been.
The quick test tries an operation here and there of commands that are quick, the long one more.
"""

import gc
import io
import shutil
import signal
import sys
import threading
from collections import Counter
from contextlib import redirect_stderr

import numpy as np
import pytest
from helpers import small_places
from helpers.faults import SEED, Faults, report
from helpers.jobs import Train
from helpers.published_folder import FOLDER
from helpers.tiny_runs import digest
from PIL import Image

from scoremle import data
from scoremle.cli import main as cli
from scoremle.cli.commands.verify import verify
from scoremle.cli.signals import ANSWERED
from scoremle.experiment.results import read_results
from scoremle.experiment.score_table import ScoreRow, write_csv
from scoremle.quality import features, inception
from scoremle.quality.features import Extractor
from scoremle.quality.inception import Features

# A command that was stopped leaves files open, and Orbax the readers of what was not read.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def nothing_is_left_behind():
    yield
    gc.collect()


FEW = ("--config.eval.num_images=4", "--config.eval.batch_size=2", "--config.eval.nodes=4")


class Command:
    """One in a folder: what is there before, the words, and what it makes.

    ``finishes``: a signal after its work, while the end is saved, does not change the exit code.
    """

    finishes = False

    def __init__(self, request):
        self.request = request

    def begin(self, folder):
        shutil.copytree(self.request.getfixturevalue("tiny").workdir, folder)

    def made(self, folder):
        return digest(folder)


class Prepare(Command):
    """Pictures, of which one is damaged and may be left out."""

    def begin(self, folder):
        folder.mkdir()
        for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)):
            Image.fromarray(image).save(folder / f"{i}.png")
        (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])

    def words(self, folder):
        how = ("--skip-bad", "--test-fraction=0.5")
        return "data", "prepare", folder, *how, f"--into={folder}/set"

    def made(self, folder):
        found = data.Prepared(folder / "set")
        images = [found.images(split).tobytes() for split in ("train", "test")]
        return found.meta["skipped"], images


class Verify(Command):
    def begin(self, folder):
        small_places.make(folder)

    def words(self, folder):
        return "verify", folder

    def made(self, folder):
        return list(verify(folder))


class Import(Command):
    def begin(self, folder):
        shutil.copytree(FOLDER, folder / FOLDER.name)

    def words(self, folder):
        return "import", folder / FOLDER.name, f"--out={folder}/made"

    def made(self, folder):
        names = digest(folder / "made")
        return {name: names[name] for name in names if name.endswith((".json", "record/metadata"))}


class Export(Command):
    def words(self, folder):
        return "export", folder, folder / "made.safetensors", "--card"


class Report(Command):
    def words(self, folder):
        return "report", folder


class Evaluate(Command):
    def words(self, folder):
        return "eval", folder, *FEW

    def made(self, folder):
        results = read_results(folder / "eval/results.json")
        return {name: facts["mean"] for name, facts in results.items()}


class Score(Command):
    def begin(self, folder):
        super().begin(folder)
        np.save(folder / "images.npy", np.zeros((3, 8, 8, 1), np.uint8))

    def words(self, folder):
        return "score", folder, folder / "images.npy", f"--out={folder}/scores.csv", "--repeats=1"

    def made(self, folder):
        return (folder / "scores.csv").read_text()


class Compare(Command):
    """Two tables of scores, which it only reads."""

    def begin(self, folder):
        folder.mkdir()
        for name, error in (("a", 0.1), ("b", 0.2)):
            row = ScoreRow("1.png", bpd=3.0 + error, error=error, probe_stderr=error)
            write_csv(folder / f"{name}.csv", [row, row], dims=64, reference=0, estimator="exact")

    def words(self, folder):
        return "compare", folder / "a.csv", folder / "b.csv"


class Stats(Command):
    """Of digits, by features that cost nothing."""

    def begin(self, folder):
        folder.mkdir()
        patch = self.request.getfixturevalue("monkeypatch")
        patch.setattr(features, "load_inception", lambda _: Extractor(self.apply, "means", 3, "0"))

    def words(self, folder):
        return "stats", "digits", "--split=test", "--weights=none", f"--out={folder}/stats.npz"

    def made(self, folder):
        with np.load(folder / "stats.npz") as arrays:
            return arrays["pool_3"].tobytes()

    @staticmethod
    def apply(images):
        return Features(np.mean(images, axis=(1, 2)), np.zeros((len(images), 2)))


class ConvertInception(Command):
    """Weights of a network that is one layer."""

    def begin(self, folder):
        torch = pytest.importorskip("torch")
        folder.mkdir()
        patch = self.request.getfixturevalue("monkeypatch")
        patch.setattr(inception, "shapes", lambda: {"fc/kernel": (5, 3)})
        torch.save({"fc.weight": torch.arange(15.0).reshape(3, 5)}, folder / "weights.pth")

    def words(self, folder):
        return "convert-inception", folder / "weights.pth", folder / "weights.npz"

    def made(self, folder):
        with np.load(folder / "weights.npz") as arrays:
            return arrays["fc/kernel"].tobytes()


class Sample(Command):
    def words(self, folder):
        return "sample", folder, "-n=2", "-o", folder / "samples.npy"

    def made(self, folder):
        return np.load(folder / "samples.npy").tobytes()


class Trains(Command):
    finishes = True
    job = Train()

    def begin(self, folder):
        folder.mkdir()

    def words(self, folder):
        return self.job.command(folder)

    def made(self, folder):
        return self.job.result(folder)


def run(command, folder, n=0, number=None, more=()):
    """Before and after a command's work SIGTERM ends it at once, as it does the program.

    A program that ends waits for threads of a save that a signal interrupted, and so does this.
    """
    usual = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    there = set(threading.enumerate())
    try:
        with Faults(folder, n, number, reads=None) as faults:
            words = [str(word) for word in (*command.words(folder), *more)]
            return cli.main(words), faults
    finally:
        signal.signal(signal.SIGTERM, usual)
        for thread in {*threading.enumerate()} - there:
            if not thread.daemon:
                thread.join(30)


def check(command, place, step):
    """Sends a signal at every so many operations."""
    begun, folder = place / "begun", place / "work"
    command.begin(begun)
    shutil.copytree(begun, folder)
    code, faults = run(command, folder)
    assert code == 0
    whole, counts = command.made(folder), Counter()
    for n in range(1 + SEED % step, faults.done + 1, step):
        number = ANSWERED[n % 2]
        shutil.rmtree(folder)
        shutil.copytree(begun, folder)
        with redirect_stderr(io.StringIO()) as said:
            code, met = run(command, folder, n, number)
        # The first run of a process may have had some more operations.
        done = not met.kind or command.finishes
        assert code == 128 + number or (done and code == 0), (n, said.getvalue())
        assert code or command.made(folder) == whole
        assert "damaged" not in said.getvalue() and "error" not in said.getvalue()
        with redirect_stderr(said):
            code, _ = run(command, folder)
            if "--force" in said.getvalue():
                code, _ = run(command, folder, more=("--force",))
        is_there = "already" in said.getvalue() or "exists" in said.getvalue()
        assert code == 0 or is_there, (n, met.kind, said.getvalue())
        assert command.made(folder) == whole, (n, met.kind)
        counts["stopped, and done by the same command"] += 1
    report(f"signals, {type(command).__name__.lower()}", counts)


LONG = [
    (Prepare, 1), (Verify, 1), (Import, 1), (Export, 1), (Report, 5), (Evaluate, 10), (Score, 10),
    (Sample, 10), (Stats, 1),
    (ConvertInception, 1), (Trains, 100),
]  # fmt: skip


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("command", "step"),
    [
        (Prepare, 5), (Compare, 1),
        *(pytest.param(*each, marks=pytest.mark.long) for each in LONG),
    ],
)  # fmt: skip
def test_a_signal_ends_a_command_and_loses_nothing(command, step, request, tmp_path):
    check(command(request), tmp_path, step)
