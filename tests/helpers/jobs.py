"""Jobs of the program in a folder, and what comes of them."""

import shutil

import numpy as np

from helpers.several import parameters
from helpers.tiny_runs import TINY, digest, npz
from scoremle.experiment.results import read_results
from scoremle.experiment.workdir import Workdir


class Train:
    """From nothing: checkpoints, the log of the training, the parameters at its end."""

    def begin(self, tiny, folder):
        folder.mkdir()

    def command(self, folder):
        return *TINY, f"--workdir={folder}", "--mode=train"

    def result(self, folder):
        for store in (Workdir(folder).snapshots, Workdir(folder).preemption):
            for number in store.numbers():
                store.verify(number)
        names, numbers = digest(folder), Workdir(folder).snapshots.numbers()
        files = names["config.json"], names["metrics.jsonl"]
        return *files, numbers, parameters(folder).tobytes()


class Evaluate(Train):
    def begin(self, tiny, folder):
        shutil.copytree(tiny.workdir, folder)

    def command(self, folder):
        return *TINY, f"--workdir={folder}", "--mode=eval", "--config.eval.batch_size=20"

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
        """With --force where a kill came after the table was written, as a line then says."""
        table = folder / "scores.csv"
        force = ["--force"] * table.exists()
        return "score", folder, folder / "images.npy", f"--out={table}", *force

    def result(self, folder):
        return (folder / "scores.csv").read_text()
