"""Long work in parts, each a small file: what was killed goes on after the last finished part."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scoremle.files import read_npz, write_npz

__all__ = ["in_parts"]

Arrays = dict[str, np.ndarray]

# Seconds between lines of progress.
LINE_EVERY = 20.0


def in_parts(
    work: Callable[[int], Arrays], count: int, *, folder: Path, label: str
) -> Arrays:
    """What ``work`` gives for part 0, 1, ..., joined along the first axis.

    Finished parts lie in ``folder``, whose name must stand for all that they depend on.
    """
    began = last = time.monotonic()
    found, fresh = [], 0
    for i in range(count):
        path = folder / f"part{i}.npz"
        arrays = read_npz(path)
        if arrays is None:
            arrays = work(i)
            write_npz(path, arrays)
            fresh += 1
        found.append(arrays)
        now = time.monotonic()
        if now - last > LINE_EVERY or i + 1 == count:
            last, left = now, (now - began) * (count - i - 1) / max(fresh, 1)
            print(f"{label}  part {i + 1}/{count}  ETA {left:.0f}s", flush=True)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}
