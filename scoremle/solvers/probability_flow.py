"""The probability-flow ODE, with log-SNR as its clock and coordinates in which it is gentle.

With s = sigma / alpha = e^(-lambda/2), the ODE of Song et al. (arXiv 2011.13456, equation 13) is
d(x/alpha)/ds = eps(x, t) for every SDE here. In the coordinates

    u = x / rho,     rho = alpha r,     r^2 = v + s^2,     v about the variance of the data

it becomes

    du/d lambda = -s / (2 r) (eps - eps_v),        eps_v = s u / r

where eps_v is the optimal noise prediction for Gaussian data of variance v. What is left is of
order one in the middle and fades at both ends: nothing is stiff, and all SDEs are the same
problem. The density of x follows from that of u: log p(x) = log p(u) - D log rho.

Where lambda is a number for each dimension, so are s, r and rho, the last term is a sum over them,
and the clock is t.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from scoremle.core.divergence import DivergenceEstimator, Estimates, Probes
from scoremle.core.sde import SDE, check_eps
from scoremle.numerics import expand, predict, within_forms
from scoremle.types import Data, NoiseFn, Scalar, Times

__all__ = ["ProbabilityFlow"]

# v. Any value gives the same likelihood; this one, about that of images scaled to [-1, 1], gives
# it soon.
VARIANCE = 0.5
# The clock c = asinh(lambda / WIDTH) is even where the field moves, and runs fast beyond.
WIDTH = 3.0


@dataclass(frozen=True)
class ProbabilityFlow:
    """The field du/dc of a noise prediction, on the clock c: asinh(lambda / 3), or t.

    Args:
        noise: eps(x, t).
        sde: the SDE that it belongs to.
    """

    noise: NoiseFn
    sde: SDE

    def log_rho(self, t: Times) -> Times:
        """Logarithm of the scale of the coordinates, x = rho u.

        Args:
            t: [b] times.
        """
        return jnp.log(self._rho(t))

    def _rho(self, t: Times) -> Times:
        # alpha r, whose factors may be beyond the range of floats.
        return jnp.sqrt(VARIANCE * self.sde.alpha(t) ** 2 + self.sde.sigma(t) ** 2)

    def _at(self, clock: Times) -> tuple[Times, Times, Times]:
        """t, lambda, and d lambda/dc."""
        if self.sde.schedule.per_dimension:
            return clock, *jax.jvp(self.sde.log_snr, (clock,), (jnp.ones_like(clock),))
        lam = WIDTH * jnp.sinh(clock)
        return self.sde.time_of_log_snr(lam), lam, WIDTH * jnp.cosh(clock)

    def velocity(self, clock: Times, u: Data) -> Data:
        """du/dc.

        Args:
            clock: [b].
            u: [b *d] the state.
        """
        t, lam, speed = self._at(clock)
        # s / r; s itself may be beyond the range of floats.
        ratio = jax.lax.rsqrt(1 + VARIANCE * jnp.exp(lam))
        x = expand(self._rho(t), u) * u
        excess = predict(self.noise, x, t) - expand(ratio, u) * u
        return expand(-speed * ratio / 2, u) * excess

    def velocity_and_divergence(
        self, clock: Times, u: Data, estimator: DivergenceEstimator, probes: Probes
    ) -> Estimates:
        """du/dc, and the estimates of its divergence with their parts.

        Args:
            clock: [b].
            u: [b *d] the state.
            estimator: of the divergence.
            probes: what it drew.
        """
        # Only numbers are around the network where all dimensions share their log-SNR.
        shared = not self.sde.schedule.per_dimension
        flow = replace(self, noise=within_forms(self.noise)) if shared else self
        return estimator(lambda v: flow.velocity(clock, v), u, probes)

    def log_density_gradient(self, clock: Times, u: Data, velocity: Data) -> Data:
        """grad log p(u), from the velocity there: what an error in u does to the likelihood.

        It holds where the noise prediction is the gradient of a density.

        Args:
            clock: [b].
            u: [b *d] the state.
            velocity: [b *d] du/dc.
        """
        _, lam, speed = self._at(clock)
        # Where lambda does not change, the velocity is zero and of no use.
        factor = 2 * (1 + VARIANCE * jnp.exp(lam)) / (speed + (speed == 0))
        return expand(factor, u) * velocity - u

    def span(self, eps: Scalar, dtype: DTypeLike) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The clock at t = eps and at t = 1.

        Args:
            eps: the smallest time.
            dtype: of the clock.

        Raises UserError for an eps that the SDE does not have.
        """
        check_eps(self.sde, eps)
        ends = jnp.asarray([eps, 1.0], dtype)
        if not self.sde.schedule.per_dimension:
            ends = jnp.arcsinh(self.sde.log_snr(ends) / WIDTH)
        return ends[0], ends[1]
