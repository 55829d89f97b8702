"""A set of images and the order in which training sees them.

The order is a pure function of (seed, step), so that a resumed run needs one integer and no
iterator state. Position ``p = step * batch_size + i`` of the endless stream is image
``permutation_e[p mod n]`` of epoch ``e = p // n``: consecutive batches run across the ends of
epochs, so nothing is dropped and nothing repeats within an epoch.

Orders and flips are built from the raw 64-bit words of PCG64, whose stream numpy promises to keep;
it makes no such promise for ``Generator.permutation``, which would tie a resumed run to a version.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from scoremle.errors import UserError
from scoremle.numerics import permutation, random_words

# Separates the stream of flips from that of permutations: both are keyed by (seed, integer).
FLIP_STREAM = 1
# Between the seeds of one order and the next: seeds that people choose lie nearer to each other.
STRIDE = 0x9E3779B1


# Two epochs: a batch may straddle a boundary, and each order takes milliseconds to make.
_epoch_order = lru_cache(maxsize=2)(permutation)


class BatchRows(NamedTuple):
    """A batch by number: which images, and which of them are mirrored."""

    indices: np.ndarray
    flipped: np.ndarray


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Training and test images, uint8 [n h w c] with values in ``range(levels)``.

    Args:
        train: the training images.
        test: the test images.
        levels: grey levels.
        name: of the data set.
        batch_size: images of a training batch.
        seed: of the order of training images.
        random_flip: whether half of the training images are mirrored, by chance.
        facts: recorded with every result on these images: version and hash of the source.
    """

    train: np.ndarray
    test: np.ndarray
    levels: int = 256
    name: str = ""
    batch_size: int = 128
    seed: int = 0
    random_flip: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of one image."""
        height, width, channels = self.train.shape[1:]
        return height, width, channels

    def reordered(self, times: int) -> "ImageSet":
        """These images in another order.

        Args:
            times: how often the order was changed before; each number has an order of its own.
        """
        return replace(self, seed=(self.seed + times * STRIDE) % 2**32)

    def indices(self, step: int) -> np.ndarray:
        """Indices of the training images in the batch of a step, [batch_size].

        Args:
            step: from 0 on.
        """
        size = len(self.train)
        positions = int(step) * self.batch_size + np.arange(self.batch_size)
        epochs, offsets = np.divmod(positions, size)
        parts = [
            _epoch_order(size, self.seed, epoch)[offsets[epochs == epoch]]
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
        ]
        return np.concatenate(parts)

    def rows(self, step: int) -> BatchRows:
        """The training batch of a step, by the numbers of its images.

        Args:
            step: from 0 on.
        """
        flipped = np.zeros(self.batch_size, bool)
        if self.random_flip:
            words = random_words(self.batch_size, self.seed, int(step), FLIP_STREAM)
            flipped = words >> np.uint64(63) == 1
        return BatchRows(self.indices(step).astype(np.int32), flipped)

    def batch(self, step: int) -> np.ndarray:
        """The training batch of a step, uint8 [batch_size h w c]; pure in (seed, step).

        Args:
            step: from 0 on.
        """
        indices, flipped = self.rows(step)
        images = self.train[indices]
        images[flipped] = images[flipped, :, ::-1]
        return images


def pad_to(images: np.ndarray, size: int) -> np.ndarray:
    """Centres the images on ``size`` x ``size`` zeros. Never crops or resamples."""
    height, width = images.shape[1:3]
    if size < max(height, width):
        raise UserError(
            f"image_size is {size}, but the images are {height}x{width};"
            f" set it to {max(height, width)}, or larger to pad with zeros"
            " (files of pictures can be made smaller, by fit=resize)"
        )
    if size == height == width:
        return images  # without a copy, which would read all of a mapped file
    margins = [((size - side) // 2, (size - side + 1) // 2) for side in (height, width)]
    return np.pad(images, [(0, 0), *margins, (0, 0)])
