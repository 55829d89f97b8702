"""Integer pixels and the reals that a density is defined on.

    y = low + (high - low) (x + u) / levels,     x in {0, ..., levels - 1},  u in [0, 1)

A density p(y) gives the integer image the probability of its bin: with u uniform, -log P(x) <=
E[-log p(y)] - D log((high - low) / levels). So the famous constants follow from the scaling: 256
levels on [-1, 1] add log2(256 / 2) = 7 bits/dim, on [0, 1] 8, and 17 levels log2(17 / 2).

A network that was trained on the integers k themselves, without noise, has seen points, such as
2 k / 255 - 1. They are the middles of bins of a wider range: with the first of L points at a and
the last at b,

    w = (b - a) / (L - 1),     low = a - w / 2,     high = b + w / 2
"""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from scoremle.core.arguments import (
    as_array,
    check_count,
    check_examples,
    check_kind,
    check_number,
)
from scoremle.core.pytree import known
from scoremle.errors import UserError
from scoremle.types import AnyArray, Data, IntImages

__all__ = ["Pixels", "as_integers", "bits_per_dim"]

# Rounding error of encode in float32, as a share of the range.
ROUNDING = 2e-7
MOST_LEVELS = 2**16


@dataclass(frozen=True)
class Pixels:
    """Grey values of images, spread over [low, high).

    That is where integers lie with noise in [0, 1). For a network that was trained without it,
    give the points where the first and the last value lie to ``of_points``.

    Args:
        levels: the number of grey values a channel.
        low: the real that the lowest value begins at.
        high: the real that the highest value ends at.

    Raises UserError for fewer than 2 or more than 65,536 levels, and unless low < high.

    Example:
        >>> pixels, x = scoremle.Pixels(256), jnp.asarray([[0, 17, 255]])
        >>> y = pixels.encode(x, jnp.full((1, 3), 0.5))
        >>> print(y[0, 0] == -1 + 1 / 256, pixels.decode(y))
        True [[  0  17 255]]
        >>> scoremle.Pixels.of_points(17, -1, 1)  # k / 8 - 1
        Pixels(levels=17, low=-1.0625, high=1.0625)
    """

    levels: int = 256
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_count("levels", self.levels, 2, MOST_LEVELS)
        check_number("low", self.low)
        check_number("high", self.high)
        if not self.low < self.high:
            raise UserError(f"low must be below high, not {self.low} and {self.high}")

    @classmethod
    def of_points(cls, levels: int, first: float, last: float) -> "Pixels":
        """Makes grey values that are points from ``first`` to ``last``, the middles of their bins.

        With w = (last - first) / (levels - 1), low is first - w / 2 and high is last + w / 2.

        Args:
            levels: the number of grey values a channel.
            first: the real that the lowest value is.
            last: the real that the highest value is.

        Raises UserError as the constructor does.
        """
        check_count("levels", levels, 2, MOST_LEVELS)
        check_number("first", first)
        check_number("last", last)
        half = (last - first) / (levels - 1) / 2
        return cls(levels, first - half, last + half)

    def encode(self, x: IntImages, u: Data | float) -> Data:
        """Integers and their dequantization noise in [0, 1) to reals in [low, high).

        Args:
            x: [b *d] integers from 0 to levels - 1.
            u: [b *d] their noise, or one number for all.

        Raises UserError for numbers outside of these, as far as they are known.
        """
        integers: Any = as_array(x, "x")
        noise: Any = as_array(u, "u") * 1.0  # a sum of integers could wrap around
        self._check_integers(integers)
        # Rounding may lead a flow's noise to 1.
        if _here(noise) and not np.all((np.asarray(noise) >= 0) & (np.asarray(noise) <= 1)):
            ends = f"from {np.min(noise):.6g} to {np.max(noise):.6g}"
            raise UserError(f"u, the noise of integers, must lie in [0, 1): it reaches {ends}")
        return self.low + (self.high - self.low) * (integers + noise) / self.levels

    def encode_grid(self, x: IntImages) -> Data:
        """Reals from ``low`` to ``high`` for integers, without noise, as published training has.

        Args:
            x: [b *d] integers from 0 to levels - 1.

        Raises UserError for others, as far as they are known.
        """
        self._check_integers(x)
        return self.low + (self.high - self.low) * jnp.asarray(x, float) / (self.levels - 1)

    @property
    def points(self) -> Float[np.ndarray, " levels"]:
        """The middles of the bins, which integers without noise are."""
        return self.low + (self.high - self.low) * (np.arange(self.levels) + 0.5) / self.levels

    @property
    def grid(self) -> Float[np.ndarray, " levels"]:
        """The reals from ``low`` to ``high`` that published training has for the integers."""
        return np.linspace(self.low, self.high, self.levels)

    @property
    def dtype(self) -> np.dtype:
        """The type of images: uint8 for up to 256 levels, and uint16 for more."""
        return np.dtype(np.uint8 if self.levels <= 256 else np.uint16)

    def decode(self, y: Data) -> IntImages:
        """Reals to the integers of their bins; what lies outside goes to the end bins.

        Args:
            y: [b *d] reals.

        Raises UserError for a number that is not finite, as far as known.
        """
        reals: Any = as_array(y, "y")
        check_examples(reals, "y")
        bins = (reals - self.low) / (self.high - self.low) * self.levels
        # The lower edge of a bin (u = 0) belongs to it, though rounding may put it below.
        k = jnp.floor(bins + ROUNDING * self.levels)
        return jnp.clip(k, 0, self.levels - 1).astype(self.dtype)

    def _check_integers(self, x: IntImages) -> None:
        if _here(x) and np.size(x):
            values = np.asarray(x)
            low, high = values.min(), values.max()
            if not (low >= 0 and high < self.levels and (values == np.floor(values)).all()):
                raise UserError(f"x must be integers from 0 to {self.levels - 1}")

    def checked(self, images: ArrayLike, shape: tuple[int, ...]) -> Integer[np.ndarray, "n h w c"]:
        """Images of this shape as [n h w c]; those of one channel may lack its axis.

        Args:
            images: [n h w c] integers, or [n h w] of one channel.
            shape: (h, w, c) of the model.

        Raises UserError that says how to make of other arrays what is wanted, and for a model
        with another shape than (h, w, c).
        """
        if len(shape) != 3:
            raise UserError(
                f"a model of integer images has a shape (h, w, c), not {shape}: give it one, such"
                f" as (1, {math.prod(shape)}, 1)"
            )
        images = np.asarray(as_array(images, "images"))
        if images.ndim == 3 and (*images.shape[1:], 1) == shape:
            images = images[..., None]
        if images.dtype != self.dtype or images.shape[1:] != shape:
            raise UserError(
                f"images must be {self.dtype} of shape (n, {', '.join(map(str, shape))}), "
                f"not {images.dtype} of shape {images.shape}{_remedy(images, shape, self.levels)}"
            )
        if images.size and images.max() >= self.levels:
            raise UserError(f"pixels must lie in 0..{self.levels - 1}, but one is {images.max()}")
        return images

    @property
    def log_det_per_dim(self) -> float:
        """log dy/du in nats: what each dimension adds to log p(y) to give log p(u)."""
        return math.log((self.high - self.low) / self.levels)


def bits_per_dim(
    log_prob: Float[Array | np.ndarray, "*b"], pixels: Pixels, dims: int
) -> Float[AnyArray, "*b"]:
    """Bits/dim of integer images.

    Args:
        log_prob: log p(y) in nats of each image, less log q(u | x) if there is such.
        pixels: what y = pixels.encode(x, u) is.
        dims: dimensions of one image.

    Raises UserError for no dimensions, no ``Pixels``, and what are not numbers.

    Example:
        >>> uniform = jnp.full(1, 3 * np.log(1 / 2))  # in nats, the density 1/2 on [-1, 1)^3
        >>> print(f"{scoremle.bits_per_dim(uniform, scoremle.Pixels(256), 3)[0]:.4f}")
        8.0000
    """
    check_kind("pixels", pixels, Pixels, "scoremle.Pixels(256)")
    check_count("dims", dims)
    nats: Any = as_array(log_prob, "log_prob")
    return -(nats / dims + pixels.log_det_per_dim) / math.log(2)


def _here(x: Any) -> bool:
    """Whether the numbers are known, and in this process."""
    return known(x) and getattr(x, "is_fully_addressable", True)


def as_integers(array: np.ndarray, name: str = "array", top: int = 255) -> str:
    """The expression that makes integers of numbers, 0 to ``top``; "" if their range fits none.

    Args:
        array: numbers.
        name: its name in the expression.
        top: the greatest integer.
    """
    low, high, dtype = array.min(), array.max(), np.min_scalar_type(top)
    if low >= 0 and high <= 1 and array.dtype.kind == "f":
        return f"({top} * {name}).round().astype(np.{dtype})"
    if low >= -1 and high <= 1 and array.dtype.kind == "f":
        return f"({top / 2:g} * ({name} + 1)).round().astype(np.{dtype})"
    if low >= 0 and high <= top:
        return f"{name}.round().astype(np.{dtype})"
    return ""


def _remedy(images: np.ndarray, shape: tuple[int, ...], levels: int) -> str:
    """Expressions that convert these images to the required form, as far as that is known."""
    height, width, channels = shape
    steps = []
    if images.shape == shape or (channels == 1 and images.shape == (height, width)):
        steps.append("images[None]")
    elif images.shape[1:] == (channels, height, width) != shape:
        steps.append("images.transpose(0, 2, 3, 1)")
    whole = images.dtype in (np.uint8, np.min_scalar_type(levels - 1))
    if not whole and images.dtype.kind in "iuf" and images.size:
        steps.append(as_integers(images, "images", levels - 1))
    return "".join(f"; try {step}" for step in steps if step)
