"""A workdir, prepared data and files of models, as the program writes them, but small.

``make`` writes them into a folder, without a training. ``READERS`` read them as the program does.
The module is imported before processes are forked: so nothing is computed by JAX until then.
"""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from scoremle import data, published
from scoremle.data import prepare as preparing
from scoremle.data.readers.base import Chunk, Options, Reading
from scoremle.evaluation import pictures
from scoremle.experiment.record import record_of
from scoremle.experiment.results import add_results, read_results
from scoremle.experiment.workdir import Workdir
from scoremle.files import write_npz
from scoremle.published import safetensors, state_dict
from scoremle.resumable import resumable_map
from scoremle.training.checksums import tree_hash
from scoremle.training.step import init_state, make_optimizer
from scoremle.training.writers import JsonLines

EXPERIMENT = SimpleNamespace(
    config={
        "seed": 42, "model": {"beta_max": 20.0, "nf": 4}, "training": {"sde": "vpsde"},
        "eval": {"nodes": 6}, "data": {"dataset": "digits", "path": ""},
    },
    data=SimpleNamespace(name="digits", levels=17, facts={"train_sha256": "0123456789abcdef"}),
)  # fmt: skip
OPTIMIZER = make_optimizer(lr=1e-2, beta1=0.9, eps=1e-8, warmup=5, grad_clip=1.0)
RESULTS = {"exact_test_ckpt_2": {"mean": 1.25, "stderr": 0.03125, "solver": {"nodes": 6}}}
PARTS = Path("eval/parts/exact_test_ckpt_2_0123456789ab")
IMAGES = 30


def state(step: int):
    params = {"Conv_0": {"kernel": jnp.full((3, 3, 1, 4), 0.1 * step)}, "Dense_0": jnp.arange(6.0)}
    return init_state(params, OPTIMIZER)._replace(step=jnp.asarray(step, jnp.int32))


TEMPLATE = jax.eval_shape(lambda: state(0))


@functools.cache
def hash_at(step: int) -> str:
    return tree_hash(state(step))


def work(repeat, index):
    return {"bpd": 3.0 + repeat + index / 8, "nfe": np.full(len(index), 6)}


def measure(folder: Path):
    """Rows of the finished parts, and of what was not finished."""
    return resumable_map(work, 11, size=4, passes=2, folder=folder / PARTS)


def prepare(folder: Path, count: int = IMAGES) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 1), np.uint8)
    chunk = Chunk(images, "train", 0.5, np.arange(count))
    reading = Reading(iter([chunk, chunk._replace(split="test")]), lambda: "abc")
    preparing.prepare(reading, folder, name="images", source="here", options=Options())


def make(folder: Path) -> Path:
    place = Workdir(folder / "workdir")
    place.describe(EXPERIMENT)
    note = record_of(EXPERIMENT, "training")
    writer = JsonLines(place.folder / "metrics.jsonl")
    for number, step in ((1, 10), (2, 20)):
        place.snapshots.save(number, state(step), {**note, "step": step})
        place.preemption.save(step, state(step), {**note, "step": step})
        writer.write(step, {"loss": 0.5})
    rows = measure(place.folder)
    write_npz(place.folder / "eval" / "exact_test_ckpt_2.npz", rows)
    add_results(place.folder / "eval" / "results.json", RESULTS)
    images = np.zeros((4, 4, 4, 1), np.uint8)
    pictures.write_grid(place.folder / "samples" / "step_20.png", images, 17)
    prepare(folder / "data")
    tree = published.published_tree(state(10), lr=1e-2, ema_rate=0.99, rng=[0, 42])
    state_dict.write(folder / "theirs" / "checkpoint_1", tree)
    safetensors.write(folder / "weights.safetensors", {"a": np.arange(6.0)}, {"step": "10"})
    return folder


def _checkpoint(store):
    state, meta, number = store.restore(TEMPLATE)
    return number, meta["step"], tree_hash(state)


def _config(folder: Path):
    place = Workdir(folder / "workdir")
    place.check_records()
    return place.config().to_dict(), place.levels()


def _images(folder: Path):
    prepared = data.Prepared(folder / "data")
    arrays = [read(s) for read in (prepared.images, prepared.labels) for s in ("train", "test")]
    return [array.tobytes() for array in arrays], prepared.meta["levels"]


def _rows(folder: Path):
    return {name: values.tolist() for name, values in measure(folder / "workdir").items()}


def _metrics(folder: Path):
    path = folder / "workdir" / "metrics.jsonl"
    JsonLines(path).rewind(20)
    return [json.loads(line) for line in path.read_text().splitlines()]


# The numbers that depend on the files below a place, as the program reads them.
READERS = {
    "workdir/config.json": _config,
    "workdir/data.json": _config,
    "workdir/checkpoints/": lambda folder: _checkpoint(Workdir(folder / "workdir").snapshots),
    "workdir/checkpoints-meta/": lambda folder: _checkpoint(
        Workdir(folder / "workdir").preemption
    ),
    "workdir/eval/parts/": _rows,
    "workdir/eval/results.json": lambda folder: read_results(folder / "workdir/eval/results.json"),
    "data/": _images,
}
# Of files without a checksum: how they are read.
UNSEALED = {
    "workdir/metrics.jsonl": _metrics,
    "theirs/": lambda folder: published.read(folder / "theirs" / "checkpoint_1"),
    "weights.safetensors": lambda folder: safetensors.read(folder / "weights.safetensors"),
}
