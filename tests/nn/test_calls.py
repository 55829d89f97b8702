"""Blocks as calls give what the blocks themselves give, and equal ones are one function."""

import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoremle.nn import layers
from scoremle.xla import compile_once
from scoremle.zoo import unet2d_fields


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, scale):
        return nn.silu(nn.Dense(self.features)(x)) * scale


class Blocks(nn.Module):
    """Three equal blocks, and one of more features."""

    called: bool
    remat: bool = False

    @nn.compact
    def __call__(self, x, scale):
        for features in (4, 4, 4, 5):
            block = Block(features)
            x = compile_once(block, x, scale, remat=self.remat) if self.called else block(x, scale)
        return x


X, SCALE = jnp.linspace(-1, 1, 12).reshape(3, 4), jnp.float32(0.7)
PARAMS = Blocks(False).init(jax.random.key(0), X, SCALE)


def test_parameters_have_the_names_that_the_blocks_give_them():
    found = Blocks(True).init(jax.random.key(0), X, SCALE)
    jax.tree.map(np.testing.assert_array_equal, found, PARAMS)


@pytest.mark.parametrize("remat", [False, True])
def test_values_and_derivatives_are_those_of_the_blocks(remat):
    def of(network):
        def loss(params, x):
            return jnp.sum(jnp.sin(network.apply(params, x, SCALE)))

        slope = jax.jvp(lambda x: loss(PARAMS, x), (X,), (jnp.ones_like(X),))
        return jax.value_and_grad(loss, (0, 1))(PARAMS, X), slope

    found, expected = of(Blocks(True, remat=remat)), of(Blocks(False))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_equal_blocks_are_one_function_and_stay_calls_on_a_cpu():
    lowered = jax.jit(Blocks(True).apply).lower(PARAMS, X, SCALE)
    assert len(re.findall(r"func\.func private @scoremle_block", lowered.as_text())) == 2
    assert len(re.findall(r" call\(", lowered.compile().as_text())) == 4


class DenseAnd(nn.Module):
    function: Callable

    @nn.compact
    def __call__(self, x, *more):
        return 3 * self.function(2 * nn.Dense(5)(x), *more)


class Called(DenseAnd):
    @nn.compact
    def __call__(self, x, *more):
        return compile_once(DenseAnd(self.function), x, *more)


def kept(function, *more):
    """Types of what a gradient keeps of the features of ``DenseAnd(function)`` as a call."""
    network = Called(function)
    params = network.init(jax.random.key(0), X, *more)
    back = jax.vjp(lambda params, x: network.apply(params, x, *more), params, X)[1]
    return sorted(str(each.dtype) for each in jax.tree.leaves(back) if each.size == 15)


@pytest.mark.parametrize("name", sorted(layers.ACTIVATIONS | unet2d_fields.ACTIVATIONS))
def test_a_gradient_keeps_the_result_of_a_product_and_nothing_of_its_activation(name):
    assert kept((layers.ACTIVATIONS | unet2d_fields.ACTIVATIONS)[name]) == ["float32"]


def test_a_gradient_keeps_what_dropout_keeps_and_not_the_bits_that_drew_it():
    def drop(h, key):
        return layers.drop(jnp.tanh(h)[None, None], 0.5, key)[0, 0]

    assert kept(drop, jax.random.key(1)) == ["bool", "float32"]
