"""Log-likelihood by the probability-flow ODE.

    log p_eps(x) = log p_1(z) + int_eps^1 div dt,       z the end of the ODE that starts from x

(Song et al., arXiv 2011.13456, section 4.3). In the coordinates of `probability_flow.py`,

    log p_eps(x) = log prior(x_1) + D (log rho_1 - log rho_eps) + int div_u (du/dc) dc

The density is that of the model at t = eps, exact but for the solver and the trace estimate, whose
errors are given beside it. A solver with fixed nodes draws new probes at each: the divergence does
not act on the path, so its estimate stays unbiased, and the probes' error falls with the number of
nodes (by about its root), at no cost.
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from scoremle.core.divergence import DivergenceEstimator, Hutchinson
from scoremle.core.keys import example_keys, fold_in
from scoremle.core.prediction import Conditioned
from scoremle.core.sde import SDE
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.likelihood.record import Likelihood
from scoremle.numerics import as_data, as_pytree, check_examples, expand, sum_over
from scoremle.solvers.base import Draw, Problem, Solver
from scoremle.solvers.multistep import Multistep
from scoremle.solvers.probability_flow import ProbabilityFlow
from scoremle.types import Data, Keys, NoiseFn, Scalar, Times

__all__ = ["Likelihood", "ode_log_likelihood"]


def ode_log_likelihood(
    noise: NoiseFn,
    sde: SDE,
    x: Data,
    key: Keys,
    *,
    eps: Scalar,
    divergence: DivergenceEstimator = Hutchinson(),
    solver: Solver | PublishedRK45 = Multistep(),
    condition: Any = None,
    dtype: DTypeLike | None = None,
) -> Likelihood:
    """log p_eps(x) in nats: the density of the model at t = ``eps``, by the probability-flow ODE.

    Unbiased over the draw of the probes, up to the solver's error. It has derivatives of both
    modes in ``x``, ``condition``, and the parameters of ``noise``. In reverse mode memory grows by
    five times ``x`` for each node, beside that of one evaluation with its derivatives.

    Args:
        noise: the noise prediction eps(x, t), or eps(x, t, condition).
        sde: what noise is added when.
        x: data.
        key: draws the probes and nothing else; one, or one for each example.
        eps: the smallest time, where the density is taken.
        divergence: how traces are estimated.
        solver: how the ODE is solved.
        condition: any pytree of arrays, with a row for each example or one for all.
        dtype: of the computation, such as "float64"; None: that of ``x``, which without
            ``jax_enable_x64`` is float32.

    Raises ValueError for eps outside (0, 1), integer ``x``, or a prediction of another shape; and
    UserError for numbers that are not finite, a condition of another number of rows, and a dtype
    that JAX is not set up for.

    Example:
        >>> sde, x = scoremle.VP(), jnp.asarray([[1.0, 0.0]])
        >>> found = scoremle.ode_log_likelihood(  # of data N(0, I)
        ...     lambda x, t: sde.sigma(t)[:, None] * x, sde, x, jax.random.key(0),
        ...     eps=1e-3, divergence=scoremle.Exact(),
        ... )
        >>> print(f"{found.log_prob[0]:.2f}")  # -1/2 - log 2 pi
        -2.34
    """
    x = as_data(x, dtype)
    check_examples(x, "x")
    if condition is not None:
        check_examples(condition, "condition")
        noise = Conditioned(as_pytree(noise), condition)
    if isinstance(solver, PublishedRK45):
        probes = divergence.draw(key, x)
        if len(probes) != 1:
            raise ValueError(f"PublishedRK45 takes one random probe, not {divergence}")
        found = solver.log_likelihood(noise, sde, x, probes[0], eps=eps)
        return replace(found, trace=str(divergence))
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
