"""Densities that any model of images must beat: the measure of what it has learned.

Each gives bits/dim of integer images, example by example. Uniform: log2 of the number of levels.
Histogram: each pixel on its own, its levels counted on the training images. Gaussian: one mean and
one full covariance for uniformly dequantized pixels; the expectation over the test image's own
dequantization noise is in closed form, so its value is the dequantization bound without noise.
"""

import math

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from PIL.PngImagePlugin import getchunks

from scoremle.core.arguments import as_array
from scoremle.core.pixels import Pixels
from scoremle.errors import UserError

__all__ = ["gaussian_bpd", "histogram_bpd", "png_bpd", "uniform_bpd"]

TrainImages = UInt8[np.ndarray, "train h w c"]
Images = UInt8[np.ndarray, "n h w c"]
Bits = Float[np.ndarray, " n"]

# Variance of a uniform variable on [0, 1).
UNIFORM_VARIANCE = 1 / 12


def uniform_bpd(test: Images, levels: int) -> Bits:
    """Bits/dim of each image where every level is as likely as another.

    Args:
        test: [n h w c] images to measure.
        levels: of grey.

    Raises UserError for what are not integer images, and for no number of levels.
    """
    return np.full(len(_images(test)), math.log2(Pixels(levels).levels))


def histogram_bpd(train: TrainImages, test: Images, levels: int) -> Bits:
    """Independent pixels; one count is added to each level, so that none is impossible.

    Args:
        train: [n h w c] training images.
        test: [m h w c] images to measure.
        levels: of grey.

    Raises UserError for values beyond the levels, and as ``gaussian_bpd`` does.
    """
    train, test = _flat(train, test, Pixels(levels))
    counts = np.stack([np.bincount(pixel, minlength=levels) for pixel in train.T]) + 1
    bits = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    return bits[np.arange(train.shape[1]), test].mean(axis=1)


def gaussian_bpd(train: TrainImages, test: Images) -> Bits:
    """A Gaussian of full covariance, fitted to x + u with u uniform in [0, 1).

    Args:
        train: [n h w c] training images.
        test: [m h w c] images to measure.

    Raises UserError for what are not integer images, for two shapes, and for no training image.
    """
    train, test = (each.astype(np.float64) for each in _flat(train, test))
    dims = train.shape[1]
    covariance = np.cov(train, rowvar=False, bias=True) + UNIFORM_VARIANCE * np.eye(dims)
    precision = np.linalg.inv(covariance)
    residual = test - train.mean(axis=0)
    distance = np.einsum("ni,ij,nj->n", residual, precision, residual)
    distance += UNIFORM_VARIANCE * np.trace(precision)
    log_det = np.linalg.slogdet(2 * math.pi * covariance)[1]
    return (distance + log_det) / (2 * dims * math.log(2))


def png_bpd(images: Images) -> Bits:
    """Bits/dim of the pixels as PNG, a code that only uses the similarity of neighbours.

    The overhead of the format is a good part of it for small images: compare images of one size.

    Args:
        images: [n h w c].

    Raises UserError for what are not integer images, and for more channels than Pillow writes: 4
    of 8 bits, or 1 of 16.
    """
    images = _images(images)
    channels, most = images.shape[3], 4 if images.dtype == np.uint8 else 1
    if channels > most:
        raise UserError(f"as PNG, {images.dtype} has {most} channels at most, not {channels}")
    return np.array([8 * _png_bytes(image) / image.size for image in images])


def _images(images: Images, pixels: Pixels | None = None) -> Images:
    """Integer images of any size, of these levels or of all that their type has."""
    images = np.asarray(as_array(images, "images"))
    if images.ndim != 4 or not all(images.shape[1:]):
        raise UserError(f"images must be of shape (n, h, w, c), not {images.shape}")
    of_type = Pixels(256 if images.dtype == np.uint8 else 2**16)
    return (pixels or of_type).checked(images, images.shape[1:])


def _flat(train: TrainImages, test: Images, pixels: Pixels | None = None) -> list[np.ndarray]:
    """Both as [n D], the values of an image in a row."""
    both = [_images(each, pixels) for each in (train, test)]
    if both[0].shape[1:] != both[1].shape[1:] or not len(both[0]):
        shapes = f"train has shape {both[0].shape} and test {both[1].shape}"
        raise UserError(f"{shapes}: give images of one size, and one to train on at least")
    return [each.reshape(len(each), -1) for each in both]


def _png_bytes(image: UInt8[np.ndarray, "h w c"]) -> int:
    """The bytes in all chunks of compressed pixels."""
    picture = Image.fromarray(image.squeeze(axis=2) if image.shape[2] == 1 else image)
    chunks = getchunks(picture, optimize=True)
    return sum(len(content) for kind, content, _ in chunks if kind == b"IDAT")
