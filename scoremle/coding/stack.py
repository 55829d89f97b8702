"""A stack of bits: symbols are pushed by a distribution and popped by it, last in first out.

The entropy coder is asymmetric numeral systems, of the library constriction. Popping from a stack
of random bits draws a symbol; so the stack lends bits to draw a latent by, and has them back when
the receiver pushes that latent again (bits-back coding). Where it has too few, random bits are put
below all others: they are counted, as ``initial`` bits, and the receiver is left with them.

A Gaussian is one on a grid, in units of its cells. Its mean is rounded to a 64th of a cell, and
the logarithm of its scale to a 256th of an octave: networks that round otherwise in their last
digits mostly agree after that. Cells are counted from the one of the mean, up to ``REACH`` scales.
A draw ends there; of what was drawn by another Gaussian the rest follows with even odds.
"""

import math
from copy import copy, deepcopy
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt32

from scoremle.errors import needing

# Scales from the mean to the last cell that has a probability of its own.
REACH = 8
# Steps of a rounded mean in a cell, and of a rounded scale in an octave: in 64 of these, the coder
# lost twice as many bits.
FINE, FINE_SCALE = 64, 256
# Cells beyond the last one: more than any grid has.
MOST_BEYOND = 1 << 22
# No mean lies as far, in a 64th of a cell.
FARTHEST = 2.0**50
# No scale is as wide, in cells: the coder takes fewer than 2^24 symbols.
WIDEST = 2.0**18
# Words of 32 bits that the coder's head takes, and those that are there at least.
HEAD, LEAST_WORDS = 2, 8
# Bits that stay where others are flipped.
FIRST = 9
# A probability is a multiple of this before the coder makes integers of it.
PROBABILITY = 2.0**-22

Cells = Int[np.ndarray, "*n"]
Reals = Float[np.ndarray, "*n"]
Probabilities = Float[np.ndarray, "*n levels"]


class BitStack:
    """Bits that symbols are pushed to and popped from.

    Args:
        words: what it begins with, as `words` gives it; None: nothing.
        seed: of the random bits that it is filled up with.

    Raises UserError where constriction is not installed.
    """

    def __init__(self, words: UInt32[np.ndarray, " n"] | None = None, seed: int = 0) -> None:
        with needing("compression", "compress"):
            import constriction
        self._models: Any = constriction.stream.model
        self._new = constriction.stream.stack.AnsCoder
        self._random = np.random.default_rng(seed)
        self.initial = 0
        if words is None:
            words = self._drawn(LEAST_WORDS)
        self._coder = self._new(words)

    @property
    def bits(self) -> int:
        """The bits that it has."""
        return self._coder.num_bits()

    @property
    def to_draw(self) -> int:
        """The bits that can be drawn from, without random ones."""
        return max(0, self.bits - 64 * LEAST_WORDS)

    @property
    def words(self) -> UInt32[np.ndarray, " n"]:
        """The content."""
        return self._coder.get_compressed()

    def copy(self) -> "BitStack":
        """A stack with the same bits, and the same random bits to come."""
        other = copy(self)
        other._coder, other._random = self._coder.clone(), deepcopy(self._random)
        return other

    def ends_with(self, other: "BitStack") -> bool:
        """Whether the bits above those that were put below since are the other's."""
        words = other.words
        return np.array_equal(self.words[-len(words) :], words)

    def fill(self, bits: float) -> None:
        """Adds random bits below the others until the stack has so many, and some to spare."""
        lack = math.ceil(bits / 32) + LEAST_WORDS - self._coder.num_words()
        if lack > 0:
            self._coder = self._new(np.concatenate([self._drawn(lack), self.words]))

    def scramble(self, bits: float, key: int) -> None:
        """Flips the upper bits by a random mask; the same call flips them back.

        What was pushed last by a distribution that is not quite true is not random, and a draw by
        it would not be one. The first bits stay, so that the content, as a number, hardly grows.
        """
        words = self.words
        upper = words[::-1][: HEAD + math.ceil(bits / 32)]
        mask = np.random.default_rng(key).integers(0, 1 << 32, len(upper), np.uint32)
        mask[0] &= (1 << max(0, int(upper[0]).bit_length() - FIRST)) - 1
        upper ^= mask
        self._coder = self._new(words)

    def _drawn(self, count: int) -> UInt32[np.ndarray, " n"]:
        self.initial += 32 * count
        return self._random.integers(1, 1 << 32, count, np.uint32)

    def push_normal(self, cells: Cells, mean: Reals, scale: Reals) -> None:
        """Pushes cells of a grid by Gaussians, in units of a cell.

        Raises OverflowError for cells that lie too far from the means.
        """
        centre, rest, scale, most = _rounded_normal(mean, scale)
        offset = cells - centre
        excess = np.abs(offset[np.abs(offset) >= most]) - most
        if excess.size:
            if excess.max() >= MOST_BEYOND:
                raise OverflowError("a latent lies too far from the model's mean")
            self._coder.encode_reverse(excess.astype(np.int32), self._models.Uniform(MOST_BEYOND))
        self._push(np.clip(offset, -most, most), rest, scale, most)

    def pop_normal(self, mean: Reals, scale: Reals) -> Cells:
        """Pops what `push_normal` pushed."""
        centre, rest, scale, most = _rounded_normal(mean, scale)
        offset = self._pop(rest, scale, most)
        beyond = np.abs(offset) == most
        if beyond.any():
            excess = self._coder.decode(self._models.Uniform(MOST_BEYOND), int(beyond.sum()))
            offset[beyond] += np.sign(offset[beyond]) * excess
        return centre + offset

    def draw_normal(self, mean: Reals, scale: Reals) -> Cells:
        """Pops a draw of Gaussians on a grid, by bits that code something else."""
        centre, rest, scale, most = _rounded_normal(mean, scale)
        return centre + self._pop(rest, scale, most)

    def give_back(self, cells: Cells, mean: Reals, scale: Reals) -> None:
        """Pushes what `draw_normal` drew: its bits are there again."""
        centre, rest, scale, most = _rounded_normal(mean, scale)
        self._push(np.clip(cells - centre, -most, most), rest, scale, most)

    def _push(self, offset: Cells, mean: Reals, scale: Reals, most: int) -> None:
        family = self._models.QuantizedGaussian(-most, most)
        symbols = offset.ravel().astype(np.int32)
        self._coder.encode_reverse(symbols, family, mean.ravel(), scale.ravel())

    def _pop(self, mean: Reals, scale: Reals, most: int) -> Cells:
        family = self._models.QuantizedGaussian(-most, most)
        found = self._coder.decode(family, mean.ravel(), scale.ravel())
        return found.astype(np.int64).reshape(mean.shape)

    def push_levels(self, levels: Cells, probabilities: Probabilities) -> None:
        """Pushes grey values by their probabilities."""
        family = self._models.Categorical(perfect=False)
        symbols = levels.ravel().astype(np.int32)
        self._coder.encode_reverse(symbols, family, _rounded(probabilities))

    def pop_levels(self, probabilities: Probabilities) -> Cells:
        """Pops what `push_levels` pushed."""
        family = self._models.Categorical(perfect=False)
        found = self._coder.decode(family, _rounded(probabilities))
        return found.astype(np.int64).reshape(probabilities.shape[:-1])


def _rounded_normal(mean: Reals, scale: Reals) -> tuple[Cells, Reals, Reals, int]:
    """The cell of each mean, its place in the cell, the scales, and the last cell's number."""
    fine, scale = np.rint(np.asarray(mean, np.float64) * FINE), np.asarray(scale, np.float64)
    # What is not a number fails both comparisons.
    if not ((np.abs(fine) < FARTHEST) & (scale > 0) & (scale < WIDEST)).all():
        raise OverflowError("the model's mean or scale of a latent is out of reach")
    centre = np.rint(fine / FINE)
    scale = np.exp2(np.rint(np.log2(scale) * FINE_SCALE) / FINE_SCALE)
    return centre.astype(np.int64), fine / FINE - centre, scale, int(np.ceil(REACH * scale.max()))


def _rounded(probabilities: Probabilities) -> Float[np.ndarray, "rows levels"]:
    if not np.isfinite(probabilities).all():
        raise OverflowError("the model's probabilities of grey values are not numbers")
    rows = np.asarray(probabilities, np.float64).reshape(-1, probabilities.shape[-1])
    rows = np.rint(rows / PROBABILITY) * PROBABILITY
    if not rows.any(axis=1).all():
        raise OverflowError("the model gives all grey values of a pixel no probability")
    return rows
