"""ADM gives what improved and guided diffusion give, has a derivative, and names mistakes."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from helpers.weights import drawn

from scoremle.errors import UserError
from scoremle.zoo.adm import ADM, DEFAULT_MULTIPLES, adm_params

GOLDEN = (
    "improved",
    "improved_no_scale_shift",
    "guided",
    "guided_new_order",
    "guided_legacy_order",
    "guided_half",
)
TINY = {
    "image_size": 8,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "4",
}
ADM_FLAGS = {
    "attention_resolutions": "32,16,8",
    "class_cond": True,
    "diffusion_steps": 1000,
    "learn_sigma": True,
    "num_head_channels": 64,
    "num_res_blocks": 2,
    "resblock_updown": True,
    "use_fp16": True,
    "use_scale_shift_norm": True,
}
# From the two repositories' instructions, with the numbers of parameters there.
PUBLISHED = {
    "improved 32": (52_546_438, {
        "image_size": 32, "num_channels": 128, "num_res_blocks": 3, "learn_sigma": True,
        "dropout": 0.3,
    }),
    "improved 64, conditional": (273_049_350, {
        "image_size": 64, "num_channels": 192, "num_res_blocks": 3, "learn_sigma": True,
        "class_cond": True,
    }),
    "improved 256": (113_676_678, {
        "image_size": 256, "num_channels": 128, "num_res_blocks": 2, "num_heads": 1,
        "learn_sigma": True, "use_scale_shift_norm": False, "attention_resolutions": "16",
    }),
    "guided 64": (295_904_454, ADM_FLAGS | {
        "image_size": 64, "num_channels": 192, "num_res_blocks": 3,
        "use_new_attention_order": True, "noise_schedule": "cosine",
    }),
    "guided 128": (421_529_606, ADM_FLAGS | {
        "image_size": 128, "num_channels": 256, "num_heads": 4, "num_head_channels": -1,
    }),
    "guided 256": (553_838_086, ADM_FLAGS | {"image_size": 256, "num_channels": 256}),
    "guided 512": (558_997_638, ADM_FLAGS | {"image_size": 512, "num_channels": 256}),
}  # fmt: skip


@functools.cache
def published(name, golden):
    arrays = golden(f"adm_{name}")
    return json.loads(str(arrays["flags"])), drawn(json.loads(str(arrays["shapes"]))), arrays


def relative_error(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@some("name", GOLDEN, quick=["guided_legacy_order"])
def test_output_is_the_published_one(name, golden):
    flags, tensors, arrays = published(name, golden)
    network = ADM.from_flags(flags)
    params = {"params": adm_params(tensors, network)}
    labels = arrays.get("class_labels")
    out = np.asarray(jax.jit(network.apply)(params, arrays["x"], arrays["t"], labels))
    assert relative_error(out, arrays["out"]) < 1e-5


def test_the_size_of_images_sets_the_channels():
    assert DEFAULT_MULTIPLES == {
        512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4),
        64: (1, 2, 3, 4), 32: (1, 2, 2, 2),
    }  # fmt: skip


# These two have every kind of layer that the others have.
QUICK = ("guided 64",)


@some("name", PUBLISHED, quick=QUICK)
def test_networks_have_their_published_sizes(name):
    number, flags = PUBLISHED[name]
    network = ADM.from_flags(flags)
    inputs = jnp.zeros((1, flags["image_size"], flags["image_size"], 3)), jnp.zeros(1)
    labels = (jnp.zeros(1, int),) if network.class_cond else ()
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs, *labels)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == number


@pytest.mark.long
def test_derivative_agrees_with_differences(golden, x64):
    flags, tensors, arrays = published("guided_new_order", golden)
    network = ADM.from_flags(flags).clone(dtype=jnp.float64)
    params = {"params": adm_params(tensors, network)}
    x = arrays["x"].astype(np.float64)
    v = np.random.RandomState(2).standard_normal(x.shape)

    def apply(x):
        return network.apply(params, x, arrays["t"])[..., :3]

    value_and_jv = jax.jit(lambda x: jax.jvp(apply, (x,), (v,)))
    jv = value_and_jv(x)[1]
    assert jv.dtype == jnp.float64
    step = 1e-5
    differences = (value_and_jv(x + step * v)[0] - value_and_jv(x - step * v)[0]) / (2 * step)
    np.testing.assert_allclose(np.vdot(v, jv), np.vdot(v, differences), rtol=1e-7)


def test_flags_without_effect_are_not_checked():
    ADM.from_flags(TINY | {"num_heads": 0, "num_head_channels": 16, "num_classes": 0})


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("large_size", {"large_size": 256}),
        ("image_size is", {"channel_mult": ""}),
        ("num_head_channels, if", {"num_head_channels": 0}),
        ("num_heads must", {"num_heads": 0, "num_head_channels": -1}),
        ("num_heads_upsample, if", {"num_heads_upsample": -2, "num_head_channels": -1}),
        ("num_classes must", {"num_classes": -1, "class_cond": True}),
        ("attention_resolutions is '4;2'", {"attention_resolutions": "4;2"}),
    ],
)
def test_flags_that_are_not_known_are_named(words, flags):
    with pytest.raises(UserError, match=words):
        ADM.from_flags(TINY | flags)


@pytest.mark.parametrize(
    ("words", "flags", "change"),
    [
        ("1 channels", {}, {"x": jnp.zeros((2, 8, 8, 1))}),
        ("multiples of 2", {}, {"x": jnp.zeros((2, 7, 8, 3))}),
        ("no class labels", {}, {"class_labels": jnp.zeros(2, int)}),
        ("needs class labels", {"class_cond": True}, {}),
        ("3 equal heads", {"num_heads": 3}, {}),
        ("0 equal heads", {"num_head_channels": 128}, {}),
        ("32 equal groups", {"num_channels": 48}, {}),
    ],
)
def test_what_does_not_go_together_is_named(words, flags, change):
    inputs = {"x": jnp.zeros((2, 8, 8, 3)), "t": jnp.zeros(2)} | change
    with pytest.raises(UserError, match=words):
        jax.eval_shape(ADM.from_flags(TINY | flags).init, jax.random.key(0), **inputs)


def test_tensors_that_do_not_fit_are_named(golden):
    flags, tensors, _ = published("guided", golden)
    name = "middle_block.1.qkv.weight"
    with pytest.raises(UserError, match=f"missing, .*{name}"):
        adm_params({k: v for k, v in tensors.items() if k != name}, ADM.from_flags(flags))
    with pytest.raises(UserError, match="2 without"):
        adm_params(tensors | {"z": tensors[name]}, ADM.from_flags(flags | {"class_cond": False}))
    with pytest.raises(UserError, match=r"\(10, 128\)"):
        adm_params(tensors, ADM.from_flags(flags | {"num_classes": 10}))
