"""A jitter of times: at the same steps of a solver, each example is at a time of its own.

A network may be rough in time. If all examples were evaluated at the same times, their errors
would have one sign, which a mean keeps, and would be small or large by luck. So the times of each
example are moved at random between fixed ends, by a smooth map of the solver's clock c.
"""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float

from scoremle.core.keys import fold_in, per_example
from scoremle.types import Keys, Times

__all__ = ["TimeJitter"]

# This moves the middle of 32 even steps by at most 0.4 of one. The error of a smooth field is less
# than a tenth larger.
MOST = 1 / 20
# The number of this draw from an example's key: the probes of a step have the step's.
DRAW = np.uint32(2**32 - 1)


@dataclass(frozen=True)
class TimeJitter:
    """The map c + amount (c - start) (stop - c) / (stop - start), which keeps both ends.

    Args:
        start: the clock at the beginning.
        stop: the clock at the end.
        amount: [b], 0 for no jitter.
    """

    start: Float[Array, ""]
    stop: Float[Array, ""]
    amount: Float[Array, " b"]

    @classmethod
    def drawn(cls, keys: Keys, start: Float[Array, ""], stop: Float[Array, ""]) -> "TimeJitter":
        """Draws the amount of each example by its key.

        Args:
            keys: [b].
            start: the clock at the beginning.
            stop: the clock at the end.
        """
        keys = fold_in(keys, DRAW)
        amount = per_example(jax.random.uniform, keys, (), start.dtype, -MOST, MOST)
        return cls(start, stop, amount)

    def at(self, clock: Times) -> tuple[Times, Times]:
        """The clock of each example after the jitter, and its derivative.

        Args:
            clock: [b] of the solver.
        """
        part = (clock - self.start) / (self.stop - self.start)
        return clock + self.amount * part * (self.stop - clock), 1 + self.amount * (1 - 2 * part)
