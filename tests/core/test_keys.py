"""Keys by image: what they depend on, and that a draw depends on its key alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scoremle import VP, Multistep, Pixels, ScoreModel, fit
from scoremle.core.keys import example_keys, image_keys, per_example, split

KEY = jax.random.key(3)


def data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_an_image_keeps_its_key_at_any_place():
    keys = data(image_keys(KEY, np.arange(7)))
    np.testing.assert_array_equal(data(image_keys(KEY, np.array([5, 2]))), keys[[5, 2]])


def test_an_index_has_64_bits():
    far = np.array([3, 3 + 2**32, 3 + 2**63], np.uint64)
    keys = data(image_keys(KEY, far))
    assert len(np.unique(keys, axis=0)) == 3
    by_hand = jax.random.fold_in(jax.random.fold_in(KEY, 2**31), 3)
    np.testing.assert_array_equal(keys[2], data(by_hand))


def test_one_key_gives_one_at_each_place():
    by_hand = [data(jax.random.fold_in(KEY, place)) for place in range(3)]
    np.testing.assert_array_equal(data(example_keys(KEY, 3)), by_hand)
    keys = split(KEY[None], 3)[:, 0]
    np.testing.assert_array_equal(data(example_keys(keys, 3)), data(keys))


def test_a_draw_depends_on_its_key_alone():
    keys = image_keys(KEY, np.arange(5))
    whole = per_example(jax.random.normal, keys, (2, 3))
    np.testing.assert_array_equal(whole[3], jax.random.normal(keys[3], (2, 3)))
    np.testing.assert_array_equal(per_example(jax.random.normal, keys[3:4], (2, 3))[0], whole[3])


def test_split_gives_each_example_its_own():
    keys = image_keys(KEY, np.arange(4))
    first, second = split(keys)
    np.testing.assert_array_equal(data(second)[2], data(jax.random.split(keys[2])[1]))
    assert first.shape == (4,)


def test_other_numbers_of_keys_and_other_generators_are_refused():
    with pytest.raises(ValueError, match="3 examples"):
        example_keys(jax.random.split(KEY, 2), 3)
    with pytest.raises(ValueError, match="threefry2x32"):
        example_keys(jax.random.key(0, impl="rbg"), 3)


def test_what_takes_a_seed_has_the_same_numbers_whatever_the_default_generator_is():
    sde, x = VP(), np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    model = ScoreModel(
        lambda x, t: sde.sigma(t)[:, None] * x, sde, eps=1e-3, shape=(2,), solver=Multistep(4)
    )

    def found():
        def loss(mean, rows, key):
            return jnp.mean(jnp.square(rows + jax.random.normal(key, rows.shape) - mean))

        yield model.profile(x[:3]).bits
        yield jnp.asarray(len(model.check(x)))
        yield jnp.asarray(model.sample(3, KEY))
        images = replace(model, pixels=Pixels(8), shape=(1, 2, 1), noise=lambda x, t: 0 * x)
        yield jnp.asarray(images.score(np.ones((3, 1, 2, 1), np.uint8)).bpd)
        yield fit(loss, jnp.zeros(2), lambda i: x, steps=3, optimizer=optax.sgd(0.1))

    usual = [*found()]
    with jax.default_prng_impl("rbg"):
        jax.tree.map(np.testing.assert_array_equal, [*found()], usual)
