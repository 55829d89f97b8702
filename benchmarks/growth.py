"""Does the work on many images grow as their number, and its memory not?

    python benchmarks/growth.py                             # 100, 1,000 and 10,000 images: minutes
    python benchmarks/growth.py --parts score --counts 1000 50000

Images of noise, 8x8, and a network that takes next to no time: what is left is the pipeline's.
Each row is a command in a process of its own:

    prepare    arrays of so many training and as many test images, into a prepared folder
    pictures   the same from so many PNG files
    score      a table of the images under a closed form, in one pass
    page       the table again, with a page of the images
    eval       the exact likelihood of the test images, by a network of 8 channels and 4 steps
    report     the page about that
    features   features of the images, by a closed form in place of Inception

Columns: seconds that passed; seconds of processor time; megabytes at most, where less than those
of this script can't be seen; megabytes of what it wrote. A command takes some seconds before its
first image. The last line is JSON.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import ROOT, answer, parser_of
from PIL import Image

COUNTS = (100, 1000, 10_000)
MODEL = """
import scoremle

def model():  # of data N(0, I)
    sde = scoremle.VP()
    return scoremle.ScoreModel(
        lambda x, t: sde.sigma(t)[:, None, None, None] * x,
        sde, 1e-3, (8, 8, 1), scoremle.Pixels(256), scoremle.Multistep(4),
    )
"""
FEATURES = """
import sys
from pathlib import Path
import jax.numpy as jnp
import numpy as np
from scoremle.quality.features import Extractor, extract
from scoremle.quality.inception import Features

def apply(images):
    x = jnp.asarray(images, jnp.float32).reshape(len(images), -1)
    pool = jnp.tile(x, 11)[:, :2048]
    return Features(pool, pool[:, :1008])

images, parts = np.load(sys.argv[1])["train"], Path(sys.argv[2])
found = extract(Extractor(apply, "closed form", 2048, ""), images, 256, folder=parts, label="")
np.save(parts.with_suffix(".npy"), found["pool_3"])
"""
TINY = {
    "data.image_size": 8, "data.num_channels": 1, "data.fit": "",
    "model.nf": 8, "model.ch_mult": "(1,)", "model.attn_resolutions": "()",
    "training.n_iters": 1, "training.snapshot_freq": 1, "training.snapshot_sampling": False,
    "eval.solver": "multistep", "eval.nodes": 4,
}  # fmt: skip


class Cost(NamedTuple):
    """Cost of a process: seconds, processor seconds, megabytes of memory, megabytes written."""

    seconds: float
    processor: float
    memory: float
    written: float


def cost(written: Path, *words: object) -> Cost:
    """Runs Python with these words. Ends the script if it fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(
            [sys.executable, *map(str, words)], env=environment, stdout=said, stderr=said
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - began
        if child.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(map(str, words))}\n{said.read()}")
    files = [written] if written.is_file() else [f for f in written.rglob("*") if f.is_file()]
    size = sum(file.stat().st_size for file in files)
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, size / 1e6)


class Subject:
    """So many images, in a folder, and the commands on them."""

    def __init__(self, folder: Path, count: int) -> None:
        images = np.random.default_rng(0).integers(0, 256, (2, count, 8, 8, 1), np.uint8)
        self.folder, self.images, self.arrays = folder, images[0], folder / "arrays.npz"
        np.savez(self.arrays, train=images[0], test=images[1])
        np.save(folder / "images.npy", images[0])
        (folder / "closed.py").write_text(MODEL)

    def scoremle(self, written: str, *words: object) -> Cost:
        return cost(self.folder / written, "-m", "scoremle", *words)

    def prepare(self) -> Cost:
        into = self.folder / "prepared"
        return self.scoremle("prepared", "data", "prepare", self.arrays, f"--into={into}")

    def pictures(self) -> Cost:
        into = self.folder / "pictures"
        into.mkdir()
        for i, image in enumerate(self.images):
            Image.fromarray(image[..., 0]).save(into / f"{i}.png")
        out = self.folder / "from_pictures"
        return self.scoremle("from_pictures", "data", "prepare", into, f"--into={out}")

    def score(self, *words: object) -> Cost:
        model, images = f"{self.folder}/closed.py:model", self.folder / "images.npy"
        out = self.folder / "scores.csv"
        return self.scoremle(
            "scores.csv", "score", model, images, f"--out={out}", "--repeats=1", "--force", *words
        )

    def page(self) -> Cost:
        page = self.folder / "page.html"
        return self.score(f"--page={page}")._replace(written=page.stat().st_size / 1e6)

    def evaluation(self) -> Cost:
        workdir = self.folder / "run"
        flags = [f"--config.{name}={value}" for name, value in TINY.items()]
        data = f"--config.data.path={self.arrays}"
        self.scoremle("run", "train", "own_images", workdir, data, *flags)
        return self.scoremle("run/eval", "eval", workdir)

    def report(self) -> Cost:
        return self.scoremle("run/report", "report", self.folder / "run")

    def features(self) -> Cost:
        parts = self.folder / "features"
        return cost(parts.with_suffix(".npy"), "-c", FEATURES, self.arrays, parts)


PARTS: dict[str, Callable[[Subject], Cost]] = {
    "prepare": Subject.prepare, "pictures": Subject.pictures, "score": Subject.score,
    "page": Subject.page, "eval": Subject.evaluation, "report": Subject.report,
    "features": Subject.features,
}  # fmt: skip


def measured(parts: list[str], count: int) -> Iterator[tuple[str, Cost]]:
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(Path(folder), count)
        for part in parts:
            yield part, PARTS[part](subject)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS, help="of images")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], help="(all)")
    options = parser.parse_args()
    folder = tempfile.TemporaryDirectory()
    os.environ["SCOREMLE_DATA"] = folder.name
    found: dict[str, dict[int, Cost]] = {part: {} for part in options.parts}
    for count in options.counts:
        for part, each in measured(options.parts, count):
            found[part][count] = each
            print(f"{part} of {count:,}: {each.seconds:.0f} s", flush=True)
    rows = [
        (part, f"{count:,}", f"{each.seconds:.1f}", f"{each.processor:.1f}", f"{each.memory:.0f}",
         f"{each.written:.2f}")
        for part, costs in found.items() for count, each in costs.items()
    ]  # fmt: skip
    header = ("command", "images", "s", "s of processor", "MB of memory", "MB written")
    answer(header, rows, {
        part: {count: each._asdict() for count, each in costs.items()}
        for part, costs in found.items()
    })  # fmt: skip


if __name__ == "__main__":
    main()
