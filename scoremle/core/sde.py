"""Forward SDEs: dx = f(t) x dt + g(t) dw on t in [0, 1], with Gaussian perturbation kernels.

    p(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)
    lambda_t = log(alpha_t^2 / sigma_t^2)              log signal-to-noise ratio, falling in t
    f(t) = d log alpha_t / dt
    g(t)^2 = -sigma_t^2 d lambda_t / dt

So log alpha and the log-SNR say everything: a subclass states these two, the inverse of the
second, and the scale of its prior; the rest is derived here, once. All forms are exact (expm1,
log1p): in float32 they are accurate to 1e-5 relative down to t = 1e-6, where 1 - e^-B has lost
every digit.

Sources: Song et al. 2021 (arXiv 2011.13456) for the SDEs; Kingma et al. 2021 (arXiv 2107.00630)
for the log-SNR.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from scoremle.core.keys import draw, example_keys
from scoremle.numerics import expand, log1mexp, sum_data
from scoremle.types import Data, Keys, PerExample, Times

__all__ = ["SDE", "VE", "VP", "LinearVE", "SubVP"]


# In place of t = 0, where factors of g^2 are zero or infinite and only their product is finite.
SMALLEST = 1e-30


def _derivative(function: Callable[[Times], Times], t: Times) -> Times:
    t = jnp.asarray(t)
    if not jnp.issubdtype(t.dtype, jnp.floating):
        t = t.astype(float)
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


class SDE(abc.ABC):
    """dx = f(t) x dt + g(t) dw on [0, 1];  p(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I).

    Methods of ``t`` are elementwise and take numbers or arrays of any shape.
    """

    @property
    @abc.abstractmethod
    def prior_std(self) -> float:
        """Standard deviation of the prior N(0, prior_std^2 I) at t = 1."""

    @abc.abstractmethod
    def log_alpha(self, t: Times) -> Times:
        """Logarithm of the mean coefficient."""

    @abc.abstractmethod
    def log_snr(self, t: Times) -> Times:
        """lambda_t = log(alpha_t^2 / sigma_t^2)."""

    @abc.abstractmethod
    def time_of_log_snr(self, lam: Times) -> Times:
        """The t at which the log-SNR is ``lam``, in closed form."""

    def alpha(self, t: Times) -> Times:
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Times) -> Times:
        return jnp.exp(self.log_alpha(t) - self.log_snr(t) / 2)

    def f(self, t: Times) -> Times:
        """Drift coefficient d log alpha / dt."""
        return _derivative(self.log_alpha, t)

    def likelihood_weight(self, t: Times) -> Times:
        """g^2 / sigma^2 = -d lambda / dt: the paper's likelihood weighting of the noise loss."""
        return -_derivative(self.log_snr, t)

    def g2(self, t: Times) -> Times:
        """Squared diffusion coefficient; at t = 0, its limit."""
        t = jnp.maximum(t, SMALLEST)
        return jnp.square(self.sigma(t)) * self.likelihood_weight(t)

    def perturb(self, x: Data, t: Times, noise: Data) -> Data:
        """A sample of p(x_t | x_0 = x), given standard normal ``noise``."""
        return expand(self.alpha(t), x) * x + expand(self.sigma(t), x) * noise

    def prior_log_prob(self, z: Data) -> PerExample:
        """log N(z; 0, prior_std^2 I) in nats."""
        log_norm = 0.5 * jnp.log(2 * jnp.pi) + jnp.log(self.prior_std)
        return -sum_data(jnp.square(z / self.prior_std) / 2 + log_norm)

    def prior_sample(self, key: Keys, shape: tuple[int, ...]) -> Data:
        return self.prior_std * draw(jax.random.normal, example_keys(key, shape[0]), shape[1:])


@dataclass(frozen=True)
class _LinearBeta(SDE):
    """beta(t) = beta_min + t (beta_max - beta_min), and its integral B(t)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not (self.beta_min >= 0 and self.beta_max > 0):
            raise ValueError(f"{self}: beta_min must be at least 0, and beta_max above 0")

    @property
    def prior_std(self) -> float:
        return 1.0

    def integrated_beta(self, t: Times) -> Times:
        return self.beta_min * t + (self.beta_max - self.beta_min) * jnp.square(t) / 2

    def time_of_integrated_beta(self, b: Times) -> Times:
        # The root of the quadratic in the form that subtracts nothing.
        root = jnp.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b)
        return 2 * b / (self.beta_min + root)

    def log_alpha(self, t: Times) -> Times:
        return -self.integrated_beta(t) / 2


@dataclass(frozen=True)
class VP(_LinearBeta):
    """Variance preserving: sigma^2 = 1 - alpha^2."""

    def log_snr(self, t: Times) -> Times:
        b = self.integrated_beta(t)
        return -b - log1mexp(b)

    def time_of_log_snr(self, lam: Times) -> Times:
        return self.time_of_integrated_beta(jax.nn.softplus(-lam))


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """Sub-VP: sigma = 1 - alpha^2, a smaller variance than VP at every t < 1."""

    def log_snr(self, t: Times) -> Times:
        b = self.integrated_beta(t)
        return -b - 2 * log1mexp(b)

    def time_of_log_snr(self, lam: Times) -> Times:
        return self.time_of_integrated_beta(2 * jnp.arcsinh(jnp.exp(-lam / 2) / 2))


@dataclass(frozen=True)
class VE(SDE):
    """Variance exploding: sigma geometric from sigma_min to sigma_max."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"{self}: sigma_min must be above 0 and below sigma_max")

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def log_alpha(self, t: Times) -> Times:
        return jnp.zeros_like(t)

    def log_snr(self, t: Times) -> Times:
        return -2 * (jnp.log(self.sigma_min) + t * jnp.log(self.sigma_max / self.sigma_min))

    def time_of_log_snr(self, lam: Times) -> Times:
        log_ratio = jnp.log(self.sigma_max / self.sigma_min)
        return (-lam / 2 - jnp.log(self.sigma_min)) / log_ratio


@dataclass(frozen=True)
class LinearVE(SDE):
    """Variance exploding with sigma = t sigma_max."""

    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not self.sigma_max > 0:
            raise ValueError(f"{self}: sigma_max must be above 0")

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def log_alpha(self, t: Times) -> Times:
        return jnp.zeros_like(t)

    def log_snr(self, t: Times) -> Times:
        return -2 * (jnp.log(t) + jnp.log(self.sigma_max))

    def time_of_log_snr(self, lam: Times) -> Times:
        return jnp.exp(-lam / 2) / self.sigma_max
