"""What brings a likelihood within so many nats at the least cost: nodes and trace, by a pilot.

On a few examples the solver is measured (`nodes.py`): the fewest nodes are taken whose stated
error is at most half the tolerance. At each of N nodes k probes leave an error of s / sqrt(N k).
So the rest of the tolerance asks for k of them, at a cost of k derivatives a node; the exact trace
of D dimensions costs D, and none of its value is random. The cheaper of the two is taken.

These are root mean squares over the pilot's examples. Between the modes of a density the field
turns within a moment, and the few examples that pass there may need many times the nodes of the
others. The solver tells which they are: they alone are solved again.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from scoremle.core.arguments import as_data, check_number, check_seed
from scoremle.core.divergence import DivergenceEstimator, Exact, Hutchinson
from scoremle.core.keys import example_keys
from scoremle.core.prediction import Conditioned, rows_of
from scoremle.core.programs import Programs
from scoremle.core.pytree import known
from scoremle.core.sde import SDE
from scoremle.errors import UserError
from scoremle.likelihood.flow import flow_log_likelihood
from scoremle.likelihood.nodes import NODES, Pilot
from scoremle.likelihood.record import Likelihood
from scoremle.numerics import as_pytree, dims_of
from scoremle.solvers.base import Solver
from scoremle.solvers.multistep import Multistep, Planned
from scoremle.types import Data, Keys, NoiseFn, Scalar

__all__ = ["FEW_DIMS", "Accuracy", "choose_within", "log_likelihood_within"]

# The exact trace is the default up to so many dimensions.
FEW_DIMS = 64
# A pilot's examples, of which a few may have most of the error; and its probes, whose spread tells
# the error of one.
EXAMPLES, PROBES = 32, 4
# The share of the tolerance that the solver may take: its errors may all have one sign.
SOLVER_SHARE = 0.5
# An example is solved again by no more nodes than these.
MOST = 1024


@dataclass(frozen=True)
class Accuracy:
    """The solver and the trace that were chosen, and what they leave on the pilot, in nats.

    Both errors are root mean squares over the pilot's ``examples``: an example may have more, and
    states it. ``met`` is false if even the most nodes missed the tolerance for these.
    """

    solver: Multistep
    divergence: DivergenceEstimator
    solver_error: float
    probe_stderr: float
    examples: int
    met: bool

    def __str__(self) -> str:
        missed = "" if self.met else "; the tolerance is not met"
        return (
            f"{self.solver.nodes} nodes, {self.divergence}: on {self.examples} examples the"
            f" solver states {self.solver_error:.2g} nats, and the probes leave"
            f" {self.probe_stderr:.2g}{missed}"
        )


def choose_within(
    noise: NoiseFn,
    sde: SDE,
    x: Data,
    *,
    tolerance: float,
    eps: Scalar,
    condition: Any = None,
    seed: int = 0,
) -> Accuracy:
    """The cheapest solver and divergence for errors of about so many nats, by a pilot.

    The tolerance is one of a root mean square: an example may have a larger error, and states it.

    Args:
        noise: the noise prediction eps(x, t), or eps(x, t, condition).
        sde: what noise is added when.
        x: data, of which the first 32 examples are used.
        tolerance: in nats, of the errors of solver and probes together.
        eps: the smallest time, where the density is taken.
        condition: any pytree of arrays, with a row for each example or one for all.
        seed: of the pilot's probes.

    Raises UserError for no data, a tolerance that is not above 0, and where it is traced.

    Example:
        >>> sde, x = scoremle.VP(), jax.random.normal(jax.random.key(0), (4, 100))
        >>> noise = lambda x, t: sde.sigma(t)[:, None] * x  # of data N(0, I)
        >>> chosen = scoremle.choose_within(noise, sde, x, tolerance=0.05, eps=1e-3)
        >>> print(chosen.met, chosen.divergence)
        True Hutchinson(probes=2, distribution='rademacher')
    """
    if not known(x, as_pytree(noise), condition):
        raise UserError(
            "a tolerance needs numbers: outside of jit and grad, let model.within or"
            " scoremle.choose_within choose a solver and a divergence, then compile with these"
        )
    check_number("tolerance", tolerance, above=0)
    check_seed(seed)
    x = as_data(x)
    if not len(x):
        raise UserError("a tolerance needs examples")
    few = x[:EXAMPLES]
    rows = jax.tree.map(lambda row: row[: len(few)], rows_of(condition, len(x)))
    pilot = Pilot(
        _under(noise, rows), sde, few, jax.random.key(seed), eps=eps, divergence=Hutchinson(PROBES)
    )
    return _cheapest(pilot, tolerance, dims_of(x))


def _under(noise: NoiseFn, condition: Any) -> NoiseFn:
    return noise if condition is None else Conditioned(as_pytree(noise), condition)


def _cheapest(pilot: Pilot, tolerance: float, dims: int) -> Accuracy:
    nats = dims * math.log(2)
    for steps in NODES:
        choice = pilot.measure(steps)
        stated = choice.calibration * math.sqrt(2) * choice.typical  # none from too few examples
        error = max(nats * choice.solver_error, stated)
        if met := error <= SOLVER_SHARE * tolerance:
            break
    left = math.sqrt(1 - SOLVER_SHARE**2) * tolerance
    of_one = nats * choice.probe_stderr * math.sqrt(PROBES)
    probes = max(2, math.ceil((of_one / left) ** 2))
    exact = dims <= FEW_DIMS or probes >= dims
    return Accuracy(
        solver=choice.solver,
        divergence=Exact() if exact else Hutchinson(probes),
        solver_error=error,
        probe_stderr=0.0 if exact else of_one / math.sqrt(probes),
        examples=pilot.images,
        met=met,
    )


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
    found, nodes = _solved(given, *model, chosen.solver), 2 * chosen.solver.nodes
    while nodes <= MOST and (few := np.flatnonzero(~(found.solver_error <= tolerance))).size:
        rows = jax.tree.map(lambda leaf: leaf[few], given)
        again = _solved(rows, *model, Planned.of(nodes, MOST))
        # The pilot measured no such rows: a factor below 1 is not for them.
        error = jnp.maximum(again.solver_error, chosen.solver.stated(again.solver_error))
        found, nodes = _with_rows(found, few, replace(again, solver_error=error)), 2 * nodes
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
        _under(noise, condition), sde, x, keys, eps=eps, divergence=divergence, solver=solver
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
