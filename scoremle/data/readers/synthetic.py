"""Images whose probabilities are known: grey 8x8 images with 16 levels, drawn here.

    P(x) = 1/4 sum_k prod_i Binomial(x_i; 15, p_ki)

where p_k rises from 0.2 to 0.8 along one of the four directions. What a model's bits/dim are above
those of :func:`log_prob` on the same images is the model's own loss, and the dequantization's: in
the mean over all images it can't be below zero.
"""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from scipy.special import logsumexp

from scoremle.data.readers.base import Chunk, Options, Reading

__all__ = ["log_prob"]

SIDE, LEVELS = 8, 16
LOWEST, BRIGHTEST = 0.2, 0.8
COUNTS = {"train": 8192, "test": 1024}


def log_masses() -> Float[np.ndarray, "4 pixels levels"]:
    """log P(level) in nats of each pixel, for each direction of the ramp."""
    ramp = np.broadcast_to(np.linspace(LOWEST, BRIGHTEST, SIDE), (SIDE, SIDE))
    p = np.stack([ramp, ramp[:, ::-1], ramp.T, ramp.T[::-1]]).reshape(4, -1, 1)
    top, k = LEVELS - 1, np.arange(LEVELS)
    ways = np.log([math.comb(top, level) for level in k])
    return ways + k * np.log(p) + (top - k) * np.log1p(-p)


def log_prob(images: UInt8[np.ndarray, "n h w 1"]) -> Float[np.ndarray, " n"]:
    """log P(x) of each image, in nats.

    Args:
        images: [n h w 1].
    """
    pixels = images.reshape(len(images), -1)
    masses = log_masses()
    each = masses[:, np.arange(pixels.shape[1]), pixels].sum(axis=-1)
    return logsumexp(each, axis=0) - math.log(len(masses))


def read_synthetic(path: Path, options: Options) -> Reading:
    """Images that are equal everywhere, of raw words of PCG64, whose stream numpy keeps."""
    splits = {name: _draw(count, i) for i, (name, count) in enumerate(COUNTS.items())}

    def chunks() -> Iterator[Chunk]:
        for split, images in splits.items():
            yield Chunk(images, split, 1.0)

    everything = b"".join(images.tobytes() for images in splits.values())
    return Reading(chunks(), lambda: hashlib.sha256(everything).hexdigest(), LEVELS)


def _draw(count: int, seed: int) -> UInt8[np.ndarray, "n 8 8 1"]:
    words = np.random.PCG64(np.random.SeedSequence((seed,))).random_raw((count, 1 + SIDE**2))
    u = (words >> np.uint64(11)) * 2.0**-53
    below = np.cumsum(np.exp(log_masses()), axis=-1)
    thresholds = below[(4 * u[:, 0]).astype(int)]
    levels = sum(u[:, 1:] > thresholds[..., level] for level in range(LEVELS - 1))
    return np.uint8(levels).reshape(count, SIDE, SIDE, 1)
