"""Models whose every number is known in closed form, to hold the library against.

A Gaussian N(mu, Sigma) and a Gaussian mixture, perturbed by a kernel N(alpha x, sigma^2 I), keep
their form, so the exact noise prediction eps(x, t) = -sigma grad log p_t(x) is explicit. With it

* the probability-flow ODE of the Gaussian is linear (``Gaussian.flow``), that of a mixture on the
  line is the monotone map between the two distribution functions (``Mixture.flow``): both give the
  density that an ODE likelihood must return, the *prior* pulled back, not the data density;
* the variational bound of the Gaussian is an integral over r = exp(lambda) that is elementary.

The schedules are written here a second time, from the formulas, so that a wrong one in the library
cannot cancel. Functions of arrays run in the precision of their input; the exact values are numpy
float64.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr, logsumexp

from helpers.schedules import log_alpha_and_sigma, log_snr, parameters
from scoremle.core.sde import SDE, VE, VP, LinearVE, SubVP

SDES: dict[str, SDE] = {
    "vp": VP(beta_min=0.1, beta_max=20.0),
    "subvp": SubVP(beta_min=0.1, beta_max=20.0),
    "ve": VE(sigma_min=0.01, sigma_max=50.0),
    "ve_linear": LinearVE(sigma_max=50.0),
}
# Smallest times as they are used: VE is noisy (sigma_min) already at t = 0.
EPS = {"vp": 1e-5, "subvp": 1e-2, "ve": 1e-5, "ve_linear": 1e-3}


# --- the schedules, a second time -------------------------------------------------------------


def schedule(sde: SDE, t, xp=np):
    """(alpha, sigma) at t from the formulas of the papers."""
    if isinstance(sde, VP | SubVP):
        b = sde.beta_min * t + (sde.beta_max - sde.beta_min) * t**2 / 2
        one_minus = -xp.expm1(-b)
        return xp.exp(-b / 2), (xp.sqrt(one_minus) if isinstance(sde, VP) else one_minus)
    if isinstance(sde, VE):
        return xp.ones_like(t), sde.sigma_min * xp.exp(t * np.log(sde.sigma_max / sde.sigma_min))
    if isinstance(sde, LinearVE):
        return xp.ones_like(t), t * sde.sigma_max
    lam = log_snr(sde.schedule, parameters(sde.schedule), t, xp)
    log_alpha, sigma = log_alpha_and_sigma(sde.kernel, lam, xp)
    return xp.exp(log_alpha), sigma


def schedule64(sde: SDE, t) -> tuple[np.ndarray, np.ndarray]:
    return schedule(sde, np.asarray(t, np.float64))


def drift_and_diffusion64(sde: SDE, t) -> tuple[np.ndarray, np.ndarray]:
    """(f, g^2) at t from the formulas of the papers."""
    t = np.asarray(t, np.float64)
    if isinstance(sde, VP | SubVP):
        beta = sde.beta_min + t * (sde.beta_max - sde.beta_min)
        b = sde.beta_min * t + (sde.beta_max - sde.beta_min) * t**2 / 2
        return -beta / 2, (beta if isinstance(sde, VP) else beta * -np.expm1(-2 * b))
    if isinstance(sde, VE):
        return 0 * t, 2 * schedule64(sde, t)[1] ** 2 * np.log(sde.sigma_max / sde.sigma_min)
    return 0 * t, 2 * t * sde.sigma_max**2


def log_snr64(sde: SDE, t) -> np.ndarray:
    """log(alpha^2 / sigma^2); -B cannot be lost beside log sigma^2, so the quotient is exact."""
    alpha, sigma = schedule64(sde, t)
    return 2 * (np.log(alpha) - np.log(sigma))


def prior_std(sde: SDE) -> float:
    return 1.0 if isinstance(sde, VP | SubVP) else float(sde.prior_std)


def log_normal(x: np.ndarray, variance) -> np.ndarray:
    """log N(x; 0, variance), summed over the last axis."""
    return -0.5 * (x**2 / variance + np.log(2 * np.pi * variance)).sum(-1)


def log_prior(sde: SDE, z: np.ndarray) -> np.ndarray:
    return log_normal(z, prior_std(sde) ** 2)


def of_data(log_density, sde: SDE, x: np.ndarray, eps: float) -> np.ndarray:
    """log p(x) of data with the noise of t = eps, from a log-density of x at that time."""
    alpha, _ = schedule64(sde, eps)
    return log_density(sde, alpha * x, eps) + x.shape[1] * np.log(alpha)


# --- Gaussian data ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mu, Sigma) with Sigma = V diag(w) V^T, as numpy float64."""

    mu: np.ndarray
    w: np.ndarray
    V: np.ndarray

    @classmethod
    def of(cls, mu, covariance) -> "Gaussian":
        covariance = np.asarray(covariance, np.float64)
        if covariance.ndim == 1:
            return cls(np.asarray(mu, np.float64), covariance, np.eye(len(covariance)))
        w, V = np.linalg.eigh(covariance)
        return cls(np.asarray(mu, np.float64), w, V)

    @classmethod
    def random(cls, seed: int, dims: int, scale: float = 1.0) -> "Gaussian":
        """A full covariance with standard deviations from scale/4 to scale."""
        rng = np.random.default_rng(seed)
        V, _ = np.linalg.qr(rng.normal(size=(dims, dims)))
        return cls(0.5 * rng.normal(size=dims), (scale * np.linspace(0.25, 1, dims)) ** 2, V)

    @property
    def dims(self) -> int:
        return len(self.mu)

    @property
    def covariance(self) -> np.ndarray:
        return (self.V * self.w) @ self.V.T

    def draw(self, seed: int, n: int) -> np.ndarray:
        z = np.random.default_rng(seed).normal(size=(n, self.dims))
        return self.mu + (z * np.sqrt(self.w)) @ self.V.T

    def noise(self, sde: SDE):
        """The exact NoiseFn: eps(x, t) = sigma (alpha^2 Sigma + sigma^2 I)^-1 (x - alpha mu)."""

        def eps(x, t):
            alpha, sigma = (c[:, None] for c in schedule(sde, t, jnp))
            V, mu, w = (jnp.asarray(a, x.dtype) for a in (self.V, self.mu, self.w))
            y = (x.reshape(len(x), -1) - alpha * mu) @ V
            y = sigma * y / (alpha**2 * w + sigma**2)
            return (y @ V.T).reshape(x.shape)

        return eps

    def log_density(self, sde: SDE, x: np.ndarray, t: float) -> np.ndarray:
        """log p_t(x)."""
        alpha, sigma = schedule64(sde, t)
        return log_normal((x - alpha * self.mu) @ self.V, alpha**2 * self.w + sigma**2)

    def flow(self, sde: SDE, x: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
        """(x(1), log |det dx(1)/dx(eps)|) along the probability flow."""
        (a0, s0), (a1, s1) = schedule64(sde, eps), schedule64(sde, 1.0)
        scale = np.sqrt((a1**2 * self.w + s1**2) / (a0**2 * self.w + s0**2))
        z = a1 * self.mu + (((x - a0 * self.mu) @ self.V) * scale) @ self.V.T
        return z, np.full(len(x), np.log(scale).sum())

    def log_model(self, sde: SDE, x: np.ndarray, eps: float) -> np.ndarray:
        """The log-likelihood that the ODE must give: the prior pulled back from t = 1 to eps."""
        z, log_det = self.flow(sde, x, eps)
        return log_prior(sde, z) + log_det

    def residual(self, sde: SDE, x: np.ndarray, t) -> np.ndarray:
        """E_z ||eps(alpha x + sigma z, t) - z||^2; t is a number or one per example."""
        alpha, sigma = (np.asarray(c)[..., None] for c in schedule64(sde, t))
        variance = alpha**2 * self.w + sigma**2
        d = (x - self.mu) @ self.V
        return ((sigma * alpha * d / variance) ** 2 + (alpha**2 * self.w / variance) ** 2).sum(-1)

    def diffusion(self, sde: SDE, x: np.ndarray, eps: float) -> np.ndarray:
        """1/2 int E ||eps - z||^2 d lambda from t = 1 to eps, with r = exp(lambda):
        the integrand is d^2 r / (r w + 1)^2 + (r w)^2 / (r w + 1)^2 per eigen-direction."""
        u1, u0 = (1 + np.exp(log_snr64(sde, t)) * self.w for t in (1.0, eps))
        d = (x - self.mu) @ self.V
        per_axis = d**2 / self.w * (1 / u1 - 1 / u0) + np.log(u0 / u1) + 1 / u0 - 1 / u1
        return 0.5 * per_axis.sum(-1)

    def bound(self, sde: SDE, x: np.ndarray, eps: float, offset: bool = True) -> dict:
        """The variational bound of each x and its parts, in nats (``log_prob`` is minus it)."""
        parts = {
            "prior": prior_kl(sde, x),
            "diffusion": self.diffusion(sde, x, eps),
            "reconstruction": reconstruction(sde, self.residual(sde, x, eps), self.dims, eps)
            if offset
            else entropy(sde, self.dims, eps),
        }
        return parts | {"log_prob": -sum(parts.values())}


def prior_kl(sde: SDE, x: np.ndarray) -> np.ndarray:
    """KL(p(x_1 | x) || prior) in nats."""
    (alpha, sigma), s = schedule64(sde, 1.0), prior_std(sde)
    ratio = sigma**2 / s**2
    return 0.5 * ((alpha * x / s) ** 2 + ratio - 1 - np.log(ratio)).sum(-1)


def reconstruction(sde: SDE, residual: np.ndarray, dims: int, eps: float) -> np.ndarray:
    """E[-log q(x | x_eps)], q = N((x_eps - sigma eps)/alpha, (sigma/alpha)^2 I), in nats."""
    alpha, sigma = schedule64(sde, eps)
    return dims * (0.5 * np.log(2 * np.pi) + np.log(sigma / alpha)) + 0.5 * residual


def entropy(sde: SDE, dims: int, eps: float) -> np.ndarray:
    """H(x_eps | x) in nats."""
    return dims * (0.5 * np.log(2 * np.pi * np.e) + np.log(schedule64(sde, eps)[1]))


# --- mixture data -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Mixture:
    """sum_k weight_k N(mean_k, std_k^2 I), as numpy float64; means are [k D]."""

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray

    @classmethod
    def of(cls, weights, means, stds) -> "Mixture":
        return cls(*(np.asarray(a, np.float64) for a in (weights, means, stds)))

    @classmethod
    def on_line(cls) -> "Mixture":
        return cls.of([0.3, 0.5, 0.2], [[-0.7], [0.1], [0.8]], [0.1, 0.2, 0.05])

    @classmethod
    def in_plane(cls) -> "Mixture":
        return cls.of([0.4, 0.35, 0.25], [[-0.8, 0.3], [0.7, 0.6], [0.1, -0.9]], [0.25, 0.35, 0.3])

    @property
    def dims(self) -> int:
        return self.means.shape[1]

    def draw(self, seed: int, n: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        k = rng.choice(len(self.weights), n, p=self.weights)
        return self.means[k] + self.stds[k, None] * rng.normal(size=(n, self.dims))

    def noise(self, sde: SDE):
        """The exact NoiseFn: sigma sum_k r_k(x) (x - alpha m_k) / (alpha^2 s_k^2 + sigma^2)."""

        def eps(x, t):
            alpha, sigma = (c[:, None] for c in schedule(sde, t, jnp))
            pi, m, s = (jnp.asarray(a, x.dtype) for a in (self.weights, self.means, self.stds))
            variance = alpha**2 * s**2 + sigma**2  # [b k]
            d = x[:, None, :] - alpha[:, :, None] * m  # [b k D]
            logits = jnp.log(pi) - 0.5 * (
                (d**2).sum(-1) / variance + self.dims * jnp.log(variance)
            )
            r = jax.nn.softmax(logits, axis=1)
            return sigma * jnp.einsum("bk,bkd->bd", r / variance, d)

        return eps

    def _at(self, sde: SDE, t: float) -> tuple[np.ndarray, np.ndarray]:
        alpha, sigma = schedule64(sde, t)
        return alpha * self.means, np.sqrt(alpha**2 * self.stds**2 + sigma**2)

    def log_density(self, sde: SDE, x: np.ndarray, t: float) -> np.ndarray:
        """log p_t(x)."""
        means, stds = self._at(sde, t)
        logs = log_normal(x[:, None, :] - means, (stds**2)[:, None])
        return logsumexp(logs, b=self.weights, axis=1)

    def log_data_density(self, x: np.ndarray) -> np.ndarray:
        logs = log_normal(x[:, None, :] - self.means, (self.stds**2)[:, None])
        return logsumexp(logs, b=self.weights, axis=1)

    def _log_cdf(self, sde: SDE, x: float, t: float, sign: int) -> float:
        means, stds = self._at(sde, t)
        return logsumexp(log_ndtr(sign * (x - means[:, 0]) / stds), b=self.weights)

    def flow(self, sde: SDE, x: np.ndarray, eps: float) -> np.ndarray:
        """x(1) along the probability flow, on the line: F_1(x(1)) = F_eps(x(eps))."""
        assert self.dims == 1

        def one(value: float) -> float:
            sign = 1 if self._log_cdf(sde, value, eps, 1) < np.log(0.5) else -1  # the short tail
            target = self._log_cdf(sde, value, eps, sign)
            reach = 40 * prior_std(sde)
            return brentq(
                lambda z: self._log_cdf(sde, z, 1.0, sign) - target, -reach, reach, xtol=1e-13
            )

        return np.array([[one(value)] for value in x[:, 0]])

    def log_model(self, sde: SDE, x: np.ndarray, eps: float) -> np.ndarray:
        """The log-likelihood that the ODE must give, on the line; dx(1)/dx = p_eps / p_1."""
        z = self.flow(sde, x, eps)
        return log_prior(sde, z) + self.log_density(sde, x, eps) - self.log_density(sde, z, 1.0)


@dataclass(frozen=True, eq=False)
class RoughGaussian(Gaussian):
    """A Gaussian of mean zero whose noise prediction is off by a factor that oscillates with t, as
    networks do that are told 999 t. It is linear: the ODE's density is an integral over time."""

    size: float = 0.1

    def _factor(self, t, xp):
        return 1 + self.size * xp.sin(999 * t)

    def noise(self, sde: SDE):
        exact = super().noise(sde)
        return lambda x, t: self._factor(t, jnp)[:, None] * exact(x, t)

    def log_model(self, sde: SDE, x: np.ndarray, eps: float) -> np.ndarray:
        """d log y_i / ds = alpha sigma / (alpha^2 w_i + sigma^2), times the factor, with y =
        x / alpha and s = sigma / alpha: by Gauss's rule on short steps of t^(1/4)."""
        points, weights = np.polynomial.legendre.leggauss(6)
        edges = np.linspace(eps**0.25, 1.0, 6001)
        middle, half = (edges[1:] + edges[:-1])[:, None] / 2, np.diff(edges)[:, None] / 2
        root = (middle + half * points).ravel()
        t, weight = root**4, 4 * root**3 * (half * weights).ravel()
        alpha, sigma = schedule64(sde, t)
        ds = drift_and_diffusion64(sde, t)[1] / (2 * sigma * alpha)  # ds/dt
        rate = (alpha * sigma)[:, None] / (alpha[:, None] ** 2 * self.w + sigma[:, None] ** 2)
        grown = (weight * ds * self._factor(t, np)) @ rate
        (a0, _), (a1, _) = schedule64(sde, eps), schedule64(sde, 1.0)
        log_scale = grown + np.log(a1 / a0)
        z = (x @ self.V) * np.exp(log_scale)
        return log_prior(sde, z) + log_scale.sum()
