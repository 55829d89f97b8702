"""Subjects: data whose density is known in closed form at every noise, in any dimension.

All are mixtures of Gaussians with common axes. In coordinates u = H x, where H = I - 2 h h' is a
reflection (exact, cheap, and far from the identity),

    p(u) = sum_k pi_k N(u; m_k, diag w_k),
    p_t(u) = sum_k pi_k N(u; alpha m_k, diag(alpha^2 w_k + sigma^2))

A point mass has w = 0, and a low-rank Gaussian w = 0 along some axes: these have a density only
where there is noise. Each component may be a class, and a label then says which.

A single Gaussian is carried along the probability flow by scales alone, u - alpha m growing as the
root of its variance v. So the density that the *model* gives, whose prior is not exactly p_1, has
a closed form too:

    log p(x) = log prior(z) + 1/2 sum_i log(v_i(stop) / v_i(start))

The sum is called the trace part. That of a mixture is log p_start(x) - log p_stop(z), where z is
found by solving the flow finely.

No subject has the mean 0 or the standard deviation 1: there a wrong scale would not be seen.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp
from scipy.special import logsumexp

from scoremle_conformance.arrays import like, namespace
from scoremle_conformance.paths import Path

__all__ = [
    "Subject", "anisotropic", "classes", "far", "log_normal", "low_rank", "mixture", "point_mass",
]  # fmt: skip


def log_normal(x: np.ndarray, mean: Any, variance: Any) -> np.ndarray:
    """log N(x; mean, diag variance) of each row."""
    return -0.5 * ((x - mean) ** 2 / variance + np.log(2 * math.pi * variance)).sum(-1)


@dataclass(frozen=True, eq=False)
class Subject:
    """A mixture of K Gaussians in D dimensions, on axes that ``h`` reflects.

    Args:
        name: in a report.
        weights: [K].
        means: [K D], in the reflected coordinates.
        variances: [K D].
        h: [D], a unit vector; None: the axes are the coordinates.
    """

    name: str
    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray
    h: np.ndarray | None = field(default=None, repr=False)

    @property
    def dims(self) -> int:
        return self.means.shape[1]

    @property
    def single(self) -> bool:
        return len(self.weights) == 1

    @property
    def has_density(self) -> bool:
        """Whether there is a density without noise."""
        return bool((self.variances > 0).all())

    def reflect(self, x: Any) -> Any:
        """To the coordinates of the axes, and back."""
        if self.h is None:
            return x
        h = like(self.h, x)
        return x - 2 * (x * h).sum(-1)[..., None] * h

    def draw(self, rng: np.random.Generator, n: int, path: Path, labels: Any = None) -> np.ndarray:
        """``n`` draws with the noise at the path's start."""
        at = path.scales(np.float64(path.start))
        k = rng.choice(len(self.weights), n, p=self.weights) if labels is None else labels
        std = np.sqrt(at.alpha**2 * self.variances[k] + at.sigma**2)
        return self.reflect(at.alpha * self.means[k] + std * rng.normal(size=(n, self.dims)))

    def log_density(
        self, x: np.ndarray, path: Path, t: float, labels: np.ndarray | None = None
    ) -> np.ndarray:
        """log p_t(x) in nats."""
        at = path.scales(np.float64(t))
        u = self.reflect(x)[:, None, :]
        variances = at.alpha**2 * self.variances + at.sigma**2
        logs = log_normal(u, at.alpha * self.means, variances)
        if labels is not None:
            return logs[np.arange(len(x)), labels]
        return logsumexp(logs, b=self.weights, axis=1)

    def log_model(self, x: np.ndarray, path: Path, labels: np.ndarray | None = None) -> np.ndarray:
        """What an exact likelihood of the model is at ``path.start``, in nats."""
        z = self.latent(x, path, labels)
        prior = log_normal(z, 0, path.prior_std**2)
        if self.single or labels is not None:
            return prior + self.trace_part(path, labels)
        return prior + self.log_density(x, path, path.start) - self.log_density(z, path, path.stop)

    def slope(self, x: np.ndarray, path: Path) -> np.ndarray:
        """Its gradient in x, by central differences."""
        steps = 1e-4 * np.concatenate([np.eye(self.dims), -np.eye(self.dims)])
        shifted = (x[:, None] + steps).reshape(-1, self.dims)
        up, down = np.split(self.log_model(shifted, path).reshape(len(x), -1), 2, axis=1)
        return (up - down) / 2e-4

    def _at_ends(self, path: Path, labels: np.ndarray | None) -> tuple[np.ndarray, ...]:
        """Means and variances of the component at start and stop, for all or for each label."""
        k = np.zeros(1, int) if labels is None else labels
        ends = [path.scales(np.float64(t)) for t in (path.start, path.stop)]
        means = [at.alpha * self.means[k] for at in ends]
        return *means, *(at.alpha**2 * self.variances[k] + at.sigma**2 for at in ends)

    def latent(self, x: np.ndarray, path: Path, labels: np.ndarray | None = None) -> np.ndarray:
        """Where the probability flow carries ``x``: of a single Gaussian, in closed form."""
        if not self.single and labels is None:
            return self._solved(x, path)
        m0, m1, v0, v1 = self._at_ends(path, labels)
        return self.reflect(m1 + (self.reflect(x) - m0) * np.sqrt(v1 / v0))

    def _solved(self, x: np.ndarray, path: Path) -> np.ndarray:
        def velocity(t: float, state: np.ndarray) -> np.ndarray:
            at = path.scales(np.float64(t))
            score, x_0 = self.expect(state.reshape(x.shape), at)
            return (at.d_alpha * x_0 - at.d_sigma * at.sigma * score).ravel()

        found = solve_ivp(
            velocity, (path.start, path.stop), x.ravel(), "DOP853", rtol=1e-9, atol=1e-9
        )
        return found.y[:, -1].reshape(x.shape)

    def growth(self, path: Path, labels: np.ndarray | None = None) -> np.ndarray:
        """Integral of the velocity's Jacobian of a single Gaussian: its eigenvalues, [1 or n D].

        Its eigenvectors are the axes at every time, so that it is an ordinary integral.
        """
        _, _, v0, v1 = self._at_ends(path, labels)
        return 0.5 * np.log(v1 / v0)

    def trace_part(self, path: Path, labels: np.ndarray | None = None) -> np.ndarray:
        """Integral of the divergence, in nats."""
        return self.growth(path, labels).sum(-1)

    def probe_variance(self, path: Path, probe: str) -> float:
        """Variance of log p by one random probe, the same along the path; of a single Gaussian.

        2 sum_{i != j} M_ij^2 of the integrated Jacobian M for a Rademacher probe, and for a
        Gaussian one the sum over all i, j.
        """
        c = self.growth(path)[0]
        everything = 2 * np.square(c).sum()
        if probe == "gaussian":
            return everything
        h2 = np.zeros(self.dims) if self.h is None else self.h**2
        diagonal = c * (1 - 4 * h2) + 4 * h2 * (h2 @ c)
        return max(everything - 2 * np.square(diagonal).sum(), 0.0)

    def expect(self, x: Any, scales: Any, labels: Any = None) -> tuple[Any, Any]:
        """The score at noise ``scales`` and the mean of x_0 given x, [... D], of any framework."""
        xp, u = namespace(x), self.reflect(x)
        alpha, sigma = scales.alpha[..., None], scales.sigma[..., None]
        means, spreads = like(self.means, x), like(self.variances, x)
        variances = alpha * alpha * spreads + sigma * sigma
        pulls = (u[..., None, :] - alpha * means) / variances  # [... K D]
        data = means + alpha * spreads * pulls
        if self.single:
            return -self.reflect(pulls[..., 0, :]), self.reflect(data[..., 0, :])
        if labels is None:
            weights = like(np.log(self.weights), x)
            logits = weights - 0.5 * (pulls * pulls * variances + xp.log(variances)).sum(-1)
            shares = xp.exp(logits - xp.amax(logits.real, -1)[..., None])
            shares = shares / shares.sum(-1)[..., None]
        else:  # an index, which counts from the end if it is negative
            place = like(np.arange(len(self.weights)), x)
            shares = like(1.0, x) * (like(labels, x)[..., None] % len(self.weights) == place)
        pull, mean = ((shares[..., None] * each).sum(-2) for each in (pulls, data))
        return -self.reflect(pull), self.reflect(mean)


def _unit(dims: int) -> np.ndarray | None:
    """A vector that has no symmetry: along no axis, nor the diagonal."""
    if dims == 1:
        return None
    h = 1 + 0.5 * np.sin(1.0 + np.arange(dims))
    return h / np.linalg.norm(h)


def _gaussian(name: str, mean: np.ndarray, variance: np.ndarray) -> Subject:
    return Subject(name, np.ones(1), mean[None], variance[None], _unit(len(mean)))


def _waves(dims: int, size: float) -> np.ndarray:
    return size * np.cos(2.0 * np.arange(dims))


def far(dims: int) -> Subject:
    """N(5, 0.1^2 I): so far from 0 that a scale that is off by 1e-3 is seen."""
    return _gaussian("far Gaussian", np.full(dims, 5.0), np.full(dims, 0.01))


def anisotropic(dims: int) -> Subject:
    """A Gaussian whose variances go from 0.05 to 4, with a mean."""
    return _gaussian("anisotropic Gaussian", _waves(dims, 0.5), np.geomspace(0.05, 4.0, dims))


def point_mass(dims: int) -> Subject:
    """One point, half of whose coordinates are beyond [-1, 1]."""
    point = np.where(np.arange(dims) % 2 == 0, 1.5, -0.5)
    return Subject("point mass", np.ones(1), point[None], np.zeros((1, dims)))


def low_rank(dims: int) -> Subject:
    """A Gaussian on a subspace of about half as many dimensions."""
    variance = np.where(np.arange(dims) % 2 == 0, 0.7, 0.0)
    return _gaussian("low-rank Gaussian", _waves(dims, 0.5), variance)


def mixture(dims: int) -> Subject:
    """Three Gaussians of differing widths around 1.5."""
    weights = np.array([0.5, 0.3, 0.2])
    means = 1.5 + np.stack([_waves(dims, size) for size in (0.8, -1.0, -0.5)])
    variances = np.stack([np.full(dims, w) for w in (0.05, 0.3, 0.1)])
    return Subject("mixture", weights, means, variances, _unit(dims))


def classes(dims: int) -> Subject:
    """Three Gaussians, each a class."""
    weights = np.full(3, 1 / 3)
    means = np.stack([_waves(dims, size) for size in (0.9, -0.4, -1.1)])
    variances = np.stack([np.full(dims, w) for w in (0.05, 0.3, 0.1)])
    return Subject("classes", weights, means, variances, _unit(dims))
