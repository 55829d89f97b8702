"""The likelihood as it was published, to compare with: one Runge-Kutta solve on the host.

The ODE dx/dt = f x + g^2 eps / (2 sigma) goes by SciPy's RK45 in t from eps to 1, the whole batch
and its log-densities being one vector with one error norm, the divergence by reverse mode with one
probe held fixed (Song et al., arXiv 2011.13456, and the code of arXiv 2101.09258). There an
image's value depends on its neighbours, and its log-density is one entry among D + 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
from jaxtyping import Float

from scoremle.core.sde import SDE
from scoremle.likelihood.ode import Likelihood
from scoremle.numerics import expand, predict, sum_data
from scoremle.types import Data, NoiseFn, PerExample, Times

__all__ = ["PublishedRK45", "Rates", "published_rates"]

# (x, t, probe) -> dx/dt and the estimate of its divergence
Rates = Callable[[Data, Times, Data], tuple[Data, PerExample]]


def published_rates(noise: NoiseFn, sde: SDE) -> Rates:
    """The probability-flow drift and its divergence by one vector-Jacobian product."""

    def drift(x: Data, t: Times) -> Data:
        weight = sde.g2(t) / (2 * sde.sigma(t))
        return expand(sde.f(t), x) * x + expand(weight, x) * predict(noise, x, t)

    def rates(x: Data, t: Times, probe: Data) -> tuple[Data, PerExample]:
        value, pull = jax.vjp(lambda x: drift(x, t), x)
        return value, sum_data(pull(probe)[0] * probe)

    return rates


@dataclass(frozen=True)
class PublishedRK45:
    """SciPy's RK45 at the published tolerances; state in float64, network as it is."""

    rtol: float = 1e-5
    atol: float = 1e-5

    def log_likelihood(
        self, rates: Rates, sde: SDE, x: Data, probe: Data, *, eps: float
    ) -> Likelihood:
        """log p_eps(x) in nats, by ``rates`` (jitted) that the host calls; not to be traced.

        It knows neither its solver's error nor its probe's: both are NaN.
        """
        batch, shape, count = x.shape[0], x.shape, x.size

        def field(t: float, y: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
            at = jnp.asarray(y[:count].reshape(shape), x.dtype)
            drift, divergence = rates(at, jnp.full(batch, t, x.dtype), probe)
            return np.concatenate([np.ravel(drift), np.ravel(divergence)]).astype(np.float64)

        start = np.concatenate([np.ravel(x).astype(np.float64), np.zeros(batch)])
        solution = scipy.integrate.solve_ivp(
            field, (eps, 1.0), start, method="RK45", rtol=self.rtol, atol=self.atol
        )
        end = solution.y[:, -1]
        latent = jnp.asarray(end[:count].reshape(shape), x.dtype)
        log_prob = sde.prior_log_prob(latent) + jnp.asarray(end[count:], x.dtype)
        ok = jnp.isfinite(log_prob) & bool(solution.success)
        unknown = jnp.full(batch, jnp.nan, x.dtype)
        return Likelihood(
            log_prob=jnp.where(ok, log_prob, jnp.nan),
            latent=latent,
            evaluations=jnp.full(batch, solution.nfev),
            probe_stderr=unknown,
            probe_deviations=unknown[None],
            solver_error=unknown,
            ok=ok,
        )
