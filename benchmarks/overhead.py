"""For which share of its time a training waits: for its input, and for its saves.

    python benchmarks/overhead.py input
    python benchmarks/overhead.py saves [--nf=64] [--folder=FOLDER]

``input`` takes 50,000 random images of CIFAR-10's size, and prints images a second in each mode,
and what a batch costs beside a step. "numpy gather" is images[random rows] and nothing else, the
least that input could cost. A step of batch 128 is estimated from one measured step of a few
images, times 128 / few: its cost is proportional but for what small batches lose. All times are
seconds of CPU, of all cores together, which other work on the machine hardly changes.

``saves`` takes a state of the shapes that the config trains, of random numbers. It is saved in two
ways: at once, and as the loop does it, which goes on when it has a copy, while a thread does the
rest. In both ways numbers that are not finite are looked for first. The table has the share for
steps of some lengths, at the config's own ``snapshot_freq`` and ``snapshot_freq_for_preemption``,
where a save takes less than the steps up to the next. Below is the shortest step at which the
share is 2 %. On a CPU the thread takes computing from the steps: as much as a save at once
computes. The published CIFAR-10 network needs 4 GB of memory; ``--nf=64`` is a quarter.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import answer, parser_of, timed

from scoremle import data
from scoremle.experiment.build import Experiment, build
from scoremle.experiment.config import published_config
from scoremle.numerics import not_finite
from scoremle.training.checkpoints import Checkpoints
from scoremle.training.program import make_program
from scoremle.training.saving import Saving

CONFIG, LEVELS = "vp/cifar10_ddpmpp_continuous", 256
COUNT, BATCH, STEPS, RUN = 50_000, 128, 400, 40
SAVES, MOST, LENGTHS = 3, 0.02, (0.05, 0.1, 0.2, 0.5)


# --- input ------------------------------------------------------------------------------------


def seconds_a_batch(batch: Callable[[int], object]) -> float:
    """Seconds to compute a batch; the median over runs of steps in order."""

    def run(start: int) -> list[object]:
        return [jax.block_until_ready(batch(step)) for step in range(start, start + RUN)]

    runs = [timed(run, start)[1].computing for start in range(0, STEPS, RUN)]
    return float(np.median(runs)) / RUN


def modes(folder: Path) -> dict[str, Callable[[int], object]]:
    """The ways to get a batch, by name."""
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
    np.save(folder / "train.npy", images)
    mapped = np.load(folder / "train.npy", mmap_mode="r")
    order = np.random.default_rng(1).integers(0, COUNT, (1 << 10, BATCH))
    memory = data.ImageSet(images, images, batch_size=BATCH)
    disk = data.ImageSet(mapped, mapped, batch_size=BATCH)
    flipped = replace(memory, random_flip=True)
    return {
        "numpy gather": lambda step: images[order[step]],
        "in memory": memory.batch,
        "in memory, flips": flipped.batch,
        "memory-mapped": disk.batch,
        "memory-mapped, flips, read ahead, sent": sent(replace(disk, random_flip=True), "false"),
        "on the device": sent(memory, "true"),
        "on the device, flips": sent(flipped, "true"),
    }


def sent(images: data.ImageSet, on_device: str) -> Callable[[int], object]:
    """A batch as a step has it: on the device."""
    feed = data.feed(images, on_device)
    resident = jax.device_put(feed.resident)
    gather, batch = jax.jit(feed.gather), feed.batch_of(images)
    return lambda step: gather(resident, jax.device_put(batch(step)))


def seconds_a_step(experiment: Experiment, few: int) -> float:
    """Estimates the seconds of a step of 128 images, from one of ``few`` images."""
    training = experiment.training
    step = make_program(training.objective.loss, training.optimizer, training.ema_rate)
    images = np.zeros((1, few, *experiment.data.shape), np.uint8)
    state = jax.tree.map(jnp.zeros_like, training.template)  # what it costs is the same
    for _ in range(3):  # the state comes back placed on the devices, which is another program
        (state, _), seconds = timed(step, state, images)
    return seconds.computing * BATCH / few


def of_input(experiment: Experiment, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        costs = {name: seconds_a_batch(batch) for name, batch in modes(Path(folder)).items()}
    step = seconds_a_step(experiment, options.few)
    rows = [
        (name, f"{BATCH / cost:,.0f}", f"{1e3 * cost:.2f}", f"{cost / step:.5%}")
        for name, cost in costs.items()
    ]
    print(f"a step: {step:.1f} s of CPU, from {options.few} images")
    header = (f"batches of {BATCH}, 32x32x3", "images/s of CPU", "ms of CPU a batch", "of a step")
    answer(header, rows, {"step": step, **costs})


# --- saves ------------------------------------------------------------------------------------


def of_saves(experiment: Experiment, options: argparse.Namespace) -> None:
    training, rng = experiment.training, np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: jnp.asarray(rng.random(leaf.shape), leaf.dtype), training.template
    )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = seconds_of_saves(state, Path(folder))
    every, often = training.schedule.snapshot_freq, training.schedule.snapshot_freq_for_preemption
    boundaries, saves = every / often, every / often + 1
    # In so many steps. A snapshot and a pre-emption checkpoint of one step share the copy.
    still = {
        "at once": found["check"] * boundaries + found["save"] * saves,
        "with a copy": (found["check"] + found["copy"]) * boundaries,
    }
    print(f"{CONFIG}: {size / 1e6:,.0f} MB in {len(jax.tree.leaves(state))} arrays")
    print(f"{saves:.0f} saves in {every:,} steps")
    answer(("seconds", "median"), [(name, f"{found[name]:.2f}") for name in found])
    rows = [
        (f"{length} s", *(f"{wait / (wait + length * every):.2%}" for wait in still.values()))
        for length in LENGTHS
    ]
    answer(("a step", *still), rows, {"bytes": size, **found})
    for name, wait in still.items():
        print(f"{name}: {MOST:.0%} at {wait * (1 - MOST) / MOST / every:.3f} s a step")


def seconds_of_saves(state: Any, folder: Path) -> dict[str, float]:
    """What the loop waits for in either way, and the whole work: medians."""
    store, numbers = Checkpoints(folder, keep=2), iter(range(2 * SAVES))
    rows = []
    with Saving() as saves:
        for _ in range(SAVES):
            _, check = timed(not_finite, state)
            _, save = timed(store.save, next(numbers), state, {})
            _, copy = timed(lambda: saves.save(store, next(numbers), saves.copy(state), {}))
            _, behind = timed(saves.wait)
            rows.append((check.passed, save.passed, save.computing, copy.passed, behind.passed))
    names = ("check", "save", "computing", "copy", "behind")
    return dict(zip(names, np.median(rows, axis=0).tolist(), strict=True))


PARTS = {"input": of_input, "saves": of_saves}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--nf", type=int, help="of a smaller network")
    parser.add_argument("--few", type=int, default=8, help="images in the measured step")
    parser.add_argument("--folder", type=Path, help="on the disk that is meant, or a temporary")
    options = parser.parse_args()
    fields = {"model.nf": options.nf} if options.nf else {}
    PARTS[options.part](build(published_config(CONFIG, fields), levels=LEVELS), options)


if __name__ == "__main__":
    main()
