"""Log-likelihood by the probability-flow ODE.

    log p_eps(x) = log p_1(z) + int_eps^1 div dt,       z the end of the ODE that starts from x

(Song et al., arXiv 2011.13456, section 4.3). In the coordinates of `flow.py`,

    log p_eps(x) = log prior(x_1) + D (log rho_1 - log rho_eps) + int div_u (du/dc) dc

The density is that of the model at t = eps, exact but for the solver and the trace estimate, whose
errors are given beside it. A solver with fixed nodes draws new probes at each: the divergence does
not act on the path, so its estimate stays unbiased, and the probes' error falls with the number of
nodes (by about its root), at no cost.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scoremle.core.divergence import DivergenceEstimator, Hutchinson
from scoremle.core.keys import example_keys, fold_in
from scoremle.core.sde import SDE
from scoremle.numerics import as_data, expand, sum_over
from scoremle.solvers.base import Draw, Problem, Solver
from scoremle.solvers.multistep import Multistep
from scoremle.solvers.probability_flow import ProbabilityFlow
from scoremle.types import Data, Keys, NoiseFn, PerExample, Times

__all__ = ["Likelihood", "ode_log_likelihood"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of each example, in nats, with the evidence beside it.

    ``probe_stderr`` is the standard error from the random probes: zero for an exact trace, and NaN
    where one probe, the same all along, can't tell. With new probes at each node, several
    differ there by their errors alone; from one it is estimated by the scatter along the path,
    which also holds what the divergence has of unresolved structure: with few nodes in many
    dimensions that may be most of it. ``probe_deviations`` are what each of several probes adds to
    it, with its sign. ``solver_error`` is to cover the error that the solver made, calibrated on a
    few images or as it can tell by itself. ``evaluations`` counts network evaluations, each with
    its derivatives. Where ``ok`` is false the solver gave up and ``log_prob`` is NaN.
    """

    log_prob: PerExample
    latent: Data
    evaluations: Int[Array, " b"]
    probe_stderr: PerExample
    probe_deviations: Float[Array, "m b"]
    solver_error: PerExample
    ok: Bool[Array, " b"]


def ode_log_likelihood(
    noise: NoiseFn,
    sde: SDE,
    x: Data,
    key: Keys,
    *,
    eps: float,
    divergence: DivergenceEstimator = Hutchinson(),
    solver: Solver = Multistep(),
) -> Likelihood:
    """log p_eps(x) in nats: the density of the model at t = ``eps``, by the probability-flow ODE.

    Unbiased over the draw of the probes, up to the solver's error. ``key``, one or one for each
    example, draws the probes and nothing else. Raises ValueError for eps outside (0, 1), integer
    ``x``, or a prediction of another shape.
    """
    x = as_data(x)
    flow = ProbabilityFlow(noise, sde)
    keys = example_keys(key, len(x))
    ends = [flow.log_rho(jnp.full(len(x), t, x.dtype)) for t in (eps, 1.0)]

    def field(clock: Times, u: Data, draw: Draw) -> tuple[Data, Float[Array, "m b"]]:
        probes = divergence.draw(fold_in(keys, draw), x)
        return flow.velocity_and_divergence(clock, u, divergence, probes)

    problem = Problem(
        field, *flow.span(eps, x.dtype),
        sensitivity=flow.log_density_gradient, fresh=divergence.random,
    )  # fmt: skip
    solution = solver.solve(problem, x / expand(jnp.exp(ends[0]), x))
    latent = solution.state * expand(jnp.exp(ends[1]), x)
    log_prob = sde.prior_log_prob(latent) + sum_over(ends[1] - ends[0], x)
    log_prob = log_prob + jnp.mean(solution.integrals, axis=0)
    deviations, scatter = divergence.deviations(solution.integrals), solution.scatter
    variance = jnp.sum(jnp.square(deviations), axis=0)
    ok = solution.ok & jnp.isfinite(log_prob)
    return Likelihood(
        log_prob=jnp.where(ok, log_prob, jnp.nan),
        latent=latent,
        evaluations=solution.evaluations,
        probe_stderr=jnp.sqrt(jnp.where(jnp.isnan(scatter), variance, scatter)),
        probe_deviations=deviations,
        solver_error=solution.error,
        ok=ok,
    )
