"""What input costs: images a second in each mode, and its share of a step of the full network.

    python benchmarks/data.py [--network=configs/vp/cifar10_ddpmpp_continuous.py]

The images are 50,000 random ones of CIFAR-10's size. "numpy gather" is images[random rows] and
nothing else, the least that input could cost. A step of the network at batch 128 is estimated from
one measured step of a few images, times 128 / few: its cost is proportional but for what small
batches lose. All times are seconds of CPU, of all cores together, which other work on the machine
hardly changes.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scoremle import data
from scoremle.cli import main as cli
from scoremle.evaluation import tables
from scoremle.experiment.build import build
from scoremle.training.program import make_step

COUNT, BATCH = 50_000, 128
STEPS = 400
CONFIG = "vp/cifar10_ddpmpp_continuous"


def seconds_a_batch(batch: Callable[[int], object]) -> float:
    """Of CPU; the median over runs of steps in order."""
    for step in range(20):
        jax.block_until_ready(batch(step))
    times = []
    for start in range(20, 20 + STEPS, 40):
        began = time.process_time()
        for step in range(start, start + 40):
            jax.block_until_ready(batch(step))
        times.append((time.process_time() - began) / 40)
    return float(np.median(times))


def modes(folder: Path) -> dict[str, Callable[[int], object]]:
    """How a batch is had, by name."""
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
    gather = jax.jit(feed.gather)
    return lambda step: gather(resident, jax.device_put(feed.batch(step)))


def seconds_a_step(config_path: str, few: int) -> float:
    """Of the network at batch 128, from one step of ``few`` images."""
    flags = [f"--config={config_path}", "--workdir=w", "--mode=train"]
    experiment = build(cli.parse(flags).config, levels=256)
    training = experiment.training
    step = make_step(training.loss, training.optimizer, training.ema_rate)
    images = np.zeros((1, few, *experiment.data.shape), np.uint8)
    state = jax.tree.map(jnp.zeros_like, training.template())  # what it costs is the same
    for _ in range(2):  # the state comes back placed on the devices, which is another program
        state, metrics = step(state, images)
    jax.block_until_ready(metrics)
    began = time.process_time()
    jax.block_until_ready(step(state, images))
    return (time.process_time() - began) * BATCH / few


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default=CONFIG)
    parser.add_argument("--few", type=int, default=8, help="images in the measured step")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        costs = {name: seconds_a_batch(batch) for name, batch in modes(Path(folder)).items()}
    step = seconds_a_step(options.network, options.few)
    rows = [
        (name, f"{BATCH / cost:,.0f}", f"{1e3 * cost:.2f}", f"{cost / step:.5%}")
        for name, cost in costs.items()
    ]
    header = (f"batches of {BATCH}, 32x32x3", "images/s of CPU", "ms of CPU a batch", "of a step")
    print(tables.table(header, rows))
    print(f"\na step: {step:.1f} s of CPU, from {options.few} images")


if __name__ == "__main__":
    main()
