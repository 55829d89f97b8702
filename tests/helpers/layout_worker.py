"""A process of a run: ``layout_worker.py FOLDER EVAL_FOLDER train|eval [PORT PROCESSES I]``.

Trains a model and a flow for it with a state that is split over the devices, if told so; measures
the exact likelihood, the bound and the loss, draws samples and judges them, as the command line
does.
"""

import sys

import jax

from helpers.tiny_runs import TINY
from scoremle import processes
from scoremle.cli.commands import experiment, parser_of
from scoremle.experiment import run_sampling
from scoremle.quality.features import Extractor, Reference
from scoremle.quality.inception import Features

FIELDS = (
    *TINY, "--config.model.nf=32", "--config.model.dropout=0.1", "--config.training.n_iters=10",
    "--config.deq.filters=24", "--config.deq.components=2", "--config.deq.blocks=1",
    "--config.deq.couplings=1", "--config.deq.heads=2", "--config.deq.n_iters=10",
    "--config.eval.batch_size=7", "--config.eval.num_images=10", "--config.eval.solver=auto",
    # Of a number that does not divide over the devices, and judged by what stands for Inception.
    "--config.eval.num_samples=22", "--config.eval.inception=w.npz", "--config.eval.stats=s.npz",
)  # fmt: skip
TRAININGS = ("train", "train_deq")
EVALUATIONS = (
    ("--config.eval.dequantizer", "--config.eval.enable_sampling"),
    ("--config.eval.bound", "--config.eval.enable_loss"),
)


@jax.jit
def features(images):
    x = images.reshape(len(images), -1) / 255.0
    return Features(x[:, :9], x[:, 9:12])


def reference(path, extractor):
    pool = jax.device_get(jax.random.uniform(jax.random.key(0), (30, 9)))
    return Reference(pool, {"path": str(path), "origin": "a seed"})


def work(folder, eval_folder, trains):
    run_sampling.load_inception = lambda path: Extractor(features, "some pixels", 9, "none")
    run_sampling.read_reference = reference
    common = (*FIELDS, f"--workdir={folder}", f"--eval_folder={eval_folder}")
    for mode in TRAININGS * trains:
        split = jax.device_count() > 1
        asked = [*common, f"--mode={mode}", f"--config.devices.fsdp={split}"]
        experiment.run(parser_of("").checked(asked))
    for words in EVALUATIONS:
        experiment.run(parser_of("").checked([*common, "--mode=eval", *words]))


if __name__ == "__main__":
    folder, eval_folder, what, *where = sys.argv[1:]
    if where:
        processes.join(f"127.0.0.1:{where[0]}", *map(int, where[1:]))
    work(folder, eval_folder, what == "train")
