"""A control variate for the bound's diffusion term: what a Gaussian would leave of the noise.

Of data N(mu, V diag(w) V^T), the optimal noise prediction at log-SNR lambda is linear. With
r = e^lambda, d = V^T (x - mu) and zeta = V^T z, its residual at x_t = alpha x + sigma z is

    1/2 sum_i (a_i zeta_i - b_i)^2,    a_i = r w_i / (1 + r w_i),  b_i = sqrt(r) d_i / (1 + r w_i)

The mean over z, m = 1/2 sum_i (a_i^2 + b_i^2), has an elementary integral over lambda, and the
rest has mean zero. A network that learned images resembles this Gaussian, so

    k(lambda, x, z) = c + gamma m + beta (residual - m) + sum_j beta_j 1/2 sum_i x_i^j (z_i^2 - 1)

with coefficients for each of a number of bins of lambda, takes most of the noise out of the
network's residual when it is subtracted; its mean is given back in closed form. The last sums,
j = 0, 1, 2, are for what a Gaussian misses: near the ends of their range pixels behave in another
way. Any coefficients leave the bound unbiased, as long as they come from other draws of the noise
than the bound's own; `control_variate_fit.py` fits them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scoremle.core.pytree import pytree
from scoremle.numerics import sum_data
from scoremle.types import Data, PerExample, Times

__all__ = ["Control", "Controlled", "FittedGaussian", "bin_of", "noise_features"]

# The powers x^j that weigh z^2 - 1, pixel by pixel.
POWERS = (0, 1, 2)


@pytree
@dataclass(frozen=True)
class FittedGaussian:
    """N(mean, axes diag(variances) axes^T), of data as vectors."""

    mean: Float[Array, " D"]
    axes: Float[Array, "D D"]
    variances: Float[Array, " D"]

    @classmethod
    def fit(cls, batches: Iterable[Data]) -> "FittedGaussian":
        """With the mean and the covariance of all examples of the batches."""
        count, total, squares = 0, np.zeros(()), np.zeros(())
        for batch in batches:
            x = np.asarray(batch, np.float64).reshape(len(batch), -1)
            count, total, squares = count + len(x), total + x.sum(axis=0), squares + x.T @ x
        mean = total / count
        variances, axes = np.linalg.eigh(squares / count - np.outer(mean, mean))
        found = mean, axes, np.maximum(variances, 0)  # rounding may put a zero below it
        return cls(*(jnp.asarray(a, jnp.float32) for a in found))

    def deviations(self, x: Data) -> Float[Array, "b D"]:
        """x less the mean, along the axes."""
        return (x.reshape(len(x), -1) - self.mean) @ self.axes

    def _factors(
        self, lam: Times, deviations: Float[Array, "b D"]
    ) -> tuple[Float[Array, "b D"], Float[Array, "b D"]]:
        """a and b of the residual."""
        r = jnp.exp(lam)[:, None]
        scale = 1 + r * self.variances
        return r * self.variances / scale, jnp.sqrt(r) * deviations / scale

    def mean_residual(self, lam: Times, deviations: Float[Array, "b D"]) -> PerExample:
        """m, the mean of the residual over z."""
        a, b = self._factors(lam, deviations)
        return jnp.sum(jnp.square(a) + jnp.square(b), axis=1) / 2

    def residual_noise(self, lam: Times, deviations: Float[Array, "b D"], z: Data) -> PerExample:
        """The residual less its mean."""
        a, b = self._factors(lam, deviations)
        zeta = z.reshape(len(z), -1) @ self.axes
        return jnp.sum(jnp.square(a) * (jnp.square(zeta) - 1) / 2 - a * b * zeta, axis=1)

    def integrals(
        self, edges: Float[Array, " n"], deviations: Float[Array, "b D"]
    ) -> Float[Array, "b bins"]:
        """The integral of m over lambda from each edge to the next."""

        def between(low: Float[Array, ""], high: Float[Array, ""]) -> PerExample:
            rise = jnp.exp(high) - jnp.exp(low)
            u_low, u_high = (1 + jnp.exp(lam) * self.variances for lam in (low, high))
            share = rise / (u_low * u_high)
            grown = jnp.log1p(rise * self.variances / u_low)
            per_axis = (jnp.square(deviations) - self.variances) * share + grown
            return jnp.sum(per_axis, axis=1) / 2

        return jax.lax.map(lambda ends: between(*ends), (edges[:-1], edges[1:])).T


def bin_of(edges: Float[Array, " n"], lam: Times) -> Array:
    """Which bin each log-SNR lies in."""
    return jnp.clip(jnp.searchsorted(edges, lam, side="right") - 1, 0, len(edges) - 2)


@pytree
@dataclass(frozen=True)
class Control:
    """k(lambda, x, z), and the density over the bins that suits what it leaves.

    ``edges`` are those of the bins in log-SNR, ``levels`` the (c, gamma) of each, ``slopes`` its
    beta; in a last row they are those for t = eps. ``shares`` of the draws belong to each bin.
    """

    gaussian: FittedGaussian
    edges: Float[Array, " n"]
    levels: Float[Array, "bins 2"]
    slopes: Float[Array, "n features"]
    shares: Float[Array, " bins"]

    def at(self, x: Data) -> "Controlled":
        """The control of these examples."""
        return Controlled(self, x, self.gaussian.deviations(x))


@dataclass(frozen=True)
class Controlled:
    """A control, and the examples it is used for with their deviations along its axes."""

    control: Control
    x: Data
    deviations: Float[Array, "b D"]

    def draw(self, lam: Times, z: Data) -> PerExample:
        """k at the given log-SNR and noise."""
        control = self.control
        index = bin_of(control.edges, lam)
        constant, gamma = control.levels[index].T
        level = constant + gamma * control.gaussian.mean_residual(lam, self.deviations)
        return level + jnp.sum(control.slopes[index] * self._noise(lam, z), axis=1)

    def draw_at_data(self, z: Data) -> PerExample:
        """What to subtract at t = eps: noise alone, of mean zero."""
        lam = jnp.full(len(z), self.control.edges[-1])
        return self._noise(lam, z) @ self.control.slopes[-1]

    def _noise(self, lam: Times, z: Data) -> Float[Array, "b features"]:
        return noise_features(self.control.gaussian, lam, self.x, self.deviations, z)

    def integrals(self) -> Float[Array, "b bins"]:
        """The integral over each bin of the mean of k over z, in nats."""
        constant, gamma = self.control.levels.T
        means = self.control.gaussian.integrals(self.control.edges, self.deviations)
        return constant * jnp.diff(self.control.edges) + gamma * means


def noise_features(
    gaussian: FittedGaussian, lam: Times, x: Data, deviations: Float[Array, "b D"], z: Data
) -> Float[Array, "b features"]:
    """The functions of the noise in k, each of mean zero."""
    excess = (jnp.square(z) - 1) / 2
    sums = [sum_data(x**j * excess) for j in POWERS]
    return jnp.stack([gaussian.residual_noise(lam, deviations, z), *sums], axis=1)
