"""The probability-flow ODE, with log-SNR as its clock and coordinates in which it is gentle.

With s = sigma / alpha = e^(-lambda/2), the ODE of Song et al. (arXiv 2011.13456, equation 13) is
d(x/alpha)/ds = eps(x, t) for every SDE here. In the coordinates

    u = x / rho,     rho = alpha r,     r^2 = v + s^2,     v about the variance of the data

it becomes

    du/d lambda = -s / (2 r) (eps - eps_v),        eps_v = s u / r

where eps_v is the optimal noise prediction for Gaussian data of variance v. What is left is of
order one in the middle and fades at both ends: nothing is stiff, and all four SDEs are the same
problem. The density of x follows from that of u: log p(x) = log p(u) - D log rho.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scoremle.core.divergence import DivergenceEstimator, Probes
from scoremle.core.sde import SDE
from scoremle.numerics import check_eps, expand, predict
from scoremle.types import Data, NoiseFn, Times

__all__ = ["DATA_VARIANCE", "ProbabilityFlow"]

# Any value gives the same likelihood; this one, about that of images scaled to [-1, 1], gives it
# soon.
DATA_VARIANCE = 0.5
# The clock c = asinh(lambda / WIDTH) is even where the field moves, and runs fast beyond.
WIDTH = 3.0


@dataclass(frozen=True)
class ProbabilityFlow:
    """The field du/dc of a noise prediction, on the clock c."""

    noise: NoiseFn
    sde: SDE
    variance: float = DATA_VARIANCE

    def log_rho(self, t: Times) -> Times:
        """Logarithm of the scale of the coordinates, x = rho u."""
        return jnp.log(self._rho(t))

    def _rho(self, t: Times) -> Times:
        # alpha r, whose factors may be beyond the range of floats.
        return jnp.sqrt(self.variance * self.sde.alpha(t) ** 2 + self.sde.sigma(t) ** 2)

    def velocity(self, clock: Times, u: Data) -> Data:
        """du/dc."""
        lam = WIDTH * jnp.sinh(clock)
        speed = WIDTH * jnp.cosh(clock)
        t = self.sde.time_of_log_snr(lam)
        # s / r; s itself may be beyond the range of floats.
        ratio = jax.lax.rsqrt(1 + self.variance * jnp.exp(lam))
        x = expand(self._rho(t), u) * u
        excess = predict(self.noise, x, t) - expand(ratio, u) * u
        return expand(-speed * ratio / 2, u) * excess

    def velocity_and_divergence(
        self, clock: Times, u: Data, estimator: DivergenceEstimator, probes: Probes
    ) -> tuple[Data, Float[Array, "m b"]]:
        """du/dc and the estimates of its divergence."""
        return estimator(lambda v: self.velocity(clock, v), u, probes)

    def log_density_gradient(self, clock: Times, u: Data, velocity: Data) -> Data:
        """grad log p(u), from the velocity there: what an error in u does to the likelihood.

        As far as the noise prediction is the gradient of a density.
        """
        lam = WIDTH * jnp.sinh(clock)
        factor = 2 * (1 + self.variance * jnp.exp(lam)) / (WIDTH * jnp.cosh(clock))
        return expand(factor, u) * velocity - u

    def span(self, eps: float) -> tuple[float, float]:
        """The clock at t = eps and at t = 1, as numbers that a solver can plan with."""
        check_eps(eps)
        with jax.ensure_compile_time_eval():
            lam = self.sde.log_snr(jnp.asarray([eps, 1.0]))
            data, prior = jnp.arcsinh(lam / WIDTH)
            return float(data), float(prior)
