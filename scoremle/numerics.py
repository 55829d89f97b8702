"""Small numerical helpers: stable logarithms, sums and broadcasts over the data axes, checks."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from scoremle.types import Data, NoiseFn, PerExample, Scalar, Times

__all__ = [
    "as_data",
    "as_pytree",
    "check_eps",
    "compensated_add",
    "expand",
    "floating",
    "log1mexp",
    "mean_square",
    "predict",
    "sum_data",
    "sum_over",
]


def floating(t: ArrayLike) -> Times:
    """Numbers as an array of floats, in its precision there."""
    t = jnp.asarray(t)
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)


def log1mexp(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """log(1 - e^-x) for x > 0, without the loss of digits of 1 - e^-x near x = 0."""
    return jnp.log(-jnp.expm1(-x))


def expand(s: Float[Array, "..."], like: Data) -> Float[Array, "..."]:
    """Appends axes of length one to ``s``, so that it multiplies ``like`` example by example."""
    return jnp.reshape(s, s.shape + (1,) * (like.ndim - s.ndim))


def sum_data(x: Data) -> PerExample:
    """Sum over every axis but the batch's."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def sum_over(s: PerExample | Data, x: Data) -> PerExample:
    """Sum over the data axes of ``x`` of ``s``, of each example or of each of its entries."""
    return x[0].size * s if s.ndim == 1 else sum_data(s)


def mean_square(x: Data) -> PerExample:
    """Mean of squares over every axis but the batch's."""
    return jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim)))


def compensated_add(total: Array, lost: Array, term: Array) -> tuple[Array, Array]:
    """One step of Kahan's sum: ``total + term``, and the digits that the addition lost.

    A log-density of several thousand nats is wanted to a tenth of a nat after many float32 steps.
    """
    term = term - lost
    new = total + term
    return new, (new - total) - term


def as_data(x: Data) -> Data:
    """``x`` as a JAX array, in its precision there. ValueError for integers."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x is {x.dtype}, and a density is of reals: encode integers first, by"
            " scoremle.Pixels(levels).encode(x, u) with noise u in [0, 1)"
        )
    return x


def check_eps(eps: Scalar) -> None:
    """ValueError unless the smallest time is within (0, 1), as far as it is known yet."""
    with jax.ensure_compile_time_eval():
        if not isinstance(eps, jax.core.Tracer) and not 0 < eps < 1:
            raise ValueError(f"eps, the smallest time, must be above 0 and below 1, not {eps}")


def as_pytree(noise: NoiseFn) -> NoiseFn:
    """A noise prediction that may be an argument of a compiled function.

    A bare callable belongs to the program, and so do the arrays that it closes over.
    """
    bare = jax.tree_util.all_leaves([noise])
    return jax.tree_util.Partial(noise) if bare else noise


def predict(noise: NoiseFn, x: Data, t: Times) -> Data:
    """eps(x, t). ValueError for another shape than that of ``x``, which would be broadcast."""
    found = noise(x, t)
    if jnp.shape(found) != x.shape:
        raise ValueError(
            f"the noise prediction has shape {jnp.shape(found)} where x has {x.shape}:"
            " eps(x, t) must have the shape of x"
        )
    return found
