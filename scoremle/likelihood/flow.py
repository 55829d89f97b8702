"""The likelihood along the probability flow: one solution, with its error.

    log p_eps(x) = log p_1(z) + int_eps^1 div dt,       z the end of the ODE that starts from x

(Song et al., arXiv 2011.13456, section 4.3). In the coordinates of `probability_flow.py`,

    log p_eps(x) = log prior(x_1) + D (log rho_1 - log rho_eps) + int div_u (du/dc) dc

The same ODE from latents z to data x gives log p_eps(x) of the samples as they are drawn.

The density is that of the model at t = eps, exact but for the solver and the trace estimate, whose
errors are given beside it. What an error of the state does to the result is the same in both
directions, but for its sign: from x the end z is wrong, and from z the log p that is found is not
that of the x that is found. A solver with fixed steps draws new probes at each: the divergence
does not act on the path, so its estimate stays unbiased, and the probes' error falls with the
number of steps (by about its root), at no cost.
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from scoremle.core.arguments import check_kind
from scoremle.core.divergence import DivergenceEstimator, Estimates, Hierarchical
from scoremle.core.keys import example_keys, fold_in
from scoremle.core.prediction import check_network
from scoremle.core.sde import SDE
from scoremle.errors import UserError
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.likelihood.record import Likelihood
from scoremle.numerics import expand, sum_over
from scoremle.solvers.base import DrawIndex, Problem, Solver
from scoremle.solvers.jitter import TimeJitter
from scoremle.solvers.probability_flow import ProbabilityFlow
from scoremle.types import Data, Keys, NoiseFn, Scalar, Times

# The terms of log p are off by at most so many roundings of their own size, by comparison of
# float32 with float64: of the state, the network and the sums along the path.
ROUNDINGS = 8
# Their kinds, and an example of each.
SOLVER: tuple[Any, str] = Solver | PublishedRK45, "scoremle.Multistep(64)"
DIVERGENCE: tuple[Any, str] = DivergenceEstimator, "scoremle.Exact()"


def along_flow(
    noise: NoiseFn,
    sde: SDE,
    start: Data,
    key: Keys,
    *,
    eps: Scalar,
    divergence: DivergenceEstimator,
    solver: Solver | PublishedRK45,
    decode: bool = False,
) -> tuple[Data, Likelihood]:
    """The other end of the ODE, and log p_eps in nats of the one of its ends that is data.

    Args:
        noise: the noise prediction eps(x, t).
        sde: the noise at each time.
        start: data at t = ``eps``; with ``decode`` latents at t = 1.
        key: draws the probes and the jitter of times; one, or one for each example.
        eps: the smallest time, where the density is taken.
        divergence: how traces are estimated.
        solver: how the ODE is solved.
        decode: goes from latents to data.

    Raises UserError for what is not a solver or divergence, eps outside [0, 1), a prediction of
    another shape, and ``PublishedRK45`` of latents or of another number of probes than one.
    """
    check_kind("solver", solver, *SOLVER)
    check_kind("divergence", divergence, *DIVERGENCE)
    check_network(noise, sde, start.shape[1:])
    if isinstance(solver, PublishedRK45):
        probes = divergence.draw(key, start)
        if decode or len(probes) != 1:
            what = "latents" if decode else divergence
            raise UserError(f"PublishedRK45 takes data and one random probe, not {what}")
        found = solver.log_likelihood(noise, sde, start, probes[0], eps=eps)
        return found.latent, replace(found, trace=str(divergence))
    flow = ProbabilityFlow(noise, sde)
    keys = example_keys(key, len(start))
    jitter = TimeJitter.drawn(keys, *flow.span(eps, start.dtype))
    log_rho = [flow.log_rho(jnp.full(len(start), t, start.dtype)) for t in (eps, 1.0)]
    clocks, sign = (jitter.start, jitter.stop), 1
    if decode:
        log_rho, clocks, sign = log_rho[::-1], clocks[::-1], -1

    def field(clock: Times, u: Data, draw: DrawIndex) -> Estimates:
        if isinstance(divergence, Hierarchical):
            probes = divergence.draw_at(keys, draw, start)
        else:
            probes = divergence.draw(fold_in(keys, draw), start)
        clock, speed = jitter.at(clock)
        velocity, rates, parts = flow.velocity_and_divergence(clock, u, divergence, probes)
        return velocity * expand(speed, u), rates * speed, parts * expand(speed, parts[0])

    def sensitivity(clock: Times, u: Data, rate: Data) -> Data:
        clock, speed = jitter.at(clock)
        return flow.log_density_gradient(clock, u, rate / expand(speed, u))

    paired = isinstance(divergence, Hierarchical)
    problem = Problem(field, *clocks, sensitivity, fresh=divergence.random, paired=paired)
    solution = solver.solve(problem, start / expand(jnp.exp(log_rho[0]), start))
    end = solution.state * expand(jnp.exp(log_rho[1]), start)
    latent = start if decode else end
    terms = [
        sde.prior_log_prob(latent),
        sign * sum_over(log_rho[1] - log_rho[0], start),
        sign * jnp.mean(solution.integrals, axis=0),
    ]
    log_prob = sum(terms[1:], terms[0])
    rounding = ROUNDINGS * jnp.finfo(log_prob.dtype).eps * sum(map(jnp.abs, terms))
    deviations = sign * divergence.deviations(solution.integrals)
    variance, scatter = jnp.sum(jnp.square(deviations), axis=0), solution.scatter
    ok = solution.ok & jnp.isfinite(log_prob)

    def known(values: Float[Array, "*m b"]) -> Float[Array, "*m b"]:
        return jnp.where(ok, values, jnp.nan)

    return end, Likelihood(
        log_prob=known(log_prob),
        latent=latent,
        evaluations=solution.evaluations,
        probe_stderr=known(jnp.sqrt(jnp.where(jnp.isnan(scatter), variance, scatter))),
        probe_deviations=known(deviations),
        solver_error=known(jnp.hypot(solution.error, rounding)),
        ok=ok,
        trace=str(divergence),
    )
