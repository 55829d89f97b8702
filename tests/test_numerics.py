"""Sums and logarithms that keep their digits in float32; predictions of the right shape."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoremle.numerics import compensated_add, log1mexp, not_finite, predict


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


@pytest.mark.parametrize("x", [1e-12, 1e-6, 0.01, 0.7, 30.0])
def test_log1mexp_keeps_its_digits(x):
    assert float(log1mexp(jnp.float32(x))) == pytest.approx(math.log(-math.expm1(-x)), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_array_with_one_bad_number_is_named(bad):
    tree = {"a": jnp.ones(3), "b": {"c": jnp.asarray([0.0, bad, 1.0]), "n": jnp.arange(2)}}
    assert not_finite(tree) == "b/c"
    assert not not_finite({"a": tree["a"], "n": tree["b"]["n"]})


def test_a_prediction_that_would_be_broadcast_is_refused():
    x = jnp.zeros((3, 2))
    with pytest.raises(ValueError, match=r"gives shape \(3, 1\) where x has \(3, 2\)"):
        predict(lambda x, t: x[:, :1], x, jnp.ones(3))
