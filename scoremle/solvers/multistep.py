"""Linear multistep integration: one evaluation of the field a step, on nodes that are fixed.

The state goes by Adams-Bashforth-Moulton of order 3 (predict, evaluate, correct, and the predicted
value serves the history), the integrals by the quartics that interpolate their rates:

    guess = u_n + sum_j a_j v_{n-j},    v = v(c, guess),    u_{n+1} = u_n + sum_j b_j v_{n+1-j}

with weights for uneven nodes (Hairer, Norsett, Wanner, *Solving Ordinary Differential Equations*,
III.5). The integrals don't act on the state, so their rates may be random: a ``fresh`` draw at
each node leaves the integral's expectation as it is, and its error falls with the number of nodes,
where that of one draw for all does not. That error is estimated from the rates' parts, which are
many, so that few nodes are enough: from the spread of several integrals' parts at each node, or
from the scatter of a single one's along the nodes; of ``paired`` draws from the difference, part
by part, between the even and the odd nodes' shares of an integral.

The stated error has three parts, which add like independent ones: the error of the steps by
Milne's device; the roughness of the field from node to node, which that device does not see; and
the distance of the integrals from their quadrature of two orders less. What a rough field does to
the state and to its divergence has opposite signs in the mean over a density (Stein's identity):
so the effects of single dimensions are squared and added, not their sum. Fewer than four steps
give no error: it is NaN.
"""

import dataclasses
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from scoremle.core.arguments import check_count, check_number
from scoremle.core.pytree import frozen_pytree, require, static
from scoremle.numerics import compensated_add, dims_of, sum_data
from scoremle.solvers.base import ONE_DRAW, DrawIndex, Problem, Solution, mean_integral
from scoremle.types import AnyArray, Data, PerExample, Times

__all__ = ["NOISE", "Multistep", "Planned", "stated"]

ORDER = 3
# Roughness is measured by the difference of this order, which is zero for cubics.
DIFFERENCE = ORDER + 1
# The history begins with one value, and the field changes most near the data: the first step is
# shorter than the last by this factor. Steps grow over this share of them, and so many at most.
FIRST_STEP = 1 / 3
GROWING, MOST_GROWING = 0.15, 5
# The share of the predictor that the corrector keeps: it widens the stability. The leading errors
# of the two have opposite signs, so that what remains is no larger than the corrector's own.
BLEND = 0.2
# The error of a step, as a share of what the corrector changed (Milne's device): the predictor is
# off by 3/8, the corrector by -1/24 of h^4 times the fourth derivative.
MILNE = (BLEND * 3 / 8 - (1 - BLEND) / 24) / ((1 - BLEND) * (3 / 8 + 1 / 24))
# The estimate of the error, times this, covers the true error of most examples on trained networks
# (benchmarks/README.md).
COVERING_FACTOR = 2.0
# By so many steps, and those about it, the stated error covers the true one of 90 % of images or
# more, to a per cent, on seven networks; by 32 of 79 % on one (benchmarks/README.md).
DEFAULT_STEPS = 40
# A difference of two values counts as an error from so many standard deviations of its noise.
NOISE = 2.0
# An example whose estimated error is more than so many times the typical one is unlike those of
# the pilot, and states at least the excess.
UNLIKE = 3.0


# [n], or [n k] for the last k rates
Weights = Array | np.ndarray


class StepTable(NamedTuple):
    """Nodes on [0, 1], and the weights of the last rates in the step that ends at each node.

    The newest rate comes first.

    The first node ends no step: its weights are zero. ``contrast`` takes a difference of unit
    variance. ``total`` is the weight of each node's rate in the integrals, and ``gap`` its
    difference from that of a quadrature of two orders less.
    """

    node: Weights
    predictor: Weights
    corrector: Weights
    contrast: Weights
    total: Weights
    gap: Weights


def _nodes(steps: int) -> np.ndarray:
    """Ends of the steps: even, but for short first ones that grow by equal factors."""
    grown = np.arange(steps) / min(GROWING * steps, MOST_GROWING)
    ends = np.concatenate([[0.0], np.cumsum(FIRST_STEP ** np.maximum(1 - grown, 0))])
    return ends / ends[-1]


def _quadrature(points: np.ndarray, low: float, high: float) -> np.ndarray:
    """Weights of values at ``points`` in the integral of their interpolation over [low, high]."""
    scale = high - low
    x = (points - low) / scale
    moments = 1.0 / (np.arange(len(points)) + 1)
    return scale * np.linalg.solve(np.vander(x, increasing=True).T, moments)


def _step_weights(nodes: np.ndarray, end: int, first: int) -> np.ndarray:
    """Weights of the step to node ``end`` from ``ORDER`` nodes, beginning ``first`` before it."""
    points = nodes[end::-1][first : first + ORDER]
    weights = np.zeros(DIFFERENCE + 1)
    weights[first : first + len(points)] = _quadrature(points, nodes[end - 1], nodes[end])
    return weights


def _totals(nodes: np.ndarray, count: int) -> np.ndarray:
    """Weights of all rates in an integral, each step by a polynomial through ``count`` of them.

    They are those up to the end of the step, and for the first steps those of the first nodes.
    """
    steps = len(nodes) - 1
    found = np.zeros(steps + 1)
    for n in range(1, steps + 1):
        end = max(n, min(count - 1, steps)) + 1
        used = slice(max(end - count, 0), end)
        found[used] += _quadrature(nodes[used], nodes[n - 1], nodes[n])
    return found


def _contrast(nodes: np.ndarray, end: int) -> np.ndarray:
    """Weights, of norm one, that any cubic gives zero; zeros where there are too few nodes."""
    points = nodes[end::-1][: DIFFERENCE + 1]
    if len(points) <= DIFFERENCE:
        return np.zeros(DIFFERENCE + 1)
    gaps = points[:, None] - points + np.eye(DIFFERENCE + 1)
    weights = 1 / gaps.prod(axis=1)
    return weights / np.linalg.norm(weights)


def step_table(steps: int, room: int | None = None) -> StepTable:
    """The plan of ``steps`` steps, with zeros behind up to ``room`` of them. Read only."""
    return _table(steps, room, str(jax.dtypes.canonicalize_dtype(float)))


# In JAX's own precision, with arrays of their own for each: JAX 0.10 keeps the type that it gave
# to a constant, and fails where the same array comes in another precision.
@cache
def _table(steps: int, room: int | None, dtype: str) -> StepTable:
    nodes = _nodes(steps)
    rows = np.zeros((3, steps + 1, DIFFERENCE + 1))
    for n in range(1, steps + 1):
        rows[0, n] = _step_weights(nodes, n, 1)
        rows[1, n] = _step_weights(nodes, n, 0)
        rows[2, n] = _contrast(nodes, n)
    predictor, corrector, contrast = rows
    # While the history is short, the predictor is of a lower order than the rest.
    kept = np.where(np.arange(steps + 1) < ORDER, 0, BLEND)[:, None]
    corrector = kept * predictor + (1 - kept) * corrector
    total = _totals(nodes, DIFFERENCE + 1)
    gap = total - _totals(nodes, ORDER)
    found = StepTable(nodes, predictor[:, 1:], corrector, contrast, total, gap)
    behind = 0 if room is None else room - steps
    padded = [np.pad(a, [(0, behind)] + [(0, 0)] * (a.ndim - 1)).astype(dtype) for a in found]
    for a in padded:
        a.flags.writeable = False
    return StepTable(*padded)


def _shares(weights: Weights) -> Float[Array, " n"]:
    """Weights of the squared contrast at each node; the first counts for the nodes before, too."""
    squares = jnp.square(weights)
    before = jnp.sum(squares[:DIFFERENCE])
    return squares.at[:DIFFERENCE].set(0).at[DIFFERENCE].add(before)


def _variance(effects: Data) -> Float[Array, " b"]:
    """The variance of log p by a rough field, from its ``effects`` through single dimensions.

    It is a difference of squares times a factor that depends on the field: (D + 2) / (D + 1)
    where it does not change with x, and 2 (D + 1) / (D + 3) where it is linear and alike in all
    directions. The mean of both is taken (docs/math.md, 5.4).
    """
    dims = dims_of(effects)
    squares, together = sum_data(jnp.square(effects)), jnp.square(sum_data(effects))
    factor = (dims + 2) / (2 * dims + 2) + (dims + 1) / (dims + 3)
    return factor * (squares - together / (dims + 2))


def _combined(weights: Weights, values: Float[Array, "n b *d"]) -> Data:
    """The sum of values times weights."""
    return jnp.tensordot(weights, values, 1, precision="highest")


class _Carry(NamedTuple):
    state: Data
    integrals: Float[Array, "m b"]
    lost: Float[Array, "m b"]
    history: Float[Array, "4 b *d"]
    parts_history: Float[Array, "4 b *k"]
    effect: Float[Array, " b"]
    squares: Float[Array, " b"]
    gap: Float[Array, " b"]
    gap_scatter: Float[Array, " b"]
    scatter: Float[Array, " b"]
    difference: Float[Array, "b *k"]


@frozen_pytree
class Planned:
    """The solver itself, with its plan as data: programs that differ in steps are one program.

    ``held``: all nodes have the first draw, so that two numbers of steps differ by the solver's
    error alone.

    Args:
        weights: the table of ``steps`` steps.
        steps: how many.
        held: whether all steps have one draw.
        calibration: as of ``Multistep``.
        typical: as of ``Multistep``.
    """

    weights: StepTable
    steps: DrawIndex | int
    held: bool | np.bool_ | Bool[Array, ""] = False
    calibration: float | Float[Array, ""] = 1.0
    typical: float | Float[Array, ""] = 0.0

    @classmethod
    def of(cls, steps: int, room: int, *, held: bool = False) -> "Planned":
        """A plan of ``steps`` steps, in arrays with room for ``room`` of them.

        Args:
            steps: how many.
            room: the most steps that programs of these arrays take.
            held: whether all steps have one draw.
        """
        return cls(step_table(steps, room), np.int32(steps), np.bool_(held))

    def solve(self, problem: Problem, state: Data) -> Solution:
        """Solves the problem."""
        field, random = problem.field, problem.fresh
        fresh = random & ~jnp.asarray(self.held)
        batch, dtype = state.shape[0], state.dtype
        weights = StepTable(*(jnp.asarray(a, dtype) for a in self.weights))
        span = problem.stop - problem.start

        def clock(node: Weights | float) -> Times:
            return jnp.full(batch, problem.start + span * node, dtype)

        _, rates, parts = jax.eval_shape(field, clock(0.0), state, ONE_DRAW)
        several, rough_shares = len(rates) > 1, jnp.square(span) * _shares(weights.total)
        shares, gap_shares = (
            jnp.square(span) * (jnp.square(total) if several else _shares(total))
            for total in (weights.total, weights.gap)
        )
        zeros, none = jnp.zeros(rates.shape, dtype), jnp.zeros(batch, dtype)
        compared = random and not several
        first = _Carry(
            state=state,
            integrals=zeros,
            lost=zeros,
            history=jnp.zeros((DIFFERENCE, *state.shape), dtype),
            parts_history=jnp.zeros((DIFFERENCE * compared, *parts.shape[1:]), dtype),
            effect=none,
            squares=none,
            gap=none,
            gap_scatter=none,
            scatter=none,
            difference=jnp.zeros(parts.shape[1:] if problem.paired else (batch, 0), dtype),
        )

        def advance(n: Array, carry: _Carry) -> _Carry:
            w = StepTable(*(a[n] for a in weights))
            guess = carry.state + span * _combined(w.predictor, carry.history)
            number = jnp.where(fresh, n, ONE_DRAW)
            rate, integral_rate, parts = field(clock(w.node), guess, number)
            history = jnp.concatenate([rate[None], carry.history])
            state = carry.state + span * _combined(w.corrector, history)
            term = span * jnp.asarray(w.total) * integral_rate
            integrals, lost = compensated_add(carry.integrals, carry.lost, term)
            gradient = problem.sensitivity(clock(w.node), state, rate)
            # The first step's predictor is of the first order, so its difference does not measure
            # the corrector's error: the second step's, of the third order, is taken for both.
            milne = jnp.where(n < 2, 0, MILNE)
            effect = sum_data(gradient * milne * (state - guess))
            rough = _variance(gradient * _combined(w.contrast, history))
            parts_history = jnp.concatenate([parts[:1], carry.parts_history])
            difference = carry.difference
            if problem.paired:
                difference += (1 - 2 * (n % 2)) * span * w.total * jnp.mean(parts, axis=0)
            if several:
                noise = sum_data(jnp.var(parts, axis=0, ddof=1)) / len(parts)
            elif random:
                noise = sum_data(jnp.square(_combined(w.contrast, parts_history)))
            else:
                noise = none
            return _Carry(
                state=state,
                integrals=integrals,
                lost=lost,
                history=history[:-1],
                parts_history=parts_history[:-1],
                effect=carry.effect + effect,
                squares=carry.squares + jnp.square(effect) + rough_shares[n] * rough,
                gap=carry.gap + span * w.gap * mean_integral(integral_rate),
                gap_scatter=carry.gap_scatter + gap_shares[n] * noise,
                scatter=carry.scatter + shares[n] * noise,
                difference=difference,
            )

        # Its derivative in reverse keeps the carry of each node and computes the rest anew.
        once = jax.checkpoint(advance, prevent_cse=False)
        last = jax.lax.fori_loop(0, self.steps + 1, once, first)
        finite = jnp.all(jnp.isfinite(last.state), axis=tuple(range(1, state.ndim)))
        # Steps of a rough field err like independent ones, those of a smooth one with one sign.
        steps = COVERING_FACTOR**2 * (last.squares + jnp.square(last.effect))
        noise = jnp.where(fresh, NOISE**2 * last.gap_scatter, 0)
        gap = jnp.maximum(jnp.square(last.gap) - noise, 0)
        scatter = sum_data(jnp.square(last.difference)) if problem.paired else last.scatter
        enough = fresh & (several | (self.steps >= DIFFERENCE))
        return Solution(
            state=last.state,
            integrals=last.integrals,
            error=stated(self, jnp.where(self.steps < DIFFERENCE, jnp.nan, jnp.sqrt(steps + gap))),
            scatter=jnp.where(enough, scatter, jnp.nan),
            evaluations=jnp.broadcast_to(jnp.asarray(self.steps + 1, jnp.int32), batch),
            ok=finite & jnp.all(jnp.isfinite(last.integrals), axis=0),
        )


@frozen_pytree
class Multistep:
    """Solver with the same steps for every example. Memory does not grow with their number.

    Where a pilot measured how large its errors are (``ScoreModel.calibrated``), the stated error
    is ``calibration`` times the root of two squares: the estimate for the example, and that of
    ``typical`` ones, in the unit of the integrals. The estimate for a single example may be near
    0. Its excess over three typical errors is stated in full: no pilot measured such examples.

    Args:
        steps: how many; the network is evaluated once more than that. The error of fewer than
            four is NaN, not known. With fewer than the default's it may be stated too small,
            unless a pilot calibrated it.
        calibration: the factor by which a pilot found the stated error too small
            (``ScoreModel.calibrated``).
        typical: its estimate for the pilot's examples, in nats.

    Raises UserError for less than one step, and a calibration that is not above 0.

    Example:
        >>> sde, x = scoremle.VP(), jnp.zeros((1, 2))
        >>> found = scoremle.ode_log_likelihood(
        ...     lambda x, t: sde.sigma(t)[:, None] * x, sde, x, jax.random.key(0),
        ...     eps=1e-3, divergence=scoremle.Exact(), solver=scoremle.Multistep(48),
        ... )
        >>> print(f"{found.log_prob[0]:.2f}, {found.evaluations[0]} evaluations")  # -log 2 pi
        -1.84, 49 evaluations
    """

    steps: int = static(default=DEFAULT_STEPS, recorded="nodes")
    # Not recorded: their last digits depend on the processors that the pilot ran on, and parts
    # that are finished on one machine count on another.
    calibration: float | Float[Array, ""] = dataclasses.field(
        default=1.0, repr=False, metadata={"recorded": False}
    )
    typical: float | Float[Array, ""] = dataclasses.field(
        default=0.0, repr=False, metadata={"recorded": False}
    )

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_number("calibration", self.calibration, above=0)
        require(self, lambda: 0 <= self.typical < np.inf, "typical must be at least 0, and finite")

    def solve(self, problem: Problem, state: Data) -> Solution:
        """Solves the problem."""
        return self._planned(step_table(self.steps), self.steps).solve(problem, state)

    def planned(self, room: int) -> "Planned | Multistep":
        """This solver with its plan as data; itself, if it has more steps than ``room``.

        Args:
            room: the most steps that programs of these arrays take.
        """
        if self.steps > room:
            return self
        return self._planned(step_table(self.steps, room), np.int32(self.steps))

    def _planned(self, weights: StepTable, steps: DrawIndex | int) -> Planned:
        return Planned(weights, steps, np.bool_(False), self.calibration, self.typical)


def stated(solver: Planned | Multistep, error: Float[AnyArray, " b"]) -> PerExample:
    """The error of each example that the solver states, in nats, by the estimate of its steps.

    Args:
        solver: with its calibration.
        error: [b] in nats, by the estimate of the steps.
    """
    return _stated(solver.calibration, solver.typical, error)


@jax.jit
def _stated(
    calibration: float | Float[Array, ""], typical: float | Float[Array, ""], error: PerExample
) -> PerExample:
    calibrated = calibration * jnp.hypot(error, typical)
    return jnp.maximum(calibrated, error - UNLIKE * typical)
