"""MuLAN's schedule: a log-SNR for each dimension, which a code of the image bends.

    -lambda(t) = low + (high - low) P(t) / P(1),      P(t) = int_0^t (a s^2 + b s + c)^2 ds

(Sahoo et al., arXiv 2312.13236). The ends are those of all dimensions. Between them each has its
own course, by coefficients that a small network makes of the code.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scoremle.core.pytree import frozen_pytree, known, static
from scoremle.core.schedules import PerDimension
from scoremle.errors import UserError
from scoremle.types import PRNGKey, Scalar, Times

__all__ = ["CodedPolynomial", "first_polynomial"]

# The least c: without it the schedule might be constant where it begins.
LEAST = 1e-3


class _SharedEnds(PerDimension):
    """A schedule whose dimensions begin, and end, with the same log-SNR."""

    log_snr_min: Scalar
    log_snr_max: Scalar
    per_example = True

    def at_zero(self) -> Times:
        return jnp.asarray(self.log_snr_max)

    def common_log_snr(self, t: Times) -> Times:
        """lambda at t = 0 and 1. Between, where the dimensions differ: UserError; traced, NaN.

        Args:
            t: times of any shape.
        """
        if known(t) and np.any((np.asarray(t) != 0) & (np.asarray(t) != 1)):
            return super().common_log_snr(t)
        at_end = jnp.where(t == 1, self.log_snr_min, jnp.nan)
        return jnp.where(t == 0, self.log_snr_max, at_end)


@frozen_pytree(eq=False)
class Polynomial(_SharedEnds):
    """The polynomials of given coefficients.

    Args:
        a, b, c: [b *d], for each example; or [1 *d], for all.
        log_snr_min: lambda at t = 1.
        log_snr_max: lambda at t = 0.
    """

    a: Float[Array, "b *d"]
    b: Float[Array, "b *d"]
    c: Float[Array, "b *d"]
    log_snr_min: Scalar
    log_snr_max: Scalar

    def __repr__(self) -> str:
        return f"Polynomial({self.log_snr_min}, {self.log_snr_max})"

    def log_snr(self, t: Times) -> Times:
        a, b, c = self.a, self.b, self.c
        powers = c * c, b * c, (b * b + 2 * a * c) / 3, a * b / 2, a * a / 5
        t = t.reshape(t.shape + (1,) * (jnp.ndim(a) - 1))
        partial = whole = jnp.zeros_like(a)
        for each in reversed(powers):
            partial, whole = partial * t + each, whole + each
        return self.log_snr_max + (self.log_snr_min - self.log_snr_max) * (t * partial / whole)

    def taken(self, indices: Any) -> "Polynomial":
        if len(self.a) == 1:  # one code for all
            return self
        return replace(self, a=self.a[indices], b=self.b[indices], c=self.c[indices])


@frozen_pytree(eq=False)
class CodedPolynomial(_SharedEnds):
    """Polynomials by a code: ``at(code)`` is the schedule of the images that have it.

    Args:
        params: "dense_1", "dense_2" and "dense_out_a", "_b", "_c", with kernel and bias.
        log_snr_min: lambda at t = 1.
        log_snr_max: lambda at t = 0.
        shape: of an example.
    """

    params: Mapping[str, Any]
    log_snr_min: Scalar
    log_snr_max: Scalar
    shape: tuple[int, ...] = static()

    def __repr__(self) -> str:
        return f"CodedPolynomial({self.log_snr_min:g}, {self.log_snr_max:g})"

    def log_snr(self, t: Times) -> Times:
        """Raises UserError: there is none without a code."""
        raise UserError(
            "the noise of this model depends on a code of the image: score images and draw"
            " samples, or take the model under a code"
        )

    def time_of_log_snr(self, lam: Times) -> Times:
        """Raises UserError, as ``log_snr``."""
        return self.log_snr(lam)

    def at(self, code: Float[Array, "b m"]) -> Polynomial:
        """The schedule of the images with these codes.

        Args:
            code: [b m] bits.
        """
        h = code
        for name in ("dense_1", "dense_2"):
            h = jax.nn.swish(self._dense(name, h))
        a, b, c = (self._dense(f"dense_out_{name}", h).reshape(-1, *self.shape) for name in "abc")
        return Polynomial(a, b, LEAST + jax.nn.softplus(c), self.log_snr_min, self.log_snr_max)

    def _dense(self, name: str, h: Float[Array, "b n"]) -> Float[Array, "b m"]:
        layer = self.params[name]
        product = jnp.matmul(h, layer["kernel"], precision=jax.lax.Precision.HIGHEST)
        return product + layer["bias"]


def first_polynomial(bits: int, dims: int, key: PRNGKey) -> dict[str, Any]:
    """Parameters of ``CodedPolynomial`` to begin with.

    Args:
        bits: of a code.
        dims: of an example.
        key: of the weights.
    """
    names = "dense_1", "dense_2", "dense_out_a", "dense_out_b", "dense_out_c"
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))

    def layer(name: str) -> dict[str, Array]:
        zero, normal = jax.nn.initializers.zeros, jax.nn.initializers.lecun_normal()
        make = zero if name == "dense_out_a" else normal
        size = (bits if name == "dense_1" else dims, dims)
        kernel = make(keys[name], size, jnp.float32)
        return {"kernel": kernel, "bias": jnp.zeros(dims, jnp.float32)}

    return {name: layer(name) for name in names}
