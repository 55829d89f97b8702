"""The probability-flow ODE from the prior to the data and back, and the reverse SDE.

The ODE maps latents, distributed as the prior, to samples and back one to one: it encodes data,
and a path between latents gives one between samples.

The reverse SDE is dx = [f x - g^2 score] dt + g dw, backwards in time (Song et al., arXiv
2011.13456, equation 6); here by Euler's method on times that are even in log-SNR.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scoremle.core.arguments import (
    as_array,
    as_data,
    as_shape,
    check_count,
    check_examples,
    check_kind,
)
from scoremle.core.keys import example_keys, fold_in, normal, split
from scoremle.core.prediction import check_model, data_of
from scoremle.core.sde import SDE
from scoremle.core.times import even_times
from scoremle.errors import UserError
from scoremle.numerics import check_call, expand, predict
from scoremle.sampling.ends import ends
from scoremle.solvers.base import Problem, Solver
from scoremle.solvers.multistep import Multistep
from scoremle.solvers.probability_flow import ProbabilityFlow
from scoremle.types import Data, DataLike, Keys, NoiseFn

__all__ = ["euler_sample", "ode_draw", "ode_encode", "ode_sample"]


def ode_sample(
    noise: NoiseFn, sde: SDE, z: DataLike, *, eps: float, solver: Solver = Multistep()
) -> Data:
    """Takes latents at t = 1 to samples at t = ``eps``: the way back from ``ode_encode``.

    Args:
        noise: the noise prediction eps(x, t).
        sde: the noise at each time.
        z: latents, draws of the prior.
        eps: the smallest time, where the samples are.
        solver: how the ODE is solved.

    Raises UserError for eps outside [0, 1), a network for another SDE, what is not a solver, what
    are not finite reals, or a prediction of another shape.

    Example:
        >>> sde, z = scoremle.VP(), jax.random.normal(jax.random.key(0), (4, 2))
        >>> x = scoremle.ode_sample(lambda x, t: sde.sigma(t)[:, None] * x, sde, z, eps=1e-3)
        >>> print(bool(jnp.allclose(x, z, atol=0.02)))  # N(0, I) to N(0, I)
        True
    """
    return _transport(noise, sde, z, eps, solver, encode=False)


def ode_encode(
    noise: NoiseFn, sde: SDE, x: DataLike, *, eps: float, solver: Solver = Multistep()
) -> Data:
    """Takes data at t = ``eps`` to their latents at t = 1, those of ``ode_log_likelihood``.

    Args:
        noise: the noise prediction eps(x, t).
        sde: the noise at each time.
        x: data.
        eps: the smallest time, where the data are.
        solver: how the ODE is solved.

    Raises UserError for eps outside [0, 1), a network for another SDE, what is not a solver, what
    are not finite reals, or a prediction of another shape.

    Example:
        >>> sde, x = scoremle.VP(), jax.random.normal(jax.random.key(0), (4, 2))
        >>> z = scoremle.ode_encode(lambda x, t: sde.sigma(t)[:, None] * x, sde, x, eps=1e-3)
        >>> print(bool(jnp.allclose(x, z, atol=0.02)))  # N(0, I) to N(0, I)
        True
    """
    return _transport(noise, sde, x, eps, solver, encode=True)


def _transport(
    noise: NoiseFn, sde: SDE, x: DataLike, eps: float, solver: Solver, *, encode: bool
) -> Data:
    check_kind("solver", solver, Solver, "scoremle.Multistep(64)")
    x = as_data(x, name="x" if encode else "z")
    check_model(noise, sde, eps, x.shape[1:])
    flow = ProbabilityFlow(noise, sde)
    times, (start, stop) = (eps, 1.0), flow.span(eps, x.dtype)
    if not encode:
        times, (start, stop) = times[::-1], (stop, start)
    rho = [expand(jnp.exp(flow.log_rho(jnp.full(len(x), t, x.dtype))), x) for t in times]
    none = jnp.zeros((0, len(x)), x.dtype)
    problem = Problem(lambda clock, u, draw: (flow.velocity(clock, u), none, none), start, stop)
    return solver.solve(problem, x / rho[0]).state * rho[1]


@ends(lambda eps, denoised=False, **options: None if denoised else eps)
def ode_draw(
    noise: NoiseFn,
    sde: SDE,
    key: Keys,
    shape: tuple[int, ...],
    *,
    eps: float,
    transport: Callable[..., Data] | None = None,
    denoised: bool = False,
) -> Data:
    """Samples by the probability flow, of latents from the prior.

    Args:
        noise: the noise prediction eps(x, t).
        sde: the noise at each time.
        key: one, or one for each sample.
        shape: of all samples.
        eps: the smallest time, where the samples are.
        transport: takes latents to samples: ``ddim_sample`` or ``dpm_solver_sample``, with their
            options bound by functools.partial; None: ``ode_sample``.
        denoised: samples are the estimates of the data at t = ``eps``.

    Raises UserError for a ``transport`` that takes other arguments.
    """
    z, transport = sde.prior_sample(key, shape), transport or ode_sample
    check_call(transport, noise, sde, z, eps=eps)
    x = transport(noise, sde, z, eps=eps)
    return denoise(noise, sde, x, eps=eps) if denoised else x


def interpolate(z0: DataLike, z1: DataLike, weights: Float[Array, " n"]) -> Float[Array, "n b *d"]:
    """Latents on the way from ``z0`` to ``z1``, at these ``weights`` of ``z1`` from 0 to 1.

    Spherical: the direction turns evenly, so that the latents keep the norm that the prior's draws
    have, which on a straight line they would lose. Between like or opposite latents, as two of one
    dimension always are, and from or to a latent that is 0, the line is straight.

    Raises UserError for what are not finite reals, and latents of different shapes.
    """
    z0, z1 = as_data(z0, name="z0"), as_data(z1, name="z1")
    weights = jnp.asarray(as_array(weights, "weights"))
    check_examples(weights, "weights")
    if z0.shape != z1.shape:
        raise UserError(f"z1 must have the shape of z0, {z0.shape}, not {z1.shape}")

    def norm(z: Data) -> Data:
        squared = jnp.sum(jnp.square(z), axis=tuple(range(1, z.ndim)), keepdims=True)
        return jnp.sqrt(jnp.where(squared > 0, squared, 1)) * (squared > 0)

    # Accurate for all angles, as the cosine is not; and 0 where a latent is. All derivatives are
    # finite, those of the root and of the angle at 0, too.
    turned0, turned1 = norm(z1) * z0, norm(z0) * z1
    apart, together = norm(turned1 - turned0), norm(turned1 + turned0)
    angle = 2 * jnp.arctan2(apart, together + (apart == 0))
    w = jnp.reshape(weights, (-1,) + (1,) * z0.ndim)
    straight = jnp.sin(angle) < 1e-3
    sine = jnp.where(straight, 1, jnp.sin(angle))
    share0 = jnp.where(straight, 1 - w, jnp.sin((1 - w) * angle) / sine)
    share1 = jnp.where(straight, w, jnp.sin(w * angle) / sine)
    return share0 * z0 + share1 * z1


def denoise(noise: NoiseFn, sde: SDE, x: DataLike, *, eps: float) -> Data:
    """E[x_0 | x_eps]: what samples at t = ``eps`` are without the noise of that time.

    Raises UserError for eps outside [0, 1), a network for another SDE, and what are not finite
    reals.
    """
    x = as_data(x)
    check_model(noise, sde, eps, x.shape[1:])
    return data_of(noise, sde)(x, jnp.full(x.shape[0], eps, x.dtype))


def euler_sample(
    noise: NoiseFn,
    sde: SDE,
    key: Keys,
    shape: tuple[int, ...],
    *,
    eps: float,
    steps: int,
    denoise: bool = True,
) -> Data:
    """Samples by Euler-Maruyama steps of the reverse SDE (arXiv 2011.13456, equation 6).

    Args:
        noise: the noise prediction eps(x, t).
        sde: the noise at each time.
        key: one, or one for each sample.
        shape: of all samples.
        eps: the time of the last step's end.
        steps: how many; each is one network evaluation.
        denoise: the last step adds no noise.

    Raises UserError for eps outside [0, 1), a network for another SDE, no steps, another shape, or
    a prediction of another one.

    Example:
        >>> sde, key = scoremle.VP(), jax.random.key(0)
        >>> x = scoremle.euler_sample(  # of data N(0, I)
        ...     lambda x, t: sde.sigma(t)[:, None] * x, sde, key, (4000, 1), eps=1e-3, steps=100
        ... )
        >>> print(f"{jnp.std(x):.1f}")
        1.0
    """
    n, *dims = shape = as_shape(shape, of_batch=True)
    check_model(noise, sde, eps, tuple(dims))
    check_count("steps", steps)
    key_prior, key_steps = split(example_keys(key, n))
    x = sde.prior_sample(key_prior, shape)
    times = even_times(sde, eps, steps, x.dtype)

    def step(x: Data, inputs: tuple) -> tuple[Data, None]:
        i, t, t_next = inputs
        dt = t - t_next
        prediction = predict(noise, x, jnp.full(shape[0], t, x.dtype))
        drift = sde.f(t) * x + sde.g2(t) / sde.sigma(t) * prediction
        diffusion = jnp.sqrt(sde.g2(t) * dt) * normal(fold_in(key_steps, i), x)
        return x - drift * dt + jnp.where(i < steps - denoise, diffusion, 0), None

    inputs = (jnp.arange(steps), times[:-1], times[1:])
    return jax.lax.scan(step, x, inputs)[0]
