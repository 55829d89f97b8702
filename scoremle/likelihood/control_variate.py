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
way. Directions that share one w need no axes: sums over them are enough. Any coefficients leave
the bound unbiased, as long as they come from other draws of the noise than the bound's own;
`control_variate_fit.py` fits them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scoremle.core.arguments import check_examples
from scoremle.core.pytree import frozen_pytree
from scoremle.core.times import bin_of
from scoremle.errors import UserError
from scoremle.numerics import sum_data
from scoremle.types import AnyArray, Data, PerExample, Times

__all__ = ["Control", "FittedGaussian", "most_examples"]

# The powers x^j that weigh z^2 - 1, pixel by pixel.
POWERS = (0, 1, 2)
# The variances along the axes are measured on as many parts of the examples in turn.
FOLDS = 4
# Of data with more dimensions than the first, so many examples are taken, whose products are few;
# never so many that all their numbers exceed the last.
MOST_DIMS, FEW_EXAMPLES, MOST_EXAMPLES, MOST_NUMBERS = 4096, 2048, 20_000, 2**26
# An axis of less than this share of the greatest variance is rounding.
FLAT = 1e-10

Matrix = Float[np.ndarray, "n D"]


def most_examples(dims: int) -> int:
    """Number of examples that a Gaussian of ``dims`` dimensions is fitted on, at most."""
    most = MOST_EXAMPLES if dims <= MOST_DIMS else FEW_EXAMPLES
    return max(2, min(most, MOST_NUMBERS // max(dims, 1)))


class Deviations(NamedTuple):
    """Data minus the mean of a Gaussian: along its axes, and what is orthogonal to them."""

    along: Float[Array, "b k"]
    rest: Float[Array, "b D"]


@frozen_pytree(eq=False)
class FittedGaussian:
    """A Gaussian of data as vectors: its ``variances`` along the ``axes``, and one for all the
    ``rest``, the directions that are orthogonal to these.

    Args:
        mean: [D], over the examples.
        axes: [D k] principal axes, that of the greatest variance first.
        variances: [k] along the axes.
        rest: the variance of every other direction.
    """

    mean: Float[Array, " D"]
    axes: Float[Array, "D k"]
    variances: Float[Array, " k"]
    rest: float | Float[Array, ""] = 0.0

    @classmethod
    def fit(cls, examples: Float[AnyArray, "n *d"]) -> "FittedGaussian":
        """Fits mean and principal axes of the examples, of which ``most_examples`` are taken.

        The variances along the axes are cross-validated: the axes are fitted on all examples but a
        part, and the variances measured on that part. On the examples of the fit they would be far
        too small along the last axes, and zero along all that fewer examples than dimensions
        leave out. (Cross-validated nonlinear shrinkage with isotonic regression: Bartz,
        arXiv 1611.00798.) Raises UserError for fewer than two examples, and what are not finite.

        Args:
            examples: data.
        """
        from scipy.optimize import isotonic_regression  # slow to import, and seldom needed

        check_examples(examples, "examples of the Gaussian")
        x = np.asarray(examples, np.float32).reshape(len(examples), -1)
        x = x[: most_examples(x.shape[1])]
        if len(x) < 2:
            raise UserError(f"a Gaussian is fitted on two examples or more, not {len(x)}")
        mean, axes = _principal(x)
        along, total = _variances(x)
        axes, behind = axes[:, : len(along)], x.shape[1] - len(along)
        rest = max(total - along.sum(), 0) / behind if behind else 0.0
        found = mean, axes, isotonic_regression(along, increasing=False).x, rest
        return cls(*(jnp.asarray(a, jnp.float32) for a in found))

    @property
    def _all_variances(self) -> Float[Array, " groups"]:
        return jnp.append(self.variances, self.rest)

    @property
    def _counts(self) -> Float[np.ndarray, " groups"]:
        """Number of directions that share each variance."""
        dims, axes = self.axes.shape
        return np.append(np.ones(axes, np.float32), np.float32(dims - axes))

    def deviations(self, x: Data) -> Deviations:
        """x minus the mean."""
        whole = x.reshape(len(x), len(self.mean)) - self.mean
        along = jnp.matmul(whole, self.axes, precision="highest")
        return Deviations(along, whole - jnp.matmul(along, self.axes.T, precision="highest"))

    def _factors(self, lam: Times) -> tuple[Float[Array, "b groups"], Float[Array, "b groups"]]:
        """a, and b for a deviation of one."""
        r = jnp.exp(lam)[:, None]
        scale = 1 + r * self._all_variances
        return r * self._all_variances / scale, jnp.sqrt(r) / scale

    def mean_residual(self, lam: Times, deviations: Deviations) -> PerExample:
        """m, the mean of the residual over z.

        Args:
            lam: [b] log-SNRs.
            deviations: of the examples from the mean.
        """
        a, b = self._factors(lam)
        each = self._counts * jnp.square(a) + _products(deviations, deviations) * jnp.square(b)
        return jnp.sum(each, axis=1) / 2

    def residual_noise(self, lam: Times, deviations: Deviations, z: Data) -> PerExample:
        """The residual less its mean.

        Args:
            lam: [b] log-SNRs.
            deviations: of the examples from the mean.
            z: [b *d] the noise that was added.
        """
        a, b = self._factors(lam)
        z = z.reshape(len(z), len(self.mean))
        noise = Deviations(jnp.matmul(z, self.axes, precision="highest"), z)
        squares = jnp.square(noise.along)
        left = jnp.sum(jnp.square(z), axis=1) - jnp.sum(squares, axis=1)
        excess = jnp.append(squares, left[:, None], axis=1) - self._counts
        each = jnp.square(a) * excess / 2 - a * b * _products(deviations, noise)
        return jnp.sum(each, axis=1)

    def integrals(
        self, edges: Float[Array, " n"], deviations: Deviations
    ) -> Float[Array, "b bins"]:
        """The integral of m over lambda from each edge to the next.

        Args:
            edges: [n] log-SNRs, rising.
            deviations: of the examples from the mean.
        """
        variances, counts = self._all_variances, self._counts
        squares = _products(deviations, deviations)

        def between(low: Float[Array, ""], high: Float[Array, ""]) -> PerExample:
            rise = jnp.exp(high) - jnp.exp(low)
            u_low, u_high = (1 + jnp.exp(lam) * variances for lam in (low, high))
            share = rise / (u_low * u_high)
            grown = counts * jnp.log1p(rise * variances / u_low)
            return jnp.sum((squares - counts * variances) * share + grown, axis=1) / 2

        return jax.lax.map(lambda ends: between(*ends), (edges[:-1], edges[1:])).T


def _products(a: Deviations, b: Deviations) -> Float[Array, "b groups"]:
    """Products of the two along each axis, and their inner product in the rest; that of ``a`` is
    orthogonal to the axes."""
    rest = jnp.sum(a.rest * b.rest, axis=1, keepdims=True)
    return jnp.concatenate([a.along * b.along, rest], axis=1)


def _principal(x: Matrix) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "D k"]]:
    """The mean, and the axes of the covariance, that of the greatest variance first."""
    mean = x.mean(axis=0, dtype=np.float64)
    x = x - mean
    if len(x) > x.shape[1]:
        return mean, np.linalg.eigh(x.T @ x)[1][:, ::-1]
    squares, places = np.linalg.eigh(x @ x.T)
    seen = squares > FLAT * squares[-1]
    return mean, (x.T @ places[:, seen] / np.sqrt(squares[seen]))[:, ::-1]


def _variances(x: Matrix) -> tuple[Float[np.ndarray, " k"], float]:
    """Variances along axes of the other parts of the examples, and the total: means over parts."""
    folds = min(FOLDS, len(x))
    found, total = [], 0.0
    for fold in range(folds):
        held = np.arange(len(x)) % folds == fold
        mean, axes = _principal(x[~held])
        away = x[held] - mean
        found.append(np.square(away @ axes).mean(axis=0))
        total += np.square(away).sum(axis=1).mean() / folds
    count = min(map(len, found))
    return np.mean([along[:count] for along in found], axis=0), total


@frozen_pytree(eq=False)
class Control:
    """k(lambda, x, z), and the density over the bins that suits what it leaves.

    ``edges`` are those of the bins in log-SNR, ``levels`` the (c, gamma) of each, ``slopes`` its
    beta; in a last row they are those for t = eps. ``shares`` of the draws belong to each bin.

    Args:
        gaussian: fitted on other examples.
    """

    gaussian: FittedGaussian
    edges: Float[Array, " n"]
    levels: Float[Array, "bins 2"]
    slopes: Float[Array, "n features"]
    shares: Float[Array, " bins"]

    def at(self, x: Data) -> "Controlled":
        """The control of these examples.

        Args:
            x: [b *d] the examples.
        """
        return Controlled(self, x, self.gaussian.deviations(x))


@dataclass(frozen=True, eq=False)
class Controlled:
    """A control, and the examples it is used for with their deviations along its axes."""

    control: Control
    x: Data
    deviations: Deviations

    def draw(self, lam: Times, z: Data) -> PerExample:
        """k at the given log-SNR and noise."""
        control = self.control
        index = bin_of(control.edges, lam)
        constant, gamma = control.levels[index].T
        level = constant + gamma * control.gaussian.mean_residual(lam, self.deviations)
        return level + jnp.sum(control.slopes[index] * self._noise(lam, z), axis=1)

    def draw_at_data(self, z: Data) -> PerExample:
        """The control variate at t = eps, which is subtracted there: noise alone, of mean zero."""
        lam = jnp.full(len(z), self.control.edges[-1])
        return jnp.matmul(self._noise(lam, z), self.control.slopes[-1], precision="highest")

    def _noise(self, lam: Times, z: Data) -> Float[Array, "b features"]:
        return noise_features(self.control.gaussian, lam, self.x, self.deviations, z)

    def integrals(self) -> Float[Array, "b bins"]:
        """The integral over each bin of the mean of k over z, in nats."""
        constant, gamma = self.control.levels.T
        means = self.control.gaussian.integrals(self.control.edges, self.deviations)
        return constant * jnp.diff(self.control.edges) + gamma * means


def noise_features(
    gaussian: FittedGaussian, lam: Times, x: Data, deviations: Deviations, z: Data
) -> Float[Array, "b features"]:
    """The functions of the noise in k, each of mean zero."""
    excess = (jnp.square(z) - 1) / 2
    sums = [sum_data(x**j * excess) for j in POWERS]
    return jnp.stack([gaussian.residual_noise(lam, deviations, z), *sums], axis=1)
