"""For which share of its time a training stands still while it saves.

A state of the shapes that a config trains, of random numbers, is saved in two ways: at once, and
as the loop does it, which goes on when it has a copy, while a thread does the rest. In both ways
numbers that are not finite are looked for first. The table has the share for steps of some
lengths, at the config's own ``snapshot_freq`` and ``snapshot_freq_for_preemption``, where a save
takes less than the steps up to the next. Below stands the shortest step at which the share is 2 %.
On a CPU the thread takes computing from the steps: as much as a save at once computes. The
published CIFAR-10 network needs 4 GB of memory; ``--nf=64`` is a quarter.

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
from scoremle.numerics import not_finite
from scoremle.training.checkpoints import Checkpoints
from scoremle.training.saving import Saving

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
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = _measured(state, Path(folder))
    every, often = training.schedule.snapshot_freq, training.schedule.snapshot_freq_for_preemption
    boundaries, saves = every / often, every / often + 1
    # In so many steps. A snapshot and a pre-emption checkpoint of one step share the copy.
    still = {
        "at once": found["check"] * boundaries + found["save"] * saves,
        "with a copy": (found["check"] + found["copy"]) * boundaries,
    }

    def share(step: float, seconds: float) -> str:
        return f"{seconds / (seconds + step * every):.2%}"

    print(f"{options.config}: {size / 1e6:,.0f} MB in {len(jax.tree.leaves(state))} arrays")
    print(f"{saves:.0f} saves in {every:,} steps")
    print(table(("seconds", "median"), [(name, f"{found[name]:.2f}") for name in found]))
    rows = [(f"{step} s", *(share(step, each) for each in still.values())) for step in STEPS]
    print(table(("a step", *still), rows))
    for name, seconds in still.items():
        print(f"{name}: {MOST:.0%} at {seconds * (1 - MOST) / MOST / every:.3f} s a step")
    print(json.dumps({"bytes": size, **found}))


def _measured(state: Any, folder: Path) -> dict[str, float]:
    """Seconds: of what the loop waits for in either way, and of the whole work."""
    store, numbers = Checkpoints(folder, keep=2), iter(range(2 * SAVES))
    rows = []
    with Saving() as saves:
        for _ in range(SAVES):
            check, _ = _seconds(lambda: not_finite(state))
            save, computing = _seconds(lambda: store.save(next(numbers), state, {}))
            copy, _ = _seconds(lambda: saves.save(store, next(numbers), saves.copy(state), {}))
            behind, _ = _seconds(saves.wait)
            rows.append((check, save, computing, copy, behind))
    names = ("check", "save", "computing", "copy", "behind")
    return dict(zip(names, np.median(rows, axis=0).tolist(), strict=True))


def _seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """Of the clock and of computing."""
    began = time.monotonic(), time.process_time()
    call()
    return time.monotonic() - began[0], time.process_time() - began[1]


if __name__ == "__main__":
    main()
