"""log p within so many nats: by what a pilot chose, and more steps for rows that need them.

Between the modes of a density the field turns within a moment, and the few examples that pass
there may need many times the steps of the others. The error that the solver states of each shows
which they are: they alone are solved again.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from scoremle.core.divergence import DivergenceEstimator
from scoremle.core.keys import example_keys
from scoremle.core.prediction import conditioned, rows_of
from scoremle.core.programs import Programs
from scoremle.core.sde import SDE
from scoremle.likelihood.flow import flow_log_likelihood
from scoremle.likelihood.pilot import choose_within
from scoremle.likelihood.record import Likelihood
from scoremle.numerics import as_pytree
from scoremle.solvers.base import Solver
from scoremle.solvers.multistep import Planned
from scoremle.types import Data, Keys, NoiseFn, Scalar

__all__ = ["log_likelihood_within"]

# An example is solved again by no more steps than these.
MOST = 1024


def log_likelihood_within(
    noise: NoiseFn,
    sde: SDE,
    x: Data,
    key: Keys,
    *,
    tolerance: float,
    eps: Scalar,
    condition: Any = None,
) -> Likelihood:
    """log p_eps(x) in nats by what `choose_within` finds, and more nodes for rows that need them.

    Its arguments are those of `ode_log_likelihood`.
    """
    chosen = choose_within(noise, sde, x, tolerance=tolerance, eps=eps, condition=condition)
    given = x, example_keys(key, len(x)), rows_of(condition, len(x), jnp)
    model = as_pytree(noise), sde, eps, chosen.divergence
    found, steps = _solved(given, *model, chosen.solver), 2 * chosen.solver.nodes
    while steps <= MOST and (few := np.flatnonzero(~(found.solver_error <= tolerance))).size:
        rows = jax.tree.map(lambda leaf: leaf[few], given)
        again = _solved(rows, *model, Planned.of(steps, MOST))
        # The pilot measured no such rows: a factor below 1 is not for them.
        error = jnp.maximum(again.solver_error, chosen.solver.stated(again.solver_error))
        found, steps = _with_rows(found, few, replace(again, solver_error=error)), 2 * steps
    return found


@partial(Programs, cut=Likelihood.first)
def _solved(
    rows: tuple[Data, Keys, Any],
    noise: NoiseFn,
    sde: SDE,
    eps: Scalar,
    divergence: DivergenceEstimator,
    solver: Solver,
) -> Likelihood:
    x, keys, condition = rows
    return flow_log_likelihood(
        conditioned(noise, condition), sde, x, keys, eps=eps, divergence=divergence, solver=solver
    )


def _with_rows(found: Likelihood, rows: Int[np.ndarray, " r"], again: Likelihood) -> Likelihood:
    """With ``again`` in these rows; all evaluations count."""

    def put(old: Array, new: Array) -> Array:
        return old.at[..., rows].set(new)

    values: dict[str, Any] = {
        name: put(getattr(found, name), getattr(again, name))
        for name in ("log_prob", "probe_stderr", "probe_deviations", "solver_error", "ok")
    }
    latent = found.latent.at[rows].set(again.latent)
    evaluations = found.evaluations.at[rows].add(again.evaluations)
    return replace(found, latent=latent, evaluations=evaluations, **values)
