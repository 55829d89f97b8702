"""log p whose solver states little error of every row: more steps for the rows that need them.

Between the modes of a density the field turns within a moment, and the few examples that pass
there may need many times the steps of the others. The error that the solver states of each shows
which they are: they alone are solved again, by twice the steps, until it is small enough. So the
value of a row depends on no other row. What more steps change of log p is evidence where no pilot
measured the error: at most a third of that is left, if it falls by the second order or faster.
Where something else has a row for each example, such as conditions that the noise prediction
closes over, all are solved again in their order.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from scoremle.core.condition import conditioned, rows_of
from scoremle.core.divergence import DivergenceEstimator
from scoremle.core.keys import example_keys
from scoremle.core.prediction import check_model
from scoremle.core.programs import Programs
from scoremle.core.pytree import known
from scoremle.core.sde import SDE
from scoremle.likelihood.flow import along_flow
from scoremle.likelihood.record import HIDDEN, Likelihood
from scoremle.numerics import as_pytree, dims_of
from scoremle.solvers.base import Solver
from scoremle.solvers.multistep import NOISE, Multistep, Planned, stated
from scoremle.types import Data, Keys, NoiseFn, Scalar

Rows = Float[Array | np.ndarray, " n"]

# An example is solved again by no more steps than these.
MOST = 1024
# Fewer rows are solved again in the program of the batch, filled up: it is there already.
FEW = 256
# More steps don't lessen rounding, which is up to about so many units of the last place for each
# dimension.
ROUNDING = 128
# The share of the tolerance from which a row is suspect where no pilot measured its error.
SUSPECT = 1 / 4
# What more steps change of log p bounds what is left, if the error falls by this order or faster.
LEAST_ORDER = 2


def refined(
    noise: NoiseFn,
    sde: SDE,
    start: Data,
    key: Keys,
    *,
    eps: Scalar,
    divergence: DivergenceEstimator,
    solver: Multistep,
    tolerance: float,
    pilot: bool = True,
    condition: Any = None,
    decode: bool = False,
) -> tuple[Data, Likelihood]:
    """`along_flow`, with more steps for rows of which the solver states a larger error.

    Args:
        noise, sde, key, eps, condition: as `ode_log_likelihood` takes them.
        start, divergence, decode: as `along_flow` takes them.
        solver: of the first solution.
        tolerance: nats of a row's solver, or a quarter of its probes' standard error; in more
            than 650 dimensions of float32 at least what rounding leaves.
        pilot: whether one measured what the steps state. If not, data are first solved again from
            a quarter of the tolerance on, and state what more steps change.
    """
    check_model(noise, sde, eps, start.shape[1:])
    given = start, example_keys(key, len(start)), rows_of(condition, len(start), jnp)
    model = as_pytree(noise), sde, eps, divergence, decode
    end, found = solved(given, *model, Planned.of(solver.steps, MOST))
    if not known(found):  # the noise prediction closes over what is traced
        return end, found
    found = replace(found, solver_error=stated(solver, found.solver_error), refined=True)
    steps, unit = solver.steps, float(jnp.finfo(start.dtype).eps)
    rounding = ROUNDING * unit * dims_of(start)
    # Of latents the change of log p is also that of the data that are found.
    measured = not (pilot or decode)
    allowed = max(SUSPECT * tolerance if measured else tolerance, rounding)
    while steps < MOST:
        before, steps = steps, min(2 * steps, MOST)
        large = too_large(found.solver_error, found.probe_stderr, allowed)
        if not (few := np.flatnonzero(large)).size:
            break
        allowed = max(tolerance, rounding)
        planned = Planned.of(steps, MOST)
        if solved.takes_any_rows(given, *model, planned):
            chosen = np.resize(few, len(start)) if len(start) <= FEW else few
            kept = np.arange(len(few))
        else:
            chosen, kept = np.arange(len(start)), few
        again = solved(_taken(given, chosen), *model, planned)
        # Typical errors of a rough field, too, fall at least as fast as the steps grow.
        finer = replace(solver, typical=solver.typical * solver.steps / steps)
        if measured:
            again = _measured(found, chosen, again, steps / before)
        end, found = _with_rows((end, found), chosen, again, kept, finer)
    return end, found


@jax.jit
def _taken(rows: Any, chosen: Int[Array, " r"]) -> Any:
    return jax.tree.map(lambda leaf: leaf[chosen], rows)


def too_large(solver_error: Rows, probe_stderr: Rows, tolerance: float) -> Bool[np.ndarray, " n"]:
    """Marks the rows of which the solver states more than it may, or nothing."""
    probes = np.nan_to_num(np.asarray(probe_stderr))
    return ~(np.asarray(solver_error) <= np.maximum(tolerance, HIDDEN * probes))


def _first(found: Any, n: int) -> Any:
    end, likelihood = found
    return end[:n], likelihood.first(n)


@partial(Programs, cut=_first)
def solved(
    rows: tuple[Data, Keys, Any], noise: NoiseFn, sde: SDE, eps: Scalar,
    divergence: DivergenceEstimator, decode: bool, solver: Solver,
) -> tuple[Data, Likelihood]:  # fmt: skip
    start, keys, condition = rows
    return along_flow(
        conditioned(noise, condition), sde, start, keys,
        eps=eps, divergence=divergence, solver=solver, decode=decode,
    )  # fmt: skip


def _measured(
    found: Likelihood, chosen: Int[np.ndarray, " r"], again: tuple[Any, Likelihood], finer: float
) -> tuple[Any, Likelihood]:
    """``again``, whose rows state at least what is left by what ``finer`` steps changed of them.

    The noise of the probes in the change does not count.
    """
    end, new = again
    change = np.asarray(new.log_prob, float) - np.asarray(found.log_prob)[chosen]
    noise = NOISE * np.hypot(np.asarray(found.probe_stderr)[chosen], new.probe_stderr)
    left = np.sqrt(np.fmax(np.square(change) - np.square(noise), 0)) / (finer**LEAST_ORDER - 1)
    return end, replace(new, solver_error=jnp.asarray(np.maximum(new.solver_error, left)))


def _with_rows(
    whole: tuple[Any, Likelihood],
    chosen: Int[np.ndarray, " r"],
    again: tuple[Any, Likelihood],
    kept: Int[np.ndarray, " k"],
    solver: Multistep,
) -> tuple[Any, Likelihood]:
    """Puts the ``kept`` of the ``chosen`` rows ``again`` into the whole; evaluations are added.

    By NumPy: JAX would compile a program for each operation, and each number of rows.
    """
    (end, found), (new_end, new) = whole, again

    def put(old: Any, values: Any, axis: int = 0) -> Array:
        filled = np.array(old)
        filled.swapaxes(0, axis)[chosen[kept]] = np.asarray(values).swapaxes(0, axis)[kept]
        return jnp.asarray(filled)

    values: dict[str, Any] = {
        name: put(getattr(found, name), getattr(new, name))
        for name in ("log_prob", "latent", "probe_stderr", "ok")
    }
    # The pilot measured no such rows: a factor below 1 is not for them.
    error = np.maximum(new.solver_error, stated(solver, new.solver_error))
    evaluations = np.asarray(found.evaluations)[chosen] + np.asarray(new.evaluations)
    return put(end, new_end), replace(
        found,
        solver_error=put(found.solver_error, error),
        evaluations=put(found.evaluations, evaluations),
        probe_deviations=put(found.probe_deviations, new.probe_deviations, axis=1),
        **values,
    )
