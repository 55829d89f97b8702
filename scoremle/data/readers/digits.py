"""scikit-learn's handwritten digits: 1,797 grey 8x8 images with the 17 levels 0..16.

The split is fixed and stratified: shuffled by a constant seed, sorted by label, every fifth image
is for testing. That is 360 images, each label within one image of a fifth of its count.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from scoremle.data.readers.base import Chunk, Options, Reading
from scoremle.errors import needing
from scoremle.numerics import permutation

LEVELS = 17
SPLIT_SEED = 0


def read_digits(path: Path, options: Options) -> Reading:
    """The images that come with scikit-learn, wherever it is installed."""
    with needing("the digits data set", "digits"):
        from sklearn import datasets
    digits = datasets.load_digits()
    images, labels = digits.images.astype(np.uint8)[..., None], digits.target

    def chunks() -> Iterator[Chunk]:
        for split, rows in zip(("train", "test"), stratified_split(labels), strict=True):
            yield Chunk(images[rows], split, 1.0, labels[rows])

    return Reading(chunks(), lambda: hashlib.sha256(images.tobytes()).hexdigest(), LEVELS)


def stratified_split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the test images, ascending."""
    shuffled = permutation(len(labels), SPLIT_SEED)
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    test = np.sort(by_label[::5])
    return np.setdiff1d(by_label, test), test
