"""The reference's perturbation kernels, which are of first order where t is small."""

import jax.numpy as jnp

from helpers.oracles import SDES
from scoremle.core.sde import VP, SubVP


def first_order(b, exact, limit):
    """The reference's kernels: the first-order expansion of 1 - e^-b for small b."""
    return jnp.where(b <= limit, b, exact)


class ReferenceVP(VP):
    def sigma(self, t):
        b = -2 * self.log_alpha(t)
        return jnp.sqrt(first_order(b, -jnp.expm1(-b), 2e-3))

    def likelihood_weight(self, t):
        return (self.beta_min + t * (self.beta_max - self.beta_min)) / self.sigma(t) ** 2


class ReferenceSubVP(SubVP):
    def sigma(self, t):
        b = -2 * self.log_alpha(t)
        return first_order(b, -jnp.expm1(-b), 2e-3)

    def likelihood_weight(self, t):
        b, beta = -2 * self.log_alpha(t), self.beta_min + t * (self.beta_max - self.beta_min)
        return beta * first_order(2 * b, -jnp.expm1(-2 * b), 1e-3) / self.sigma(t) ** 2


REFERENCE = {"vp": ReferenceVP(), "subvp": ReferenceSubVP(), "ve": SDES["ve"]}

