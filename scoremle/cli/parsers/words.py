"""Names that several parsers take, and types of arguments.

Those of data sets and of samplers stand elsewhere too, where an import brings JAX.
"""

import argparse
import os
import re
from collections.abc import Callable

__all__ = [
    "DATASETS", "ESTIMATORS", "FITS", "NAMES", "SAMPLERS", "at_least", "seed", "shard",
]  # fmt: skip

# The names in scoremle.data and in experiment/samplers.py, whose import brings JAX.
SAMPLERS = ("ode", "ddim", "dpm_solver", "pc", "euler")
FITS = ("crop", "resize", "pad")
# Those of scoremle.experiment.scoring, likewise.
ESTIMATORS = ("ode", "bound", "steps")
SEEDS = 2**32
DATASETS = (
    "digits", "synthetic", "mnist", "fashion_mnist", "emnist", "cifar10", "cifar100", "imagenet",
    "svhn", "celeba", "celebahq", "ffhq", "lsun", "images", "photos",
)  # fmt: skip
NAMES = ", ".join(DATASETS)


def at_least(least: int) -> Callable[[str], int]:
    """The type of an integer that is not below ``least``."""

    def integer(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is no integer from {least}")
        return int(text)

    return integer


def seed(text: str) -> int:
    """The type of a seed. JAX takes 32 bits of it: a larger one would be another one."""
    number = at_least(0)(text)
    if number >= SEEDS:
        raise argparse.ArgumentTypeError(f"{text} is not below {SEEDS}")
    return number


def shard(text: str) -> tuple[int, int]:
    """A share and the number of shares: I/N, or without a text those of a task of a cluster."""
    if not text:
        return _share_of_task()
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text} is no I/N with I from 1 to N, such as 3/10")
    return int(match[1]), int(match[2])


# How clusters number tasks, in variables: the number, the first one, how many there are.
TASKS = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT"),
    ("OMPI_COMM_WORLD_RANK", "", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "", "SLURM_NTASKS"),
)


def _share_of_task() -> tuple[int, int]:
    for names in TASKS:
        found = [os.environ.get(name, "") if name else "0" for name in names]
        if all(map(str.isdecimal, found)):
            number, least, count = map(int, found)
            return number - least + 1, count
    raise argparse.ArgumentTypeError(
        "this is no task of an array of SLURM, and none of several of SLURM or Open MPI: say I/N"
    )
