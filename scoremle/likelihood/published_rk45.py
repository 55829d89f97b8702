"""The likelihood as it was published, to compare with: one Runge-Kutta solve on the host.

The ODE dx/dt = f x + g^2 eps / (2 sigma) goes by SciPy's RK45 in t from eps to 1, the whole batch
and its log-densities being one vector with one error norm, the divergence by reverse mode with one
probe held fixed (Song et al., arXiv 2011.13456, and the code of arXiv 2101.09258). There an
image's value depends on its neighbours, and its log-density is one entry among D + 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scoremle.core.arguments import check_number
from scoremle.core.programs import OfModels
from scoremle.core.pytree import frozen_static
from scoremle.core.sde import SDE, check_eps
from scoremle.errors import UserError
from scoremle.likelihood.record import Likelihood
from scoremle.numerics import as_pytree, expand, predict, sum_data
from scoremle.types import Data, NoiseFn, PerExample, Scalar, Times

__all__ = ["PublishedRK45"]


def published_rates(
    noise: NoiseFn, sde: SDE, x: Data, t: Times, probe: Data
) -> tuple[Data, PerExample]:
    """The probability-flow drift and its divergence by one vector-Jacobian product."""

    def drift(x: Data) -> Data:
        weight = sde.g2(t) / (2 * sde.sigma(t))
        return expand(sde.f(t), x) * x + expand(weight, x) * predict(noise, x, t)

    value, pull = jax.vjp(drift, x)
    return value, sum_data(pull(probe)[0] * probe)


_rates = OfModels(published_rates)


@frozen_static
class PublishedRK45:
    """SciPy's RK45 at the published tolerances; state in float64, network as it is.

    Args:
        rtol: relative tolerance.
        atol: absolute tolerance.

    Raises UserError for a tolerance that is not above 0.
    """

    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        check_number("rtol", self.rtol, above=0)
        check_number("atol", self.atol, above=0)

    def log_likelihood(
        self, noise: NoiseFn, sde: SDE, x: Data, probe: Data, *, eps: Scalar
    ) -> Likelihood:
        """log p_eps(x) in nats. The solver's error and the probe's are unknown: both are NaN.

        Args:
            noise: eps(x, t).
            sde: the SDE that it belongs to.
            x: [b *d] data.
            probe: [b *d] of the trace, held along the path.
            eps: the smallest time.

        Raises UserError where it is traced: it runs on the host.
        """
        from scipy.integrate import solve_ivp  # slow to import, and seldom needed

        if isinstance(x, jax.core.Tracer):
            raise UserError("PublishedRK45 runs on the host: call it outside of jit and grad")
        check_eps(sde, eps)
        noise = as_pytree(noise)
        batch, shape, count = x.shape[0], x.shape, x.size
        # From a rate that is not finite SciPy would try steps for ever: such numbers are held.
        moves = np.ones(count + batch, bool)

        def field(t: float, y: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
            at = jnp.asarray(y[:count].reshape(shape), x.dtype)
            times = jnp.full(batch, t, x.dtype)
            drift, divergence = _rates(noise, sde, at, times, probe)
            rates = np.concatenate([np.ravel(drift), np.ravel(divergence)]).astype(np.float64)
            if t == float(eps):
                moves[:] = np.isfinite(rates)
            return np.where(moves, rates, 0)

        start = np.concatenate([np.ravel(x).astype(np.float64), np.zeros(batch)])
        solution = solve_ivp(
            field, (eps, 1.0), start, method="RK45", rtol=self.rtol, atol=self.atol
        )
        end = solution.y[:, -1]
        latent = jnp.asarray(end[:count].reshape(shape), x.dtype)
        log_prob = sde.prior_log_prob(latent) + jnp.asarray(end[count:], x.dtype)
        ok = jnp.isfinite(log_prob) & bool(solution.success)
        ok &= moves[:count].reshape(shape).all(axis=tuple(range(1, x.ndim))) & moves[count:]
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
