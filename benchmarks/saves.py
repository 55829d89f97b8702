"""For which share of its time a training stands still while it saves.

A state of the shapes that a config trains, of random numbers, is saved as the loop does it. A
save fetches it from the device, takes its SHA-256, writes it and waits for the disk; the
first two are timed alone, too. The table has the share for steps of some lengths, at the config's
own ``snapshot_freq`` and ``snapshot_freq_for_preemption``: by the clock, and by the seconds of
computing, which on cores that do other work are fewer, and are what is left where the disk is
quick. Below stands the shortest step at which the share is 2 %. The published CIFAR-10 network
needs 3 GB of memory; ``--nf=64`` is a quarter.

    python benchmarks/saves.py [vp/cifar10_ddpmpp_continuous] [--nf=64] [--folder=FOLDER]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scoremle.evaluation.tables import table
from scoremle.experiment.build import build
from scoremle.experiment.config import published_config
from scoremle.training.checkpoints import Checkpoints, tree_hash

SAVES, MOST = 3, 0.02
STEPS = (0.05, 0.1, 0.2, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", default="vp/cifar10_ddpmpp_continuous")
    parser.add_argument("--nf", type=int, help="of a smaller network")
    parser.add_argument("--folder", type=Path, help="on the disk that is meant; unset: temporary")
    options = parser.parse_args()
    fields = {"model.nf": options.nf} if options.nf else {}
    training = build(published_config(options.config, fields), levels=256).training
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.random(leaf.shape), leaf.dtype), training.template()
    )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    schedule = training.schedule
    saves = 1 + schedule.snapshot_freq / schedule.snapshot_freq_for_preemption
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = Checkpoints(Path(folder), keep=2)
        numbers = iter(range(SAVES))
        save, computing = _seconds(lambda: store.save(next(numbers), state, {}))
    hashing, _ = _seconds(lambda: tree_hash(jax.device_get(state)))

    def share(step: float, seconds: float) -> str:
        return f"{seconds * saves / (seconds * saves + step * schedule.snapshot_freq):.2%}"

    def least(seconds: float) -> float:
        return seconds * saves * (1 - MOST) / MOST / schedule.snapshot_freq

    print(f"{options.config}: {size / 1e6:,.0f} MB in {len(jax.tree.leaves(state))} arrays")
    print(f"a save: {save:.1f} s, {computing:.1f} s of computing; fetch and hash: {hashing:.1f} s")
    print(f"{saves:.0f} saves in {schedule.snapshot_freq:,} steps")
    rows = [(f"{step} s", share(step, save), share(step, computing)) for step in STEPS]
    print(table(("a step", "by the clock", "computing"), rows))
    print(f"{MOST:.0%} at {least(save):.3f} s a step; computing: {least(computing):.3f} s")
    print(json.dumps({"bytes": size, "save": save, "computing": computing}))


def _seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the clock and of computing: medians of a few calls."""
    found = []
    for _ in range(SAVES):
        began = time.monotonic(), time.process_time()
        call()
        found.append((time.monotonic() - began[0], time.process_time() - began[1]))
    clock, computing = np.median(found, axis=0).tolist()
    return clock, computing


if __name__ == "__main__":
    main()
