"""Log-likelihood by the probability-flow ODE: what users call, of arrays.

Here are the defaults, and the checks of what was given. `flow.py` has the mathematics, and
`pilot.py` and `refine.py` what meets a tolerance.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from scoremle.core.arguments import as_data
from scoremle.core.condition import conditioned, rows_of
from scoremle.core.divergence import DivergenceEstimator, Exact, Hutchinson
from scoremle.core.keys import example_keys
from scoremle.core.prediction import check_model
from scoremle.core.pytree import known
from scoremle.core.sde import SDE
from scoremle.errors import UserError, warn
from scoremle.likelihood.flow import along_flow
from scoremle.likelihood.pilot import FEW_DIMS, choose_within
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.likelihood.record import Likelihood
from scoremle.likelihood.refine import Rows, refined, solved, too_large
from scoremle.numerics import as_pytree, dims_of
from scoremle.solvers.base import Solver
from scoremle.solvers.multistep import Multistep
from scoremle.types import Data, DataLike, Keys, NoiseFn, Scalar

__all__ = ["Likelihood", "ode_decode", "ode_log_likelihood", "warn_of_rows"]

# Nats that the solver may leave of a row, if nothing else is given.
TOLERANCE = 0.01


def ode_log_likelihood(
    noise: NoiseFn,
    sde: SDE,
    x: DataLike,
    key: Keys,
    *,
    eps: Scalar,
    divergence: DivergenceEstimator | None = None,
    solver: Solver | PublishedRK45 | None = None,
    tolerance: float | None = None,
    condition: Any = None,
    dtype: DTypeLike | None = None,
) -> Likelihood:
    """log p_eps(x) in nats: the density of the model at t = ``eps``, by the probability-flow ODE.

    Unbiased over the draw of the probes, up to the solver's error. It has derivatives of both
    modes in ``x``, ``condition``, and the parameters of ``noise``. In reverse mode memory grows by
    five times ``x`` for each step, beside that of one evaluation with its derivatives.

    With a ``tolerance`` a pilot on the first 32 examples chooses the cheapest solver and trace.
    The root mean square of both errors together is about the tolerance. An example whose solver
    states more is solved again with twice the steps, until it states less, by at most 1,024 steps.
    Where that is not enough, a warning gives the number of such examples.

    Args:
        noise: the noise prediction eps(x, t), or eps(x, t, condition).
        sde: the noise at each time.
        x: data.
        key: draws the probes, and shifts the times of the steps for each example, by up to 1/80 of
            the range of the solver's clock; one, or one for each example.
        eps: the smallest time, where the density is taken.
        divergence: how traces are estimated; None: exactly up to 64 dimensions, and beyond them
            by one random probe at each step.
        solver: how the ODE is solved. None: ``Multistep()``; again by twice the steps for each row
            of which it states more than 0.0025 nats, and until it states at most 0.01, or a
            quarter of the probes' error. A row that is solved again states at least a third of
            what the further steps changed of log p. Where a program is traced, ``Multistep()``
            alone.
        tolerance: in nats, instead of a divergence and a solver.
        condition: any pytree of arrays, with a row for each example or one for all.
        dtype: of the computation, such as "float64"; None: that of ``x``, which without
            ``jax_enable_x64`` is float32.

    Raises UserError for eps outside [0, 1), a network for another SDE, data that are not finite
    reals, a prediction of another shape, a condition of another number of rows, a dtype that JAX
    is not set up for, and a tolerance where it is traced, has no examples or one of no finite
    log p, or comes with a divergence or a solver.

    Example:
        >>> sde, x = scoremle.VP(), jnp.asarray([[1.0, 0.0]])
        >>> noise = lambda x, t: sde.sigma(t)[:, None] * x  # of data N(0, I)
        >>> found = scoremle.ode_log_likelihood(noise, sde, x, jax.random.key(0), eps=1e-3)
        >>> print(f"{found.log_prob[0]:.2f}")  # -1/2 - log 2 pi
        -2.34
    """
    x = as_data(x, dtype)
    if condition is not None:
        condition = rows_of(condition, len(x), jnp)
    if tolerance is not None:
        if divergence or solver:
            raise UserError("give a tolerance, or a divergence and a solver, not both")
        chosen = choose_within(noise, sde, x, tolerance=tolerance, eps=eps, condition=condition)
        found = refined(
            noise, sde, x, key, eps=eps, divergence=chosen.divergence, solver=chosen.solver,
            tolerance=tolerance, condition=condition,
        )[1]  # fmt: skip
    else:
        found = _along_flow(noise, sde, x, key, eps, divergence, solver, condition)[1]
    if found.refined:
        warn_of_rows(found.solver_error, found.probe_stderr, tolerance or TOLERANCE)
        if count := int(np.sum(~np.isfinite(np.asarray(found.log_prob)))):
            warn(
                f"log p of {count} of {len(x)} examples is not finite: the noise prediction is"
                " not, or the data are far beyond its range"
            )
    return found


def ode_decode(
    noise: NoiseFn,
    sde: SDE,
    z: DataLike,
    key: Keys,
    *,
    eps: Scalar,
    divergence: DivergenceEstimator | None = None,
    solver: Solver | PublishedRK45 | None = None,
    condition: Any = None,
) -> tuple[Data, Likelihood]:
    """Data at t = ``eps`` of latents ``z``, and log p_eps of these data in nats, in one solution.

    ``solver_error`` is of log p at the data that are found, and so contains what their own error
    does to it.

    Args:
        z: latents at t = 1.
        noise, sde, key, eps, divergence, solver, condition: as ``ode_log_likelihood`` takes them;
            but rows are solved again from 0.01 nats on.
    """
    z = as_data(z, name="z")
    return _along_flow(noise, sde, z, key, eps, divergence, solver, condition, decode=True)


def _along_flow(
    noise: NoiseFn, sde: SDE, start: Data, key: Keys, eps: Scalar,
    divergence: DivergenceEstimator | None, solver: Solver | PublishedRK45 | None, condition: Any,
    *, decode: bool = False,
) -> tuple[Data, Likelihood]:  # fmt: skip
    """`along_flow` with the defaults: an exact trace in few dimensions, and rows refined."""
    on_host = isinstance(solver, PublishedRK45)
    exact = dims_of(start) <= FEW_DIMS and not on_host
    divergence = divergence or (Exact() if exact else Hutchinson())
    if not on_host and known(start, key, as_pytree(noise), sde, eps, condition):
        if solver:
            check_model(noise, sde, eps, start.shape[1:])
            given = start, example_keys(key, len(start)), rows_of(condition, len(start), jnp)
            return solved(given, as_pytree(noise), sde, eps, divergence, decode, solver)
        found = refined(
            noise, sde, start, key, eps=eps, divergence=divergence, solver=Multistep(),
            tolerance=TOLERANCE, pilot=False, condition=condition, decode=decode,
        )  # fmt: skip
        if found[1].refined:
            return found
    return along_flow(
        conditioned(noise, condition), sde, start, key, eps=eps, divergence=divergence,
        solver=solver or Multistep(), decode=decode,
    )  # fmt: skip


def warn_of_rows(solver_error: Rows, probe_stderr: Rows, tolerance: float = TOLERANCE) -> None:
    """Warns of rows whose solver error stayed large, after they were solved again.

    Args:
        solver_error: [n] in nats.
        probe_stderr: [n] in nats.
        tolerance: nats of a row's solver, or a quarter of its probes' standard error.
    """
    error = np.asarray(solver_error)
    large = too_large(error, probe_stderr, tolerance) & ~np.isnan(error)
    if count := int(np.sum(large)):
        warn(
            f"the solver's error may exceed {tolerance} nats of {count} of {len(large)} examples,"
            f" up to {np.max(error[large]):.2g}: see solver_error. Where float32 rounds log p by"
            f" more than {tolerance} nats, compute in float64"
        )
