"""scikit-learn's handwritten digits: 1,797 grey 8x8 images with the 17 levels 0..16.

The split is fixed and stratified: shuffled by a constant seed, sorted by label, every fifth image
is for testing. That is 360 images, each label within one image of a fifth of its count.
"""

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from scoremle.data.readers.base import Chunk, Options, Reading
from scoremle.errors import damaged, needing
from scoremle.numerics import permutation

LEVELS = 17
SPLIT_SEED = 0


def read_digits(path: Path, options: Options) -> Reading:
    """The images that come with scikit-learn, wherever it is installed."""
    file = _file()
    with damaged(file, "not the digits of scikit-learn", "; install it again"):
        rows = np.loadtxt(file, np.uint8, delimiter=",")
        images, labels = rows[:, :-1].reshape(-1, 8, 8, 1), rows[:, -1].astype(np.int64)

    def chunks() -> Iterator[Chunk]:
        for split, rows in zip(("train", "test"), stratified_split(labels), strict=True):
            yield Chunk(images[rows], split, 1.0, labels[rows])

    return Reading(chunks(), lambda: hashlib.sha256(images.tobytes()).hexdigest(), LEVELS)


def _file() -> Path:
    """The file that scikit-learn has them in; to import the library takes seconds."""
    with needing("the digits data set", "digits"):
        found = importlib.util.find_spec("sklearn")
        if found is None or found.origin is None:
            raise ImportError
    return Path(found.origin).with_name("datasets") / "data/digits.csv.gz"


def stratified_split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the test images, ascending."""
    shuffled = permutation(len(labels), SPLIT_SEED)
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    test = np.sort(by_label[::5])
    return np.setdiff1d(by_label, test), test
