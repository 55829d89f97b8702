"""Losses that match derivatives of the score beside the score itself, per example.

With the residual r = z - eps(x_t, t), the Jacobian J of the score, and random signs v, high-order
denoising score matching (Lu et al., arXiv 2206.08265) has the terms

    1    ||r||^2 / D
    2    ||sigma^2 J v + v - (r.v) r||^2 / D^2 + (sigma^2 v.Jv + v.v - (r.v)^2)^2 / D^2
    3    ||sigma^3 grad(v.Jv) + (r.v)^2 r - (sigma^2 v.Jv + v.v) r
             - 2 (r.v) (sigma^2 J v + v)||^2 / D^3

Terms 2 and 3 have no gradient by r, nor term 3 by J v. The second-order loss of i-DODE (Zheng et
al., arXiv 2305.03935) requires the same of the trace alone, sigma tr(d eps/dx) = D - E ||r||^2:

    weight / 2 * 0.1 (sigma v.(d eps/dx) v - D + ||r||^2)^2 / D

with the weight of the denoising loss, whatever the network predicts and on whatever path.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scoremle.core.sde import SDE
from scoremle.numerics import dims_of, expand, predict, sum_data
from scoremle.types import Data, NoiseFn, PerExample, Times

# Share of the second-order loss beside the first.
SECOND = 0.1


def high_order_terms(
    noise: NoiseFn, sde: SDE, x: Data, t: Times, z: Data, v: Data, *, order: int
) -> Float[Array, "b order"]:
    """Terms 1 to ``order`` of high-order denoising score matching; the loss is their sum.

    Their gradient takes the memory of that of ``order`` first derivatives.

    Args:
        noise: the noise prediction eps(x, t).
        sde: the SDE that it belongs to.
        x: data.
        t: a time for each.
        z: the noise that they get.
        v: random signs.
        order: 1, 2 or 3.
    """
    x_t, dims = sde.perturb(x, t, z), dims_of(x)
    sigma = expand(sde.sigma(t), x)

    def score(y: Data) -> Data:
        return -predict(noise, y, t) / sigma

    def of_form(y: Data) -> Data:
        """J v."""
        return jax.jvp(score, (y,), (v,))[1]

    first = z + sigma * score(x_t)
    terms = [sum_data(jnp.square(first)) / dims]
    r = jax.lax.stop_gradient(first)
    along = sum_data(r * v)
    rv = expand(along, x)
    if order > 1:
        shifted = jnp.square(sigma) * of_form(x_t) + v
        matrix = sum_data(jnp.square(shifted - rv * r))
        trace = jnp.square(sum_data(v * shifted) - jnp.square(along))
        terms.append((matrix + trace) / dims**2)
    if order > 2:
        shifted = jax.lax.stop_gradient(shifted)
        form = expand(sum_data(v * shifted), x)
        slope = jax.grad(lambda y: jnp.sum(v * of_form(y)))(x_t)
        third = sigma**3 * slope + jnp.square(rv) * r - form * r - 2 * rv * shifted
        terms.append(sum_data(jnp.square(third)) / dims**3)
    return jnp.stack(terms, axis=1)


def second_order_loss(
    noise: NoiseFn, sde: SDE, x: Data, t: Times, z: Data, v: Data, weight: Times
) -> PerExample:
    """The second-order loss of i-DODE, to be added to the denoising loss of the same draws.

    Its gradient takes twice the memory of that of the denoising loss, since a derivative in
    forward mode goes beside the network; both together take 2.8 times as much (VDM's network of 64
    channels and 4 blocks, by XLA's account).

    Args:
        noise, sde, x, t, z, v: as ``high_order_terms`` takes them.
        weight: the weight of the denoising loss at t, over the density of t.
    """
    x_t, dims = sde.perturb(x, t, z), dims_of(x)
    prediction, along = jax.jvp(lambda y: predict(noise, y, t), (x_t,), (v,))
    form = sde.sigma(t) * sum_data(v * along)
    error = jax.lax.stop_gradient(sum_data(jnp.square(prediction - z)))
    return SECOND * weight / 2 * jnp.square(form - dims + error) / dims
