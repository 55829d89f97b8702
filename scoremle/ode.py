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
from scoremle.numerics import compensated_add, expand, mean_square

__all__ = ["Adaptive", "Field", "Multistep", "Solution", "Solver"]

Integrals = Float[Array, "m b"]
# (clock, state) -> rate of the state, rates of the integrals
Field = Callable[[Times, Data], tuple[Data, Integrals]]


class Solution(NamedTuple):
    """State and integrals at ``stop``; ``error`` estimates the integrals' own, in their units."""

    state: Data
    integrals: Integrals
    error: PerExample
    evaluations: Int[Array, " b"]
    ok: Bool[Array, " b"]


# The history of a multistep method begins with one value: short first steps cost least there.
FIRST_STEP = 1 / 3
STEP_GROWTH = 1.3
# The share of the predictor that the corrector keeps, which widens its stability.
BLEND = 0.35


class Solver(Protocol):
    """Integrates a field from ``start`` to ``stop``, upwards or downwards."""

    def solve(self, field: Field, state: Data, start: float, stop: float) -> Solution: ...


# The pair of Dormand and Prince (1980) of orders 5 and 4; the last stage is the next step's first.
_C = np.array([0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1])
_A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_B = np.array([35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0])
_B_LOW = np.array([5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40])
_E = _B - _B_LOW


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


def _combine(weights: np.ndarray | tuple[float, ...], stages: list[Array]) -> Array:
    return sum(float(w) * k for w, k in zip(weights, stages, strict=False) if w != 0)  # type: ignore[return-value]


@dataclass(frozen=True)
class Adaptive:
    """Runge-Kutta of order 5 with a step of its own for each example.

    A step is accepted when the root mean square of the state's error over atol + rtol |state|, and
    the error of each integral over ``atol`` for each dimension of the state, are below one. (In the
    usual norm over everything, an integral is one entry among thousands and may be wrong by the
    square root of their number.) Examples still running after ``max_steps`` steps are not ``ok``.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000

    def solve(self, field: Field, state: Data, start: float, stop: float) -> Solution:
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
            return count + 1, self._advance(field, s, stop, dims)

        def unfinished(count_and_step: tuple[Array, _Step]) -> Array:
            count, s = count_and_step
            return jnp.any(s.running) & (count < self.max_steps)

        _, last = jax.lax.while_loop(unfinished, advance, (jnp.int32(0), first))
        ok = last.ok & ~last.running
        return Solution(last.state, last.integrals, last.error, last.evaluations, ok)

    def _advance(self, field: Field, s: _Step, stop: float, dims: int) -> _Step:
        remaining = stop - s.clock
        finishing = jnp.abs(s.step) >= jnp.abs(remaining)
        h = jnp.where(s.running, jnp.where(finishing, remaining, s.step), 0)
        rates, integral_rates = [s.rate], [s.integral_rates]
        proposal = s.state
        for a, c in zip(_A[1:], _C[1:], strict=True):
            proposal = s.state + expand(h, s.state) * _combine(a, rates)
            k, w = field(s.clock + c * h, proposal)
            rates.append(k)
            integral_rates.append(w)

        error = expand(h, s.state) * _combine(_E, rates)
        scale = self.atol + self.rtol * jnp.maximum(jnp.abs(s.state), jnp.abs(proposal))
        integral_error = jnp.max(jnp.abs(h * _combine(_E, integral_rates)), axis=0, initial=0)
        size = jnp.maximum(jnp.sqrt(mean_square(error / scale)), integral_error / (self.atol * dims))

        finite = jnp.isfinite(size)
        accept = s.running & finite & (size <= 1)
        factor = jnp.clip(0.9 * jnp.maximum(size, 1e-10) ** -0.2, 0.2, 5.0)
        # A field that is not finite may be so only far out: try smaller steps, then give up.
        step = jnp.where(s.running, h * jnp.where(finite, factor, 0.2), s.step)
        failed = s.running & (jnp.abs(step) <= 1e-6 * jnp.abs(stop - s.clock)) & ~accept
        integrals, lost = compensated_add(s.integrals, s.lost, h * _combine(_B, integral_rates))

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
            error=keep(s.error + integral_error, s.error),
            evaluations=s.evaluations + 6 * s.running,
            ok=s.ok & ~failed,
            running=s.running & ~failed & ~(accept & finishing),
        )


# Multistep -----------------------------------------------------------------------------------------


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
    """Weights of each step, newest value first, [steps, order] and [steps, order + 1]."""

    predictor: np.ndarray
    corrector: np.ndarray
    integral: np.ndarray
    coarse: np.ndarray


def _adams_weights(nodes: np.ndarray, order: int) -> _Weights:
    steps = len(nodes) - 1
    predictor, corrector, integral, coarse = (np.zeros((steps, order + 1)) for _ in range(4))
    for n in range(steps):
        known = min(n + 1, order)
        past = nodes[n::-1][:known]
        low, high = nodes[n], nodes[n + 1]
        predictor[n, 1 : known + 1] = _quadrature(past, low, high)
        used = min(n + 2, order)
        corrector[n, :used] = _quadrature(nodes[n + 1 :: -1][:used], low, high)
        used = min(n + 2, order + 1)
        integral[n, :used] = _quadrature(nodes[n + 1 :: -1][:used], low, high)
        coarse[n, : used - 1] = _quadrature(nodes[n + 1 :: -1][: used - 1], low, high)
    corrector = BLEND * predictor + (1 - BLEND) * corrector
    return _Weights(predictor[:, 1:], corrector, integral, coarse)


@dataclass(frozen=True)
class Multistep:
    """Adams-Bashforth-Moulton of order 3 on fixed nodes: one evaluation of the field a node.

    The predictor's value of the field serves the corrector and the history. Memory does not grow
    with the number of nodes.
    """

    nodes: int = 32
    order: int = 3

    def solve(self, field: Field, state: Data, start: float, stop: float) -> Solution:
        """Integrates from ``start`` to ``stop``."""
        batch, dtype = state.shape[0], state.dtype
        nodes = _nodes(self.nodes, start, stop)
        weights = _adams_weights(nodes, self.order)

        def clock(c: Array | float) -> Times:
            return jnp.full(batch, c, dtype)

        rate, integral_rate = field(clock(start), state)
        zeros = jnp.zeros_like(integral_rate)
        history = jnp.zeros((self.order, *rate.shape), dtype).at[0].set(rate)
        integral_history = jnp.zeros((self.order, *zeros.shape), dtype).at[0].set(integral_rate)

        def advance(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
            state, integrals, lost, coarse_gap, history, integral_history = carry
            c, w = inputs
            guess = state + jnp.tensordot(w.predictor, history, 1)
            rate, integral_rate = field(clock(c), guess)
            history = jnp.concatenate([rate[None], history])
            integral_history = jnp.concatenate([integral_rate[None], integral_history])
            state = state + jnp.tensordot(w.corrector, history, 1)
            term = jnp.tensordot(w.integral, integral_history, 1)
            integrals, lost = compensated_add(integrals, lost, term)
            coarse_gap = coarse_gap + jnp.tensordot(w.integral - w.coarse, integral_history, 1)
            return (state, integrals, lost, coarse_gap, history[:-1], integral_history[:-1]), None

        carry = (state, zeros, zeros, zeros, history, integral_history)
        inputs = (
            jnp.asarray(nodes[1:], dtype),
            jax.tree.map(lambda w: jnp.asarray(w, dtype), weights),
        )
        (state, integrals, _, coarse_gap, _, _), _ = jax.lax.scan(advance, carry, inputs)
        finite = jnp.all(jnp.isfinite(state), axis=tuple(range(1, state.ndim)))
        return Solution(
            state=state,
            integrals=integrals,
            error=jnp.max(jnp.abs(coarse_gap), axis=0, initial=0),
            evaluations=jnp.full(batch, self.nodes + 1),
            ok=finite & jnp.all(jnp.isfinite(integrals), axis=0),
        )
