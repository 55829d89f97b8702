"""Names that several parsers take, and a type of arguments.

Those of data sets and of samplers stand elsewhere too, where an import brings JAX.
"""

import argparse
from collections.abc import Callable

__all__ = ["DATASETS", "ESTIMATORS", "FITS", "NAMES", "SAMPLERS", "at_least"]

# The names in scoremle.data and in experiment/samplers.py, whose import brings JAX.
SAMPLERS = ("ode", "ddim", "dpm_solver", "pc", "euler")
FITS = ("crop", "resize")
# Those of scoremle.experiment.scoring, likewise.
ESTIMATORS = ("ode", "bound", "steps")
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
