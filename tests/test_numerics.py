"""Sums that keep their digits in float32."""

import jax
import jax.numpy as jnp
import numpy as np

from scoremle.numerics import compensated_add


def test_a_long_compensated_sum_keeps_its_digits():
    terms = np.random.default_rng(0).uniform(size=100_000).astype(np.float32)

    @jax.jit
    def sums(terms):
        def add(carry, term):
            return (*compensated_add(*carry[:2], term), carry[2] + term), None

        return jax.lax.scan(add, (jnp.float32(0),) * 3, terms)[0]

    exact = terms.sum(dtype=np.float64)
    total, _, plain = (float(value) for value in sums(terms))
    spacing = np.spacing(np.float32(exact))
    assert abs(total - exact) <= spacing
    assert abs(plain - exact) > 20 * spacing  # so that it was a test
