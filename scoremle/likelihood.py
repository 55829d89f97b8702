"""Log-likelihood by the probability-flow ODE.

    log p_eps(x) = log p_1(z) + int_eps^1 div dt,       z the end of the ODE that starts from x

(Song et al., arXiv 2011.13456, section 4.3). In the coordinates of `flow.py`,

    log p_eps(x) = log prior(x_1) + D (log rho_1 - log rho_eps) + int div_u (du/dc) dc

The density is that of the model at t = eps, exact but for the solver and the trace estimate, whose
errors are given beside it.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scoremle.arrays import Data, NoiseFn, PerExample, PRNGKey
from scoremle.divergence import DivergenceEstimator, Hutchinson
from scoremle.flow import ProbabilityFlow
from scoremle.ode import Adaptive, Solver
from scoremle.sde import SDE

__all__ = ["Likelihood", "ode_log_likelihood"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of each example, in nats, with the evidence beside it.

    ``probe_stderr`` is the standard error from the random probes: NaN for a single probe, which
    can't tell, and zero for an exact trace. ``probe_deviations`` are its parts, by probe, with
    signs: its square is the sum of theirs. ``solver_error`` estimates the size of the error that
    the solver made. ``evaluations`` counts network evaluations, each with its derivatives. Where
    ``ok`` is false the solver gave up and ``log_prob`` is NaN.
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
    key: PRNGKey,
    *,
    eps: float,
    divergence: DivergenceEstimator = Hutchinson(),
    solver: Solver = Adaptive(),
) -> Likelihood:
    """log p_eps(x) in nats: the density of the model at t = ``eps``, by the probability-flow ODE.

    Unbiased over the draw of the probes. ``key`` draws the probes and nothing else.
    """
    flow = ProbabilityFlow(noise, sde)
    probes = divergence.draw(key, x)
    data_end, prior_end = flow.span(eps)
    dims = x[0].size
    ends = flow.log_rho(jnp.asarray([eps, 1.0], x.dtype))
    solution = solver.solve(
        lambda clock, u: flow.velocity_and_divergence(clock, u, divergence, probes),
        x / jnp.exp(ends[0]),
        data_end,
        prior_end,
        sensitivity=flow.log_density_gradient,
    )
    latent = solution.state * jnp.exp(ends[1])
    log_prob = sde.prior_log_prob(latent) + dims * (ends[1] - ends[0])
    mean = jnp.mean(solution.integrals, axis=0)
    log_prob = log_prob + mean
    probe_stderr = divergence.stderr(solution.integrals)
    m = len(solution.integrals)
    scale = math.sqrt(m * (m - 1))
    ok = solution.ok & jnp.isfinite(log_prob)
    return Likelihood(
        log_prob=jnp.where(ok, log_prob, jnp.nan),
        latent=latent,
        evaluations=solution.evaluations,
        probe_stderr=probe_stderr,
        probe_deviations=(solution.integrals - mean) / scale if m > 1 else probe_stderr[None],
        solver_error=solution.error,
        ok=ok,
    )
