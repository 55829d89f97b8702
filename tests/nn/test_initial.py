"""Initial kernels are flax's to the last bit, and few programs draw them."""

import jax
import numpy as np
import pytest
from flax.linen import initializers

from scoremle.nn import initial

SHAPES = [(3, 3, 4, 6), (3, 3, 160, 130), (1, 1, 7, 3), (128, 33), (1, 5)]


@pytest.mark.parametrize("generator", ["rbg", "threefry2x32"])
@pytest.mark.parametrize("scale", [1.0, 0.3, 0.0])
def test_the_numbers_are_those_of_flax(generator, scale):
    flax = initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")
    begin = initial.initializer(scale)
    for shape in SHAPES:
        key = jax.random.key(5, impl=generator)
        expected = flax(key, shape)
        found = begin(key, shape)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(jax.jit(begin, static_argnums=1)(key, shape), expected)


def test_small_kernels_share_a_program():
    initial._draw.clear_cache()
    for shape in [(3, 3, 4, 6), (1, 1, 7, 3), (128, 33)]:
        initial.initializer()(jax.random.key(0), shape)
    assert initial._draw._cache_size() == 1
