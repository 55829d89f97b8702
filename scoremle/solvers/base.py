"""Initial value problems on device, many at once, with estimates of their error.

A problem is a state for each example and quadratures beside it, d(state)/dc = v(c, state) and
d(integral)/dc = w(c, state), over a clock c from ``start`` to ``stop`` in either direction. Every
example has its own clock, step and error: its answer does not depend on its neighbours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from scoremle.types import Data, PerExample, Times

__all__ = ["ONE_DRAW", "DrawIndex", "Problem", "Solution", "Solver", "mean_integral"]

Integrals = Float[Array, "m b"]
DrawIndex = Int[Array, ""] | np.integer
# (clock, state, number of the draw of whatever is random in it) -> rate of the state, rates of the
# integrals, and parts of each of these: over draws their variances add up to that of the rate. The
# state's rate is never random.
ODEField = Callable[[Times, Data, DrawIndex], tuple[Data, Integrals, Float[Array, "m b *k"]]]
# (clock, state, rate of the state) -> what a change of the state there does to the result
Sensitivity = Callable[[Times, Data, Data], Data]


def insensitive(clock: Times, state: Data, rate: Data) -> Data:
    """Sensitivity of 0, for solutions of which only the state is used."""
    return jnp.zeros_like(state)


class Solution(NamedTuple):
    """State and integrals at ``stop``, and an estimate of the error that the solver made.

    The error is that of a result: the mean of the integrals plus a function of the final state,
    whose gradient along the solution is given by ``sensitivity``.

    Args:
        state: [b *d] at ``stop``.
        integrals: [m b] up to there.
        error: [b] that of the result.
        scatter: [b] an estimate of the variance of the mean of the integrals by ``fresh`` draws;
            NaN where there were none.
        evaluations: [b] how often the field was evaluated.
        ok: [b] whether the solver reached ``stop`` with finite numbers.
    """

    state: Data
    integrals: Integrals
    error: PerExample
    scatter: PerExample
    evaluations: Int[Array, " b"]
    ok: Bool[Array, " b"]


@dataclass(frozen=True)
class Problem:
    """A field, to be integrated from ``start`` to ``stop``, upwards or downwards.

    With ``fresh`` a solver of fixed steps gives each its own draw of what is random in the
    integrals' rates. One that compares several solutions can't, and takes one for all.

    Args:
        field: gives the rate of the state, and those of the integrals.
        start: the clock at the beginning.
        stop: the clock at the end.
        sensitivity: what a change of the state does to the result.
        fresh: whether each step draws anew.
        paired: whether the draws of even numbers depend on each other, and those of odd numbers,
            but not the ones on the others.
    """

    field: ODEField
    start: float | Float[Array, ""]
    stop: float | Float[Array, ""]
    sensitivity: Sensitivity = insensitive
    fresh: bool = False
    paired: bool = False


@runtime_checkable
class Solver(Protocol):
    """Solves a problem for the states at its start."""

    def solve(self, problem: Problem, state: Data) -> Solution:
        """Solves the problem for the states at its start.

        Args:
            problem: what to integrate.
            state: [b *d] at its start.
        """
        ...


ONE_DRAW = np.int32(0)


def mean_integral(integrals: Float[Array, "m *b"]) -> Float[Array, "*b"]:
    """Mean over the integrals, zero if there are none.

    Args:
        integrals: [m *b] of one solution.
    """
    return jnp.sum(integrals, axis=0) / max(integrals.shape[0], 1)
