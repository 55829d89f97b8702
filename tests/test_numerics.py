"""Sums and logarithms that keep their digits in float32; predictions of the right shape."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoremle.core.condition import Conditioned
from scoremle.core.prediction import noise_fn
from scoremle.core.sde import VP
from scoremle.errors import UserError
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


@pytest.mark.parametrize(
    ("output", "words"),
    [(lambda x: x[:, :1], r"shape \(3, 1\)"), (lambda x: None, "None"), (lambda x: 0.0, "a float"),
     (lambda x: [x], "a list"), (lambda x: x.astype(int), "int32")],
)  # fmt: skip
def test_an_output_that_would_be_broadcast_is_refused(output, words):
    """The function is named, also where it is within others."""
    x, t, sde = jnp.zeros((3, 2)), jnp.full(3, 0.5), VP()

    def mine(x, t, *_):
        return output(x)

    network = jax.tree_util.Partial(mine)
    for noise in (mine, network, *(noise_fn(network, sde, prediction=p) for p in ("x_0", "edm"))):
        where = rf"mine \({__file__}, .*{words}"
        with pytest.raises(UserError, match=where):
            predict(noise, x, t)
    with pytest.raises(UserError, match="Odd gives None"):
        predict(Odd(), x, t)


class Odd:
    def __call__(self, x, t):
        return None


def test_a_function_that_takes_other_arguments_is_named():
    x, t, sde = jnp.zeros((3, 2)), jnp.full(3, 0.5), VP()
    of_one, of_three = lambda x: x, lambda x, t, condition: x
    for mine in (of_one, jax.jit(of_one), jax.tree_util.Partial(of_one), of_three):
        for noise in (mine, noise_fn(mine, sde), noise_fn(mine, sde, prediction="edm")):
            with pytest.raises(UserError, match=rf"lambda> \({__file__}"):
                predict(noise, x, t)
    with pytest.raises(UserError, match="3 arguments"):
        predict(Conditioned(Odd(), x), x, t)
    with pytest.raises(UserError, match="gives a zip"):
        predict(zip, x, t)  # without a signature
