"""The likelihood along the probability flow: one solution, with the evidence beside it.

    log p_eps(x) = log p_1(z) + int_eps^1 div dt,       z the end of the ODE that starts from x

(Song et al., arXiv 2011.13456, section 4.3). In the coordinates of `probability_flow.py`,

    log p_eps(x) = log prior(x_1) + D (log rho_1 - log rho_eps) + int div_u (du/dc) dc

The density is that of the model at t = eps, exact but for the solver and the trace estimate, whose
errors are given beside it. A solver with fixed nodes draws new probes at each: the divergence does
not act on the path, so its estimate stays unbiased, and the probes' error falls with the number of
nodes (by about its root), at no cost.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from scoremle.core.divergence import DivergenceEstimator
from scoremle.core.keys import example_keys, fold_in
from scoremle.core.sde import SDE
from scoremle.likelihood.record import Likelihood
from scoremle.numerics import expand, sum_over
from scoremle.solvers.base import Draw, Problem, Solver
from scoremle.solvers.clock import BentClock
from scoremle.solvers.probability_flow import ProbabilityFlow
from scoremle.types import Data, Keys, NoiseFn, Scalar, Times

__all__ = ["flow_log_likelihood"]


def flow_log_likelihood(
    noise: NoiseFn,
    sde: SDE,
    x: Data,
    key: Keys,
    *,
    eps: Scalar,
    divergence: DivergenceEstimator,
    solver: Solver,
) -> Likelihood:
    """log p_eps(x) in nats, of reals that were checked (`ode_log_likelihood`).

    Args:
        noise: the noise prediction eps(x, t).
        sde: what noise is added when.
        x: data.
        key: draws the probes, and bends the clocks (`BentClock`); one, or one for each example.
        eps: the smallest time, where the density is taken.
        divergence: how traces are estimated.
        solver: how the ODE is solved.

    Raises UserError for eps outside (0, 1), and a prediction of another shape.
    """
    flow = ProbabilityFlow(noise, sde)
    keys = example_keys(key, len(x))
    bent = BentClock.drawn(keys, *flow.span(eps, x.dtype))
    ends = [flow.log_rho(jnp.full(len(x), t, x.dtype)) for t in (eps, 1.0)]

    def field(clock: Times, u: Data, draw: Draw) -> tuple[Data, Float[Array, "m b"]]:
        probes = divergence.draw(fold_in(keys, draw), x)
        clock, speed = bent.at(clock)
        velocity, rates = flow.velocity_and_divergence(clock, u, divergence, probes)
        return velocity * expand(speed, u), rates * speed

    def sensitivity(clock: Times, u: Data, rate: Data) -> Data:
        clock, speed = bent.at(clock)
        return flow.log_density_gradient(clock, u, rate / expand(speed, u))

    problem = Problem(field, bent.start, bent.stop, sensitivity, fresh=divergence.random)
    solution = solver.solve(problem, x / expand(jnp.exp(ends[0]), x))
    latent = solution.state * expand(jnp.exp(ends[1]), x)
    log_prob = sde.prior_log_prob(latent) + sum_over(ends[1] - ends[0], x)
    log_prob = log_prob + jnp.mean(solution.integrals, axis=0)
    deviations, scatter = divergence.deviations(solution.integrals), solution.scatter
    variance = jnp.sum(jnp.square(deviations), axis=0)
    ok = solution.ok & jnp.isfinite(log_prob)

    def known(values: Float[Array, "*m b"]) -> Float[Array, "*m b"]:
        return jnp.where(ok, values, jnp.nan)

    return Likelihood(
        log_prob=known(log_prob),
        latent=latent,
        evaluations=solution.evaluations,
        probe_stderr=known(jnp.sqrt(jnp.where(jnp.isnan(scatter), variance, scatter))),
        probe_deviations=known(deviations),
        solver_error=known(solution.error),
        ok=ok,
        trace=str(divergence),
    )
