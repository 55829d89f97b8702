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

from scoremle.arrays import Data, PerExample, Times
from scoremle.numerics import compensated_add, expand, mean_square, sum_data

__all__ = ["Adaptive", "Field", "Multistep", "Solution", "Solver"]

Integrals = Float[Array, "m b"]
# (clock, state) -> rate of the state, rates of the integrals
Field = Callable[[Times, Data], tuple[Data, Integrals]]
# (clock, state, rate of the state) -> what a change of the state there does to the result
Sensitivity = Callable[[Times, Data, Data], Data]


def insensitive(clock: Times, state: Data, rate: Data) -> Data:
    """For solutions wanted for their state alone: their ``error`` is the integrals' own."""
    return jnp.zeros_like(state)


class Solution(NamedTuple):
    """State and integrals at ``stop``, and an estimate of the error that the solver made.

    ``error`` is of the mean of the integrals plus whatever function of the final state has, along
    the solution, the gradient that ``sensitivity`` gives: steps' errors are added without their
    signs (adaptive), or as independent ones (multistep).
    """

    state: Data
    integrals: Integrals
    error: PerExample
    evaluations: Int[Array, " b"]
    ok: Bool[Array, " b"]


ORDER = 3
# The history of a multistep method begins with one value: short first steps cost least there.
FIRST_STEP = 1 / 3
STEP_GROWTH = 1.3
# The share of the predictor that the corrector keeps, which widens its stability.
BLEND = 0.35
# The error of a step, as a share of what the corrector changed (Milne's device): the predictor is
# off by 3/8, the corrector by -1/24 of h^4 times the fourth derivative.
MILNE = (BLEND * 3 / 8 - (1 - BLEND) / 24) / ((1 - BLEND) * (3 / 8 + 1 / 24))


# The errors of a network's steps have either sign, and add like independent ones. Twice their root
# sum of squares covered the true error of 97 to 100% of images and of Gaussian data.
COVERAGE = 2.0


class Solver(Protocol):
    """Integrates a field from ``start`` to ``stop``, upwards or downwards."""

    def solve(
        self,
        field: Field,
        state: Data,
        start: float,
        stop: float,
        *,
        sensitivity: Sensitivity = insensitive,
    ) -> Solution: ...


def _mean(integrals: Integrals) -> PerExample:
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

    Its ``error`` holds for smooth fields. On a trained network, whose dependence on time is rough,
    it was two thirds of the true error in the median at 1e-5, and a tenth of it at 1e-3: there,
    the estimate of ``Multistep`` is the one to trust.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000

    def solve(
        self,
        field: Field,
        state: Data,
        start: float,
        stop: float,
        *,
        sensitivity: Sensitivity = insensitive,
    ) -> Solution:
        """Integrates from ``start`` to ``stop``."""
        batch, dims = state.shape[0], state[0].size
        clock = jnp.full(batch, start, state.dtype)
        rate, integral_rates = field(clock, state)
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
            return count + 1, self._advance(field, sensitivity, s, stop, dims)

        def unfinished(count_and_step: tuple[Array, _Step]) -> Array:
            count, s = count_and_step
            return jnp.any(s.running) & (count < self.max_steps)

        _, last = jax.lax.while_loop(unfinished, advance, (jnp.int32(0), first))
        ok = last.ok & ~last.running
        return Solution(last.state, last.integrals, last.error, last.evaluations, ok)

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
            rate, integral_rate = field(s.clock + c * h, state)
            return rates.at[i].set(rate), integral_rates.at[i].set(integral_rate), state

        # A loop, so that the field (a network) is compiled once and not six times.
        return jax.lax.fori_loop(1, len(_C), stage, (rates, integral_rates, s.state))

    def _advance(
        self, field: Field, sensitivity: Sensitivity, s: _Step, stop: float, dims: int
    ) -> _Step:
        remaining = stop - s.clock
        finishing = jnp.abs(s.step) >= jnp.abs(remaining)
        h = jnp.where(s.running, jnp.where(finishing, remaining, s.step), 0)
        rates, integral_rates, proposal = self._stages(field, s, h)
        error = expand(h, s.state) * jnp.tensordot(_weights(_E, s.state), rates, 1)
        integral_error = h * _mean(jnp.tensordot(_weights(_E, s.state), integral_rates, 1))
        scale = self.atol + self.rtol * jnp.maximum(jnp.abs(s.state), jnp.abs(proposal))
        effect = sum_data(sensitivity(s.clock + h, proposal, rates[-1]) * error) + integral_error
        size = jnp.maximum(
            jnp.sqrt(mean_square(error / scale)), jnp.abs(effect) / (self.atol * dims)
        )
        increment = h * jnp.tensordot(_weights(_A[-1], s.state), integral_rates, 1)

        finite = jnp.isfinite(size)
        accept = s.running & finite & (size <= 1)
        factor = jnp.clip(0.9 * jnp.maximum(size, 1e-10) ** -0.2, 0.2, 5.0)
        # A field that is not finite may be so only far out: try smaller steps, then give up.
        step = jnp.where(s.running, h * jnp.where(finite, factor, 0.2), s.step)
        failed = s.running & (jnp.abs(step) <= 1e-6 * jnp.abs(stop - s.clock)) & ~accept
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


# Multistep ----------------------------------------------------------------------------------


def _nodes(steps: int, start: float, stop: float) -> np.ndarray:
    """Ends of the steps: even, but for short first ones that grow, while the history is short."""
    sizes = np.minimum(FIRST_STEP * STEP_GROWTH ** np.arange(steps), 1.0)
    ends = np.concatenate([[0.0], np.cumsum(sizes)])
    return start + (stop - start) * ends / ends[-1]


def _quadrature(points: np.ndarray, low: float, high: float) -> np.ndarray:
    """Weights of values at ``points`` in the integral of their interpolation over [low, high]."""
    scale = high - low
    x = (points - low) / scale
    powers = np.arange(len(points))
    moments = 1.0 / (powers + 1)
    return scale * np.linalg.solve(np.vander(x, increasing=True).T, moments)


class _Weights(NamedTuple):
    """Weights at each node for the step that ends there, newest value first.

    The first node ends no step: all its weights are zero.
    """

    predictor: np.ndarray
    corrector: np.ndarray
    integral: np.ndarray
    coarse: np.ndarray


def _step_weights(nodes: np.ndarray, end: int, first: int, count: int) -> np.ndarray:
    """Weights of the step to node ``end`` from ``count`` nodes, beginning ``first`` before it."""
    points = nodes[end::-1][first : first + count]
    weights = np.zeros(ORDER + 1)
    weights[first : first + len(points)] = _quadrature(points, nodes[end - 1], nodes[end])
    return weights


def _adams_weights(nodes: np.ndarray) -> _Weights:
    predictor, corrector, integral, coarse = (np.zeros((len(nodes), ORDER + 1)) for _ in range(4))
    for n in range(1, len(nodes)):
        predictor[n] = _step_weights(nodes, n, 1, ORDER)
        corrector[n] = _step_weights(nodes, n, 0, ORDER)
        integral[n] = _step_weights(nodes, n, 0, ORDER + 1)
        coarse[n] = _step_weights(nodes, n, 0, min(n, ORDER))
    corrector = BLEND * predictor + (1 - BLEND) * corrector
    return _Weights(predictor[:, 1:], corrector, integral, coarse)


@dataclass(frozen=True)
class Multistep:
    """Adams-Bashforth-Moulton of order 3 on fixed nodes: one evaluation of the field a node.

    The predictor's value of the field serves the corrector and the history. Memory does not grow
    with the number of nodes.
    """

    nodes: int = 32

    def solve(
        self,
        field: Field,
        state: Data,
        start: float,
        stop: float,
        *,
        sensitivity: Sensitivity = insensitive,
    ) -> Solution:
        """Integrates from ``start`` to ``stop``."""
        batch, dtype = state.shape[0], state.dtype
        nodes = _nodes(self.nodes, start, stop)
        weights = _adams_weights(nodes)

        def clock(c: Array | float) -> Times:
            return jnp.full(batch, c, dtype)

        integrals = jax.eval_shape(field, clock(start), state)[1]
        zeros = jnp.zeros(integrals.shape, dtype)
        history = jnp.zeros((ORDER, *state.shape), dtype)
        integral_history = jnp.zeros((ORDER, *zeros.shape), dtype)

        def advance(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
            state, integrals, lost, squares, history, integral_history = carry
            c, w = inputs
            guess = state + jnp.tensordot(w.predictor, history, 1)
            rate, integral_rate = field(clock(c), guess)
            history = jnp.concatenate([rate[None], history])
            integral_history = jnp.concatenate([integral_rate[None], integral_history])
            state = state + jnp.tensordot(w.corrector, history, 1)
            term = jnp.tensordot(w.integral, integral_history, 1)
            integrals, lost = compensated_add(integrals, lost, term)
            gap = jnp.tensordot(w.integral - w.coarse, integral_history, 1)
            gradient = sensitivity(clock(c), state, rate)
            effect = sum_data(gradient * MILNE * (state - guess)) + _mean(gap)
            squares = squares + jnp.square(effect)
            return (state, integrals, lost, squares, history[:-1], integral_history[:-1]), None

        carry = (state, zeros, zeros, jnp.zeros(batch, dtype), history, integral_history)
        inputs = (
            jnp.asarray(nodes, dtype),
            jax.tree.map(lambda w: jnp.asarray(w, dtype), weights),
        )
        (state, integrals, _, squares, _, _), _ = jax.lax.scan(advance, carry, inputs)
        finite = jnp.all(jnp.isfinite(state), axis=tuple(range(1, state.ndim)))
        return Solution(
            state=state,
            integrals=integrals,
            error=COVERAGE * jnp.sqrt(squares),
            evaluations=jnp.full(batch, self.nodes + 1),
            ok=finite & jnp.all(jnp.isfinite(integrals), axis=0),
        )
