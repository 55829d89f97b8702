"""Halving and doubling images, with and without an anti-aliasing filter.

Doubling puts a zero after every pixel and filters; halving filters and keeps every other pixel.
The filter is the outer product of a short kernel k with itself, k / sum(k) along each axis (twice
that when doubling, so that a constant image stays what it is). StyleGAN2's kernel is (1, 3, 3, 1):
Karras et al. 2020, arXiv 1912.04958, after Zhang 2019, arXiv 1904.11486. With k = (1, 1) one has
nearest-neighbour doubling and the mean of 2x2 pixels, the "naive" pair below.

Where a convolution goes with it, doubling convolves first and filters then, halving filters first:
the two differ from filtering apart only at the border.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from scoremle.types import AnyArray, Images

__all__ = ["downsample_2d", "naive_downsample_2d", "naive_upsample_2d", "upsample_2d"]

FilterKernel = Sequence[float] | np.ndarray
Weight = Float[AnyArray, "kh kw c features"]

_NHWC = ("NHWC", "HWIO", "NHWC")


def naive_upsample_2d(x: Images) -> Images:
    """Each pixel four times.

    Args:
        x: [b h w c].
    """
    b, h, w, c = x.shape
    doubled = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return doubled.reshape(b, 2 * h, 2 * w, c)


def naive_downsample_2d(x: Images) -> Images:
    """The mean of each 2x2 square.

    Args:
        x: [b h w c], of even h and w.
    """
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def upsample_2d(x: Images, kernel: FilterKernel) -> Images:
    """Doubles the size, then filters.

    Args:
        x: [b h w c].
        kernel: of the filter along one axis.
    """
    p = len(kernel) - 2
    # One more zero on the right: the one that follows the last pixel.
    return _filter(x, kernel, up=2, pad=((p + 1) // 2 + 1, p // 2 + 1))


def downsample_2d(x: Images, kernel: FilterKernel) -> Images:
    """Filters, then halves the size.

    Args:
        x: [b h w c], of even h and w.
        kernel: of the filter along one axis.
    """
    p = len(kernel) - 2
    return _filter(x, kernel, down=2, pad=((p + 1) // 2, p // 2))


def upsample_conv_2d(x: Images, w: Weight, kernel: FilterKernel) -> Images:
    """Transposed convolution with stride 2, then filter."""
    size = w.shape[0]
    h = lax.conv_general_dilated(
        x, w, (1, 1), [(size - 1, size - 1)] * 2, lhs_dilation=(2, 2), dimension_numbers=_NHWC
    )
    p = len(kernel) - 1 - size
    return _filter(h, kernel, gain=2, pad=((p + 1) // 2 + 1, p // 2 + 1))


def conv_downsample_2d(x: Images, w: Weight, kernel: FilterKernel) -> Images:
    """Filters, then convolves with stride 2."""
    p = len(kernel) - 3 + w.shape[0]
    h = _filter(x, kernel, pad=((p + 1) // 2, p // 2))
    return lax.conv_general_dilated(h, w, (2, 2), "VALID", dimension_numbers=_NHWC)


def _filter(
    x: Images, kernel: FilterKernel, *, up: int = 1, down: int = 1, gain: float | None = None,
    pad: tuple[int, int],
) -> Images:  # fmt: skip
    gain = up if gain is None else gain
    taps = [gain * k / sum(kernel) for k in kernel]
    for axis in (1, 2):
        x = _filter_axis(x, taps, axis, up, down, pad)
    return x


def _filter_axis(
    x: Images, taps: Sequence[float], axis: int, up: int, down: int, pad: tuple[int, int]
) -> Images:
    """Zeros between and around the values, convolution with the taps, every ``down``-th value.

    A sum of shifted slices: XLA fuses it into one loop, where a depthwise convolution is slow on
    a CPU and rounds to TF32 on a GPU.
    """
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (*pad, up - 1)
    x = lax.pad(x, jnp.zeros((), x.dtype), padding)
    n = x.shape[axis] - len(taps) + 1
    terms = (t * lax.slice_in_dim(x, i, i + n, down, axis) for i, t in enumerate(taps[::-1]))
    return functools.reduce(jnp.add, terms)
