"""The denoising loss, per example, in nats.

    1/2 E_t E_z [ w(t) / p(t) ||eps(x_t, t) - z||^2 ],        x_t = alpha_t x + sigma_t z,   t ~ p

With the likelihood weighting w = g^2/sigma^2 this is the only part of the bound on -log p(x) that
depends on the network (Song, Durkan et al., arXiv 2101.09258, theorem 1). The three published
objectives are arguments: (uniform t, plain), (uniform t, likelihood), (uniform log-SNR,
likelihood). In the last w/p is the constant lambda_eps - lambda_1, and with it the loss has the
least variance.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from scoremle.core.arguments import as_data, check_choice, check_kind
from scoremle.core.keys import as_keys, example_keys, normal, split
from scoremle.core.prediction import check_network
from scoremle.core.sde import SDE
from scoremle.core.times import TIME_SAMPLER, TimeSampler
from scoremle.numerics import predict, sum_data
from scoremle.types import Data, Keys, NoiseFn, PerExample, Times

__all__ = ["WEIGHTINGS", "denoising_loss", "draw", "drawn_loss", "loss_at"]

WEIGHTINGS: dict[str, Callable[[SDE, Times], Times]] = {
    "plain": lambda sde, t: jnp.ones_like(t),
    "likelihood": lambda sde, t: sde.likelihood_weight(t),
}


def denoising_residual(noise: NoiseFn, sde: SDE, x: Data, t: Times, z: Data) -> PerExample:
    """1/2 ||eps(x_t, t) - z||^2 at the given times and noise."""
    return sum_data(jnp.square(predict(noise, sde.perturb(x, t, z), t) - z)) / 2


def denoising_loss(
    noise: NoiseFn, sde: SDE, x: Data, key: Keys, *, times: TimeSampler, weighting: str
) -> PerExample:
    """Denoising loss of each example in nats.

    Args:
        noise: the noise prediction eps(x, t).
        sde: the noise at each time.
        x: data.
        key: one, by which the times of the batch are drawn together, so that a stratified sampler
            stratifies over it; or one for each example, whose time is drawn apart.
        times: how t is drawn.
        weighting: "likelihood" or "plain".

    Raises UserError for another weighting, a network for another SDE, data that are not finite
    reals, or a prediction of another shape.

    Example:
        >>> sde, times = scoremle.VP(), scoremle.UniformTime(1e-3)
        >>> loss = scoremle.denoising_loss(
        ...     lambda x, t: 0 * x, sde, jnp.zeros((4000, 2)), jax.random.key(0),
        ...     times=times, weighting="plain",
        ... )
        >>> print(f"{loss.mean():.1f}")  # E 1/2 ||z||^2 of two dimensions
        1.0
    """
    x = as_data(x)
    check_network(noise, sde, x.shape[1:])
    return drawn_loss(noise, sde, x, key, times=times, weighting=weighting)[0]


def drawn_loss(
    noise: NoiseFn, sde: SDE, x: Data, key: Keys, *, times: TimeSampler, weighting: str
) -> tuple[PerExample, Times, Times]:
    """The loss of each example, the time that was drawn for it, and its density.

    Args:
        noise: the noise prediction eps(x, t).
        sde: the noise at each time.
        x: data.
        key: as for ``denoising_loss``.
        times: how t is drawn.
        weighting: "likelihood" or "plain".
    """
    x = as_data(x)
    t, density, z = draw(x, key, times)
    return loss_at(noise, sde, x, t, density, z, weighting=weighting), t, density


def draw(x: Data, key: Keys, times: TimeSampler) -> tuple[Times, Times, Data]:
    """A time for each example, its density, and noise.

    Args:
        x: data.
        key: as for ``denoising_loss``.
        times: how t is drawn.

    Raises UserError for another sampler of times or key.
    """
    check_kind("times", times, *TIME_SAMPLER)
    key = as_keys(key)
    if key.shape:
        key_t, key_z = split(example_keys(key, len(x)))
        drawn = tuple(a[:, 0] for a in jax.vmap(lambda k: times(k, 1))(key_t))
    else:
        key_t, key_z = jax.random.split(key)
        drawn = times(key_t, len(x))
    # A gradient by the schedule is that of the integrand at given times, which is unbiased.
    t, density = (jax.lax.stop_gradient(a.astype(x.dtype)) for a in drawn)
    return t, density, normal(key_z, x)


def loss_at(
    noise: NoiseFn, sde: SDE, x: Data, t: Times, density: Times, z: Data, *, weighting: str
) -> PerExample:
    """The loss of each example at a given time.

    Args:
        noise: the noise prediction eps(x, t).
        sde: the noise at each time.
        x: data.
        t: [b] the times.
        density: [b] that by which they were drawn.
        z: the noise in the data.
        weighting: "likelihood" or "plain".

    Raises UserError for another weighting.
    """
    check_choice("weighting", weighting, WEIGHTINGS)
    weight = WEIGHTINGS[weighting](sde, t)
    if weight.ndim == 1:
        return weight / density * denoising_residual(noise, sde, x, t, z)
    error = predict(noise, sde.perturb(x, t, z), t) - z
    return sum_data(weight * jnp.square(error)) / (2 * density)
