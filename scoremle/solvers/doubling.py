"""Doubling of Multistep's steps, until each example's result converges."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scoremle.core.arguments import check_count, check_number
from scoremle.core.pytree import frozen_static
from scoremle.errors import UserError
from scoremle.numerics import dims_of, expand, mean_square, sum_data
from scoremle.solvers.base import ONE_DRAW, Problem, Solution, mean_integral
from scoremle.solvers.multistep import Planned
from scoremle.types import Data, PerExample, Scalar

__all__ = ["Doubling"]

# The change of a result when the steps are doubled, times this, covers its error.
MARGIN = 1.5


class _Best(NamedTuple):
    solution: Solution
    change: Float[Array, " b"]
    running: Array


@frozen_static
class Doubling:
    """Doubles the steps until an example's result converges.

    The stated error is 1.5 times the last change of the result, or 1.5 times half the change
    before if that is more. Where the solution's own estimate is less, it is that: in a field that
    is smooth in time, a change is many times the error that is left. After the first doubling it
    always is the solution's own. An example that still moves after ``most`` steps keeps its last
    value, and an ``error`` above the tolerance. The number of doublings depends on the data, so
    that there is no derivative in reverse mode: UserError.

    Args:
        tolerance: how far a result may still move, in nats for each dimension of the state; of
            samples and latents without log p it is their root mean square, where data have a
            standard deviation of about one.
        fewest: the steps to begin with.
        most: the steps not to exceed.

    Raises UserError for a tolerance that is not above 0, and invalid numbers of steps.

    Example:
        >>> sde, x = scoremle.VP(), jnp.zeros((1, 2))
        >>> found = scoremle.ode_log_likelihood(
        ...     lambda x, t: sde.sigma(t)[:, None] * x, sde, x, jax.random.key(0),
        ...     eps=1e-3, divergence=scoremle.Exact(), solver=scoremle.Doubling(1e-3),
        ... )
        >>> print(bool(abs(found.log_prob[0] + np.log(2 * np.pi)) < 2 * 1e-3))
        True
    """

    tolerance: Scalar = 1e-3
    fewest: int = 16
    most: int = 1024

    def __post_init__(self) -> None:
        check_number("tolerance", self.tolerance, above=0)
        check_count("fewest", self.fewest)
        check_count("most", self.most, least=self.fewest)

    def solve(self, problem: Problem, state: Data) -> Solution:
        """Solves the problem, all passes by one draw, never a ``fresh`` one."""
        field, sensitivity = problem.field, problem.sensitivity
        one_draw = replace(problem, fresh=False)
        sizes = [self.fewest]
        while 2 * sizes[-1] <= self.most:
            sizes.append(2 * sizes[-1])
        plans = [Planned.of(steps, sizes[-1]) for steps in sizes]
        levels = jax.tree.map(lambda *each: jnp.stack(each), *plans)
        limit = self.tolerance * dims_of(state)
        end = jnp.full(state.shape[0], problem.stop, state.dtype)

        def run(level: Array) -> Solution:
            return jax.tree.map(lambda a: a[level], levels).solve(one_draw, state)

        def change_of(old: Solution, new: Solution) -> PerExample:
            moved = new.state - old.state
            if not len(new.integrals):
                return dims_of(state) * jnp.sqrt(mean_square(moved))
            gradient = sensitivity(end, new.state, field(end, new.state, ONE_DRAW)[0])
            integral = mean_integral(new.integrals - old.integrals)
            return jnp.abs(sum_data(gradient * moved) + integral)

        def refine(carry: tuple[Array, _Best]) -> tuple[Array, _Best]:
            level, best = carry
            old, new = best.solution, run(level)
            change = change_of(old, new)
            change = jnp.where(jnp.isnan(change), jnp.inf, change)  # one of the two is not finite
            error = MARGIN * jnp.maximum(change, best.change / 2)
            if len(new.integrals):
                error = jnp.where(level == 1, new.error, jnp.minimum(error, new.error))
            new = new._replace(error=error, evaluations=old.evaluations + new.evaluations + 1)
            keep = best.running
            at_end = jnp.where(expand(keep, state), new.state, old.state)
            others = (jnp.where(keep, a, b) for a, b in zip(new[1:], old[1:], strict=True))
            chosen = Solution(at_end, *others)
            running = keep & ~(error <= limit) & new.ok  # of few steps it is NaN
            return level + 1, _Best(chosen, jnp.where(keep, change, best.change), running)

        def unfinished(carry: tuple[Array, _Best]) -> Array:
            level, best = carry
            return jnp.any(best.running) & (level < len(sizes))

        coarse = run(jnp.int32(0))
        none = jnp.zeros_like(coarse.error)
        first = _Best(coarse, none, jnp.ones(state.shape[0], bool))
        found = jax.lax.while_loop(unfinished, refine, (jnp.int32(1), first))[1].solution
        return found._replace(
            state=_irreversible(found.state), integrals=_irreversible(found.integrals)
        )


def _irreversible(x: Array) -> Array:
    """``x``, with a derivative in forward mode alone."""

    def refuse(_: None, cotangent: Array) -> Array:
        raise UserError(
            "Doubling has no derivative in reverse mode: use Multistep(steps), whose memory for it"
            " grows by a few states a step"
        )

    return jax.custom_derivatives.linear_call(lambda _, x: x, refuse, None, x)
