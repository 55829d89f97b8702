"""Initial value problems on device, many at once, with the evidence beside the answer.

A problem is a state for each example and quadratures beside it, d(state)/dc = v(c, state) and
d(integral)/dc = w(c, state), over a clock c from ``start`` to ``stop`` in either direction. Every
example has its own clock, step and error: its answer does not depend on its neighbours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from scoremle.numerics import compensated_add, expand, mean_square, sum_data
from scoremle.types import Data, PerExample, Times

__all__ = [
    "ONE_DRAW",
    "Adaptive",
    "Draw",
    "Field",
    "Problem",
    "Sensitivity",
    "Solution",
    "Solver",
    "insensitive",
    "mean_integral",
]

Integrals = Float[Array, "m b"]
Draw = Int[Array, ""] | np.integer
# (clock, state, number of the draw of whatever is random in it) -> rate of the state, rates of the
# integrals. The state's rate is never random.
Field = Callable[[Times, Data, Draw], tuple[Data, Integrals]]
# (clock, state, rate of the state) -> what a change of the state there does to the result
Sensitivity = Callable[[Times, Data, Data], Data]


def insensitive(clock: Times, state: Data, rate: Data) -> Data:
    """For solutions wanted for their state alone: their ``error`` is the integrals' own."""
    return jnp.zeros_like(state)


class Solution(NamedTuple):
    """State and integrals at ``stop``, and an estimate of the error that the solver made.

    ``error`` is of the mean of the integrals plus whatever function of the final state has, along
    the solution, the gradient that ``sensitivity`` gives: steps' errors are added without their
    signs (Runge-Kutta), or both with them and as independent ones (multistep). ``scatter``
    estimates the variance of the mean of the integrals that comes from ``fresh`` draws; NaN where
    there were none.
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

    With ``fresh`` a solver of fixed nodes gives each its own draw of what is random in the
    integrals' rates. One that controls its steps by these rates can't, and takes one for all.
    """

    field: Field
    start: float
    stop: float
    sensitivity: Sensitivity = insensitive
    fresh: bool = False


class Solver(Protocol):
    """Solves a problem for the states at its start."""

    def solve(self, problem: Problem, state: Data) -> Solution: ...


ONE_DRAW = np.int32(0)


def mean_integral(integrals: Integrals) -> PerExample:
    """Mean over the integrals, zero if there are none."""
    return jnp.sum(integrals, axis=0) / max(integrals.shape[0], 1)


# The pair of Dormand and Prince (1980) of orders 5 and 4; the last stage is the next step's first.
_C = np.array([0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1])
_A = np.zeros((7, 7))
_A[1, :1] = (1 / 5,)
_A[2, :2] = (3 / 40, 9 / 40)
_A[3, :3] = (44 / 45, -56 / 15, 32 / 9)
_A[4, :4] = (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)
_A[5, :5] = (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)
_A[6, :6] = (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
# The last row gives the solution of order 5; from this the one of order 4 is taken.
_B_LOW = np.array([5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40])
_E = _A[-1] - _B_LOW


def _weights(values: np.ndarray, like: Array) -> Array:
    return jnp.asarray(values, like.dtype)


class _Step(NamedTuple):
    clock: Times
    step: Times
    state: Data
    integrals: Integrals
    lost: Integrals
    rate: Data
    integral_rates: Integrals
    error: PerExample
    evaluations: Int[Array, " b"]
    ok: Bool[Array, " b"]
    running: Bool[Array, " b"]


@dataclass(frozen=True)
class Adaptive:
    """Runge-Kutta of order 5 with a step of its own for each example.

    A step is accepted when the root mean square of the state's error over atol + rtol |state|, and
    the step's effect on the result over ``atol`` for each dimension of the state, are below one.
    (In the usual norm over everything, an integral is one entry among thousands and may be wrong
    by the square root of their number.) Examples still running after ``max_steps`` steps are not
    ``ok``.

    Its ``error`` takes the field for smooth. On a trained network, which is rough in time, it was
    a tenth of the true error at 1e-3, and two thirds at 1e-5: ``Doubling`` of multistep.py
    measures instead.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000

    def solve(self, problem: Problem, state: Data) -> Solution:
        """Solves the problem; ``fresh`` draws can't be had."""
        field, start, stop = problem.field, problem.start, problem.stop
        batch, dims = state.shape[0], state[0].size
        clock = jnp.full(batch, start, state.dtype)
        rate, integral_rates = field(clock, state, ONE_DRAW)
        zeros = jnp.zeros_like(integral_rates)
        first = _Step(
            clock=clock,
            step=jnp.full(batch, (stop - start) / 100, state.dtype),
            state=state,
            integrals=zeros,
            lost=zeros,
            rate=rate,
            integral_rates=integral_rates,
            error=jnp.zeros(batch, state.dtype),
            evaluations=jnp.ones(batch, jnp.int32),
            ok=jnp.ones(batch, bool),
            running=jnp.ones(batch, bool),
        )

        def advance(count_and_step: tuple[Array, _Step]) -> tuple[Array, _Step]:
            count, s = count_and_step
            return count + 1, self._advance(problem, s, dims)

        def unfinished(count_and_step: tuple[Array, _Step]) -> Array:
            count, s = count_and_step
            return jnp.any(s.running) & (count < self.max_steps)

        _, last = jax.lax.while_loop(unfinished, advance, (jnp.int32(0), first))
        ok = last.ok & ~last.running
        return Solution(
            state=last.state,
            integrals=last.integrals,
            error=last.error,
            scatter=jnp.full_like(last.error, jnp.nan),
            evaluations=last.evaluations,
            ok=ok,
        )

    @staticmethod
    def _stages(field: Field, s: _Step, h: Times) -> tuple[Array, Array, Data]:
        """Rates at the stages of a step, [7 b *d] and [7 m b], and the state that it proposes."""
        rates = jnp.zeros((len(_C), *s.rate.shape), s.rate.dtype).at[0].set(s.rate)
        integral_rates = jnp.zeros((len(_C), *s.integral_rates.shape), s.rate.dtype)
        integral_rates = integral_rates.at[0].set(s.integral_rates)

        def stage(i: Array, carry: tuple[Array, Array, Data]) -> tuple[Array, Array, Data]:
            rates, integral_rates, _ = carry
            a, c = _weights(_A, s.state)[i], _weights(_C, s.state)[i]
            state = s.state + expand(h, s.state) * jnp.tensordot(a, rates, 1)
            rate, integral_rate = field(s.clock + c * h, state, ONE_DRAW)
            return rates.at[i].set(rate), integral_rates.at[i].set(integral_rate), state

        # A loop, so that the field (a network) is compiled once and not six times.
        return jax.lax.fori_loop(1, len(_C), stage, (rates, integral_rates, s.state))

    def _advance(self, problem: Problem, s: _Step, dims: int) -> _Step:
        remaining = problem.stop - s.clock
        finishing = jnp.abs(s.step) >= jnp.abs(remaining)
        h = jnp.where(s.running, jnp.where(finishing, remaining, s.step), 0)
        rates, integral_rates, proposal = self._stages(problem.field, s, h)
        error = expand(h, s.state) * jnp.tensordot(_weights(_E, s.state), rates, 1)
        integral_error = h * mean_integral(jnp.tensordot(_weights(_E, s.state), integral_rates, 1))
        scale = self.atol + self.rtol * jnp.maximum(jnp.abs(s.state), jnp.abs(proposal))
        gradient = problem.sensitivity(s.clock + h, proposal, rates[-1])
        effect = sum_data(gradient * error) + integral_error
        size = jnp.maximum(
            jnp.sqrt(mean_square(error / scale)), jnp.abs(effect) / (self.atol * dims)
        )
        increment = h * jnp.tensordot(_weights(_A[-1], s.state), integral_rates, 1)

        finite = jnp.isfinite(size)
        accept = s.running & finite & (size <= 1)
        factor = jnp.clip(0.9 * jnp.maximum(size, 1e-10) ** -0.2, 0.2, 5.0)
        # A field that is not finite may be so only far out: try smaller steps, then give up.
        step = jnp.where(s.running, h * jnp.where(finite, factor, 0.2), s.step)
        failed = s.running & (jnp.abs(step) <= 1e-6 * jnp.abs(problem.stop - s.clock)) & ~accept
        integrals, lost = compensated_add(s.integrals, s.lost, increment)

        def keep(new: Array, old: Array, axis: int = 0) -> Array:
            mask = accept.reshape((1,) * axis + (-1,) + (1,) * (new.ndim - axis - 1))
            return jnp.where(mask, new, old)

        return _Step(
            clock=keep(s.clock + h, s.clock),
            step=step,
            state=keep(proposal, s.state),
            integrals=keep(integrals, s.integrals, 1),
            lost=keep(lost, s.lost, 1),
            rate=keep(rates[-1], s.rate),
            integral_rates=keep(integral_rates[-1], s.integral_rates, 1),
            error=keep(s.error + jnp.abs(effect), s.error),
            evaluations=s.evaluations + 6 * s.running,
            ok=s.ok & ~failed,
            running=s.running & ~failed & ~(accept & finishing),
        )
