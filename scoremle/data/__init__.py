"""Data sets: the whole registry, and :func:`load`, which checks a set against the config."""

import difflib
from collections.abc import Callable

import numpy as np

from scoremle.data.digits import load_digits
from scoremle.data.idx import load_fashion_mnist, load_mnist
from scoremle.data.images import ImageSet, pad_to, padded_batches, permutation
from scoremle.errors import UserError

__all__ = ["DATASETS", "ImageSet", "load", "pad_to", "padded_batches", "permutation"]

# A loader takes data.path ('' for the default place) and gives training images, test images
# (uint8 [n h w c]) and the number of levels.
Loader = Callable[[str], tuple[np.ndarray, np.ndarray, int]]

DATASETS: dict[str, Loader] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "fashion_mnist": load_fashion_mnist,
}

# Named by the published configs, so a wrong guess of "unknown" would mislead.
NOT_YET = ("cifar10", "imagenet")


def load(
    name: str,
    *,
    path: str = "",
    image_size: int,
    num_channels: int,
    batch_size: int,
    seed: int,
    random_flip: bool = False,
) -> ImageSet:
    """The named data set, padded with zeros to ``image_size`` if that is larger than its own."""
    if batch_size < 1:
        raise UserError(f"training.batch_size must be at least 1, got {batch_size}")
    if seed < 0:
        raise UserError(f"seed must not be negative, got {seed}")
    train, test, levels = _loader(name)(path)
    if num_channels != train.shape[3]:
        raise UserError(f"data.num_channels is {num_channels}, but {name} has {train.shape[3]}")
    return ImageSet(
        name=name.lower(),
        train=pad_to(train, image_size),
        test=pad_to(test, image_size),
        levels=levels,
        batch_size=batch_size,
        seed=seed,
        random_flip=random_flip,
    )


def _loader(name: str) -> Loader:
    key = name.lower()
    if key in DATASETS:
        return DATASETS[key]
    listing = ", ".join(DATASETS)
    if key in NOT_YET:
        raise UserError(
            f"the data set {name} is not available in this version; there are: {listing}"
        )
    near = difflib.get_close_matches(key, DATASETS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"unknown data set {name!r}; {hint}there are: {listing}")
