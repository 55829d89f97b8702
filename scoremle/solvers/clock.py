"""A clock for each example: at the same steps of a solver, each example is at a time of its own.

A network may be rough in time. If all examples were evaluated at the same times, their errors
would have one sign, which a mean keeps, and would be small or large by luck. So the clock of each
example is bent at random between fixed ends.
"""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float

from scoremle.core.keys import draw, fold_in
from scoremle.types import Keys, Times

__all__ = ["BentClock"]

# This moves the middle of 32 even steps by at most 0.4 of one. The error of a smooth field is less
# than a tenth larger.
MOST = 1 / 20
# The number of this draw from an example's key: the probes of a step have the step's.
DRAW = np.uint32(2**32 - 1)


@dataclass(frozen=True)
class BentClock:
    """c + bend (c - start) (stop - c) / (stop - start), which is ``start`` and ``stop`` there."""

    start: Float[Array, ""]
    stop: Float[Array, ""]
    bend: Float[Array, " b"]

    @classmethod
    def drawn(cls, keys: Keys, start: Float[Array, ""], stop: Float[Array, ""]) -> "BentClock":
        """Draws the clock of each example by its key, between these ends."""
        keys = fold_in(keys, DRAW)
        return cls(start, stop, draw(jax.random.uniform, keys, (), start.dtype, -MOST, MOST))

    def at(self, clock: Times) -> tuple[Times, Times]:
        """The bent clock of each example, and its derivative."""
        part = (clock - self.start) / (self.stop - self.start)
        return clock + self.bend * part * (self.stop - clock), 1 + self.bend * (1 - 2 * part)
