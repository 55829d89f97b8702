"""Samplers: the probability-flow ODE run from the prior to the data, and the reverse SDE.

The reverse SDE is dx = [f x - g^2 score] dt + g dw, backwards in time (Song et al., arXiv
2011.13456, equation 6); here by Euler's method on times that are even in log-SNR.
"""

import jax
import jax.numpy as jnp

from scoremle.arrays import Data, NoiseFn, PRNGKey
from scoremle.flow import ProbabilityFlow
from scoremle.ode import Adaptive, Solver
from scoremle.sde import SDE
from scoremle.times import log_snr_range

__all__ = ["euler_sample", "ode_sample"]


def ode_sample(
    noise: NoiseFn,
    sde: SDE,
    z: Data,
    *,
    eps: float,
    solver: Solver = Adaptive(),
) -> Data:
    """Takes latents ``z`` at t = 1 to samples at t = ``eps``: a likelihood's latent undone."""
    flow = ProbabilityFlow(noise, sde)
    data_end, prior_end = flow.span(eps)
    ends = flow.log_rho(jnp.asarray([eps, 1.0], z.dtype))
    no_integrals = jnp.zeros((0, z.shape[0]), z.dtype)
    solution = solver.solve(
        lambda clock, u, draw: (flow.velocity(clock, u), no_integrals),
        z / jnp.exp(ends[1]),
        prior_end,
        data_end,
    )
    return solution.state * jnp.exp(ends[0])


def euler_sample(
    noise: NoiseFn,
    sde: SDE,
    key: PRNGKey,
    shape: tuple[int, ...],
    *,
    eps: float,
    steps: int,
) -> Data:
    """Samples by ``steps`` Euler-Maruyama steps of the reverse SDE to t = ``eps``.

    The last step adds no noise.
    """
    key_prior, key_steps = jax.random.split(key)
    low, high = log_snr_range(sde, eps)
    times = sde.time_of_log_snr(jnp.linspace(low, high, steps + 1))
    times = times.at[0].set(1.0).at[-1].set(eps)

    def step(x: Data, inputs: tuple) -> tuple[Data, None]:
        t, t_next, key_step, last = inputs
        dt = t - t_next
        prediction = noise(x, jnp.full(shape[0], t, x.dtype))
        drift = sde.f(t) * x + sde.g2(t) / sde.sigma(t) * prediction
        diffusion = jnp.sqrt(sde.g2(t) * dt) * jax.random.normal(key_step, shape, x.dtype)
        return x - drift * dt + jnp.where(last, 0, diffusion), None

    last = jnp.arange(steps) == steps - 1
    inputs = (times[:-1], times[1:], jax.random.split(key_steps, steps), last)
    x, _ = jax.lax.scan(step, sde.prior_sample(key_prior, shape), inputs)
    return x
