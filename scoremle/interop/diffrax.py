"""Solvers of diffrax for the probability flow: explicit Runge-Kutta methods of adaptive steps."""

import math
from typing import Any

import jax.numpy as jnp

from scoremle.core.arguments import check_number
from scoremle.core.pytree import frozen_static
from scoremle.errors import UserError, needing
from scoremle.numerics import sum_data
from scoremle.solvers.base import ONE_DRAW, Problem, Solution, mean_integral
from scoremle.types import Data

__all__ = ["ByDiffrax"]

# The change of log p from ten times the tolerance to the tolerance, times this, covers its error.
MARGIN = 1.5
# Of the span; the step controller goes on from there.
FIRST_STEP = 0.01
# With this tolerance and ten times it the steps may be the same ones, of the largest growth: their
# results do not differ, and state no error.
LOOSEST = 0.02


@frozen_static
class ByDiffrax:
    """Solver of diffrax (extra ``diffrax``), whose steps keep each example within a tolerance.

    Examples of a batch take their steps together: a value depends on its neighbours, within the
    tolerance. Those that are not finite from the start take no part in the choice of steps. Each
    problem is solved twice. The stated error is 1.5 times the change of log p from ten times the
    tolerance to the tolerance.

    Args:
        solver: an explicit Runge-Kutta method, such as ``diffrax.Tsit5()``.
        tolerance: of a step, absolute and relative.

    Raises UserError for another solver, a tolerance that is not between 0 and 0.02, and without
    diffrax.
    """

    solver: Any
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        check_number("tolerance", self.tolerance, above=0, below=LOOSEST)
        with needing("ByDiffrax", "diffrax"):
            from diffrax import AbstractERK
        if not isinstance(self.solver, AbstractERK):
            raise UserError(f"solver must be such as diffrax.Tsit5(), not {self.solver!r}")

    def solve(self, problem: Problem, state: Data) -> Solution:
        """Solves the problem, both times by one draw, never a ``fresh`` one."""
        import diffrax

        def rates(t, y, _=None):
            return problem.field(jnp.full(len(state), t, state.dtype), y[0], ONE_DRAW)[:2]

        def norm(y):
            squares = sum_data(jnp.square(y[0])) / math.prod(state.shape[1:]), jnp.square(y[1])
            return jnp.sqrt(jnp.max(jnp.vstack(squares), initial=0.0, where=begun))

        def solved(near):
            control = diffrax.PIDController(near, near, norm=norm)
            return diffrax.diffeqsolve(
                diffrax.ODETerm(rates), self.solver, problem.start, problem.stop, begin, first,
                stepsize_controller=control, throw=False,
            )  # fmt: skip

        velocity, trace = rates(problem.start, (state,))
        begun = jnp.isfinite(sum_data(velocity)) & jnp.isfinite(trace).all(axis=0)
        first = state, jnp.zeros_like(trace)
        begin = FIRST_STEP * (problem.stop - problem.start)
        coarse, fine = solved(10 * self.tolerance), solved(self.tolerance)
        (before, less), (end, found) = ([a[-1] for a in each.ys] for each in (coarse, fine))
        clock = jnp.full(len(state), problem.stop, state.dtype)
        gradient = problem.sensitivity(clock, end, rates(problem.stop, (end,))[0])
        change = sum_data(gradient * (end - before)) + mean_integral(found - less)
        steps, table = coarse.stats["num_steps"] + fine.stats["num_steps"], self.solver.tableau
        # Where steps share an evaluation, a solve begins with one; two more are above.
        count = steps * (table.num_stages - table.fsal) + 2 * table.fsal + 2
        return Solution(
            state=end,
            integrals=found,
            error=MARGIN * jnp.abs(change),
            scatter=jnp.full(len(state), jnp.nan),
            evaluations=jnp.full(len(state), count, jnp.int32),
            ok=(fine.result == diffrax.RESULTS.successful) & jnp.all(jnp.isfinite(found), axis=0),
        )
