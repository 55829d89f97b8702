"""VDM's network against the authors' numbers, and its tree against the published one."""

import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.places import GOLDEN
from helpers.vdm_networks import golden_vdm

from scoremle.errors import UserError
from scoremle.nn.layers import fourier_features
from scoremle.nn.vdm import VDMNet


@pytest.mark.parametrize("name", ["fourier", "plain_attn"])
def test_golden_network(name, golden):
    """Its output, the derivative in the time input, and a form of the one in the image."""
    arrays = golden("vdm_network")
    z, log_snr, c, v = (jnp.asarray(arrays[k]) for k in ("z", "gamma", "cond", "v"))
    apply = golden_vdm(name)

    @jax.jit
    def measured(z, gamma):
        eps, along = jax.jvp(lambda z: apply(z, -gamma, c), (z,), (v,))
        by_gamma = jax.jvp(lambda g: apply(z, -g, c), (gamma,), (jnp.ones(3),))[1]
        return eps, by_gamma, jnp.sum(v * along, axis=(1, 2, 3))

    found = measured(z, log_snr)
    digits = {"eps_hat": 2e-4, "d_eps_hat_d_gamma": 2e-3, "vJv": 2e-3}
    for key, value in zip(digits, found, strict=True):
        expected = arrays[f"{name}/{key}"]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(value, expected, atol=scale * digits[key], err_msg=key)


@pytest.mark.parametrize("bits", [32, 64])
def test_golden_fourier_features(bits, golden):
    """Exact to rounding, though their arguments reach 800 radians."""
    arrays = golden("vdm_network")
    with jax.enable_x64(bits == 64):
        found = fourier_features(jnp.asarray(arrays["z"][:1], f"float{bits}"))
    digits = 1e-6 if bits == 32 else 1e-9
    np.testing.assert_allclose(found, arrays["fourier_features"], atol=digits)


def shapes(network, size=32):
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((1,), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), x, labels)["params"]
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return {name: list(leaf.shape) for name, leaf in flat.items()}


def test_the_tree_is_the_published_one():
    published = json.loads((GOLDEN / "vdm_shapes.json").read_text())
    of_network = {
        name.removeprefix("score_model/"): shape
        for name, shape in published.items() if name.startswith("score_model/")
    }  # fmt: skip
    assert shapes(VDMNet()) == of_network
    assert sum(map(np.prod, of_network.values())) == 30_578_179  # as i-DODE's


def test_at_first_the_output_is_the_input():
    network, x = VDMNet(32, 1, dropout=0.5), jnp.ones((2, 3, 5, 1))
    params = jax.jit(network.init)(jax.random.key(0), x, jnp.ones(2))
    options = {"train": True, "rngs": {"dropout": jax.random.key(1)}}
    np.testing.assert_array_equal(network.apply(params, x, jnp.ones(2), **options), x)


@pytest.mark.parametrize("fields", [{"nf": 48}, {"nf": 0}, {"num_res_blocks": 0}])
def test_fields_that_cannot_be_had(fields):
    with pytest.raises(UserError, match=next(iter(fields))):
        VDMNet(**fields).init(jax.random.key(0), jnp.ones((1, 2, 2, 1)), jnp.ones(1))
