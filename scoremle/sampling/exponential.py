"""Fast samplers: exponential integrators of the probability flow, exact in its linear part.

With x_0(x, t) = (x - sigma eps(x, t)) / alpha the network's estimate of the data, the ODE is

    d(x / sigma) / d(alpha / sigma) = x_0(x, t),

so a step from t to t' with the estimate D, over h = (lambda' - lambda) / 2, is

    x' = (sigma' / sigma) x + alpha' (1 - e^-h) D

* D = x_0 of the step's beginning: DDIM without noise (Song et al., arXiv 2010.02502), order 1;
* D = x_0 extrapolated from the last two to the middle of the step: DPM-Solver++(2M) (Lu et al.,
  arXiv 2211.01095, algorithm 2), order 2.

Each step is one evaluation of the network. Times are even in log-SNR: where it is low, a network's
error in x_0 is large, and long steps there would take it over.
"""

import jax
import jax.numpy as jnp

from scoremle.core.arguments import as_data, check_count
from scoremle.core.prediction import check_model, data_of
from scoremle.core.sde import SDE
from scoremle.core.times import even_times
from scoremle.types import Data, NoiseFn

__all__ = ["ddim_sample", "dpm_solver_sample"]


def ddim_sample(noise: NoiseFn, sde: SDE, z: Data, *, eps: float, steps: int) -> Data:
    """Takes latents at t = 1 to samples by DDIM without noise (arXiv 2010.02502).

    Args:
        noise: the noise prediction eps(x, t).
        sde: the noise at each time.
        z: latents, draws of the prior.
        eps: the smallest time, where the samples are.
        steps: how many; each is one network evaluation.

    Raises UserError for eps outside [0, 1), a network for another SDE, no steps, latents that are
    not finite reals, or a prediction of another shape.

    Example:
        >>> sde, z = scoremle.VP(), jax.random.normal(jax.random.key(0), (4, 2))
        >>> noise = lambda x, t: sde.sigma(t)[:, None] * x
        >>> x = scoremle.ddim_sample(noise, sde, z, eps=1e-3, steps=200)
        >>> print(bool(jnp.allclose(x, z, atol=0.1)))  # N(0, I) to N(0, I)
        True
    """
    return _integrate(noise, sde, z, eps, steps, order=1)


def dpm_solver_sample(noise: NoiseFn, sde: SDE, z: Data, *, eps: float, steps: int) -> Data:
    """Takes latents at t = 1 to samples by DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2).

    Args:
        noise: the noise prediction eps(x, t).
        sde: the noise at each time.
        z: latents, draws of the prior.
        eps: the smallest time, where the samples are.
        steps: how many; each is one network evaluation.

    Raises UserError for eps outside [0, 1), a network for another SDE, no steps, latents that are
    not finite reals, or a prediction of another shape.

    Example:
        >>> sde, z = scoremle.VP(), jax.random.normal(jax.random.key(0), (4, 2))
        >>> noise = lambda x, t: sde.sigma(t)[:, None] * x
        >>> x = scoremle.dpm_solver_sample(noise, sde, z, eps=1e-3, steps=50)
        >>> print(bool(jnp.allclose(x, z, atol=0.05)))  # N(0, I) to N(0, I)
        True
    """
    return _integrate(noise, sde, z, eps, steps, order=2)


def _integrate(noise: NoiseFn, sde: SDE, z: Data, eps: float, steps: int, order: int) -> Data:
    z = as_data(z, name="z")
    check_model(noise, sde, eps, z.shape[1:])
    check_count("steps", steps)
    t = even_times(sde, eps, steps, z.dtype)
    h = jnp.diff(sde.log_snr(t)) / 2
    # The middle of a step lies this far beyond its beginning, in units of the step before it: all
    # are as long.
    beyond = jnp.full(steps, 0.5 if order == 2 else 0.0, z.dtype).at[0].set(0.0)
    kept = sde.sigma(t[1:]) / sde.sigma(t[:-1])
    added = -sde.alpha(t[1:]) * jnp.expm1(-h)
    data = data_of(noise, sde)

    def step(carry: tuple[Data, Data], inputs: tuple) -> tuple[tuple[Data, Data], None]:
        x, before = carry
        t, beyond, kept, added = inputs
        now = data(x, jnp.full(x.shape[0], t))
        return (kept * x + added * (now + beyond * (now - before)), now), None

    (x, _), _ = jax.lax.scan(step, (z, jnp.zeros_like(z)), (t[:-1], beyond, kept, added))
    return x
