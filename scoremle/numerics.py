"""Small numerical helpers: stable logarithms, and sums and broadcasts over the data axes."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from scoremle.arrays import Data, PerExample

__all__ = ["compensated_add", "expand", "log1mexp", "mean_square", "sum_data"]


def log1mexp(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """log(1 - e^-x) for x > 0, without the loss of digits of 1 - e^-x near x = 0."""
    return jnp.log(-jnp.expm1(-x))


def expand(s: PerExample, like: Data) -> Data:
    """Appends axes of length one to ``s``, so that it multiplies ``like`` example by example."""
    return jnp.reshape(s, s.shape + (1,) * (like.ndim - s.ndim))


def sum_data(x: Data) -> PerExample:
    """Sum over every axis but the batch's."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


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
