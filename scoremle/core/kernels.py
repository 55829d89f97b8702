"""Kernels: what is left of the data, and how much noise there is, at a log-SNR.

    p(x_t | x_0) = N(alpha x_0, sigma^2 I),      lambda = log(alpha^2 / sigma^2)

With s = sigma / alpha = e^(-lambda/2),

                                                                            A + 2 log sigma
    VP         alpha^2 + sigma^2 = 1      alpha = (1 + s^2)^(-1/2)                        0
    sub-VP     alpha^2 + sigma = 1        sigma = 2 s / (s + (s^2 + 4)^(1/2))      -alpha^2
    VE         alpha = 1                                                                  0
    straight   alpha + sigma = 1          alpha = 1 / (1 + s)                      -2 alpha

Alpha and sigma have a form each, so that neither is a difference of large numbers. A(lambda) is
the integral of alpha^2 over lambda.

Sources: Song et al. (arXiv 2011.13456) for the first three; Liu et al. (arXiv 2209.03003) and
Lipman et al. (arXiv 2210.02747) for the last; Zheng et al. (arXiv 2305.03935) for A.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scoremle.numerics import log1mexp
from scoremle.types import Times


class Kernel(NamedTuple):
    """log alpha and sigma at a log-SNR, and the log-SNR at a log alpha (NaN if there is none).

    ``excess`` is A + 2 log sigma, by alpha.
    """

    log_alpha: Callable[[Times], Times]
    sigma: Callable[[Times], Times]
    log_snr: Callable[[Times], Times]
    excess: Callable[[Times], Times] = jnp.zeros_like

    def signal(self, lam: Times) -> Times:
        """A: the integral of alpha^2 up to a log-SNR, but for a constant."""
        return self.excess(jnp.exp(self.log_alpha(lam))) - 2 * jnp.log(self.sigma(lam))


def _subvp_sigma(lam: Times) -> Times:
    s = jnp.exp(-lam / 2)
    return 2 * s / (s + jnp.sqrt(jnp.square(s) + 4))


KERNELS: dict[str, Kernel] = {
    "vp": Kernel(
        lambda lam: -jax.nn.softplus(-lam) / 2,
        lambda lam: jnp.exp(-jax.nn.softplus(lam) / 2),
        lambda log_alpha: 2 * log_alpha - log1mexp(-2 * log_alpha),
    ),
    "subvp": Kernel(
        lambda lam: -jnp.arcsinh(jnp.exp(-lam / 2) / 2),
        _subvp_sigma,
        lambda log_alpha: 2 * log_alpha - 2 * log1mexp(-2 * log_alpha),
        lambda alpha: -jnp.square(alpha),
    ),
    "ve": Kernel(jnp.zeros_like, lambda lam: jnp.exp(-lam / 2), lambda a: a * jnp.nan),
    "straight": Kernel(
        lambda lam: -jax.nn.softplus(-lam / 2),
        lambda lam: jax.nn.sigmoid(-lam / 2),
        lambda log_alpha: 2 * log_alpha - 2 * log1mexp(-log_alpha),
        lambda alpha: -2 * alpha,
    ),
}
