"""The networks give the published numbers, have the published parameters, name mistakes."""

import functools
import json

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden_networks import NETWORKS, golden, network
from helpers.marks import some
from helpers.places import GOLDEN

from scoremle import xla
from scoremle.errors import UserError
from scoremle.nn import DDPMpp, layers, resample

TINY = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,)}


def run(name, **changes):
    config, params, arrays = golden(name)
    apply = jax.jit(network(config, **changes).apply)
    return np.asarray(apply({"params": params}, arrays["x"], arrays["labels"]))


def relative_error(a, b):
    return np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max()


@some("name", NETWORKS, quick=["ncsnpp_ve", "residual_out", "output_skip", "ddpm_blocks"])
def test_output_is_the_published_one(name):
    out = run(name)
    assert out.dtype == np.float32
    assert relative_error(out, golden(name)[2]["out"]) < (2e-4 if name == "ncsnpp_ve" else 2e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp_ve"])
def test_float64_agrees_with_the_published_network_in_float64(name):
    config, params, arrays = golden(name)
    t, model = arrays["t"].astype(np.float64), config["model"]
    # The labels too in float64: rounded to float32 they alone would make 1e-6 of the output.
    ratio = model["sigma_max"] / model["sigma_min"]
    labels = model["sigma_min"] * ratio**t if name == "ncsnpp_ve" else 999 * t
    with jax.enable_x64(True):
        inputs = {"params": params}, arrays["x"], labels
        lowered = jax.jit(network(config, dtype=jnp.float64).apply).lower(*inputs)
        # The tests' compiler optimises nothing, and its float64 sines keep half the digits.
        compiled = lowered.compile({"xla_backend_optimization_level": 2})
        out = np.asarray(compiled(*inputs))
    assert out.dtype == np.float64
    assert relative_error(out, arrays["out_f64"]) < 1e-13


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_have_the_published_names(name):
    config, params, arrays = golden(name)
    shape = jax.eval_shape(network(config).init, jax.random.key(0), arrays["x"], arrays["labels"])
    expected = jax.tree.map(lambda p: (p.shape, p.dtype), params)
    assert jax.tree.map(lambda p: (p.shape, p.dtype), shape["params"]) == expected


@pytest.mark.parametrize(
    ("file", "blocks"),
    [("ddpmpp_shapes", 4), pytest.param("ddpmpp_deep_shapes", 8, marks=pytest.mark.long)],
)
def test_parameters_of_the_published_cifar10_networks(file, blocks):
    expected = json.loads((GOLDEN / f"{file}.json").read_text())["shapes"]
    args = jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros(1)
    params = jax.eval_shape(DDPMpp(num_res_blocks=blocks).init, *args)["params"]
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    assert {k: list(p.shape) for k, p in flat.items()} == expected


@pytest.mark.parametrize("size", [16, 17, 128])
def test_positional_embedding(size):
    with np.load(GOLDEN / "sde.npz") as arrays:
        labels, expected = arrays["emb_labels"], arrays[f"timestep_embedding/{size}"]
    # Phases reach 999, where float32 is spaced by 6e-5.
    np.testing.assert_allclose(layers.positional_embedding(labels, size), expected, atol=2e-4)


@pytest.mark.parametrize("case", ["case0", "case1", "case2"])
@pytest.mark.parametrize("kernel", [(1, 3, 3, 1), (1, 1)])
def test_fir_resampling(case, kernel):
    with np.load(GOLDEN / "fir.npz") as arrays:
        arrays = {k.removeprefix(f"{case}/"): v for k, v in arrays.items() if case in k}
    x, w = arrays["x"], arrays["w"]
    results = jax.jit(lambda x, w: {
        "upsample_2d": resample.upsample_2d(x, kernel),
        "downsample_2d": resample.downsample_2d(x, kernel),
        "upsample_conv_2d": resample.upsample_conv_2d(x, w, kernel),
        "conv_downsample_2d": resample.conv_downsample_2d(x, w, kernel),
    })(x, w)  # fmt: skip
    suffix = "_nokernel" if kernel == (1, 1) else ""
    checked = [name for name in results if name + suffix in arrays]
    assert checked
    for name in checked:
        assert relative_error(results[name], arrays[name + suffix]) < 2e-6, name


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_naive_resampling(case):
    with np.load(GOLDEN / "fir.npz") as arrays:
        for name in ("naive_upsample_2d", "naive_downsample_2d"):
            out = getattr(resample, name)(arrays[f"{case}/x"])
            assert relative_error(out, arrays[f"{case}/{name}"]) < 2e-6


def rows_of(taps, shape, offset, stride):
    """The matrix M[n, m] = taps[offset + down n - up m], zero beyond the taps."""
    down, up = stride
    n, m = np.indices(shape)
    i = offset + down * n - up * m
    return np.where((i >= 0) & (i < len(taps)), np.take(taps, i, mode="clip"), 0)


def test_an_odd_filter_lies_where_stylegan2_puts_it():
    """Three taps: half a pixel has to be put on one side. By matrices, one for each axis."""
    n, taps, w = 6, np.array([1.0, 2.0, 5.0]), np.array([3.0, -1.0, 2.0])
    k = taps / taps.sum()
    double = 2 * rows_of(k, (2 * n, n), 0, (1, 2))
    halve = rows_of(k, (n // 2, n), 1, (2, 1))
    # The convolution, which is a correlation, before the one and behind the other.
    spread = rows_of(w[::-1], (2 * n + 1, n), 0, (1, 2))
    double_w = 2 * rows_of(k, (2 * n, 2 * n + 1), 1, (1, 1)) @ spread
    halve_w = rows_of(w[::-1], (n // 2, n + 1), 2, (2, 1)) @ rows_of(k, (n + 1, n), 0, (1, 1))
    x = np.random.default_rng(0).normal(size=(n, n))
    image, weight = jnp.asarray(x)[None, :, :, None], jnp.asarray(np.outer(w, w))[..., None, None]
    for out, matrix in (
        (resample.upsample_2d(image, taps), double),
        (resample.downsample_2d(image, taps), halve),
        (resample.upsample_conv_2d(image, weight, taps), double_w),
        (resample.conv_downsample_2d(image, weight, taps), halve_w),
    ):
        np.testing.assert_allclose(out[0, :, :, 0], matrix @ x @ matrix.T, atol=1e-5)


def test_bfloat16_computes_but_parameters_and_output_stay_float32():
    config, _, arrays = golden("output_skip")
    net = network(config, dtype=jnp.bfloat16)
    shape = jax.eval_shape(net.init, jax.random.key(0), arrays["x"], arrays["labels"])
    assert {p.dtype for p in jax.tree.leaves(shape)} == {jnp.dtype("float32")}
    out, expected = run("output_skip", dtype=jnp.bfloat16), arrays["out"]
    assert out.dtype == np.float32
    assert 1e-5 < np.std(out - expected) / np.std(expected) < 0.05


def test_output_is_almost_zero_at_initialisation():
    net = DDPMpp(**TINY | {"ch_mult": (1,), "attn_resolutions": ()})
    x, labels = jax.random.normal(jax.random.key(1), (2, 8, 8, 3)), jnp.array([1.0, 999.0])
    # "rbg" keys: the compiler takes seconds over one threefry generator per parameter.
    out, params = jax.jit(net.init_with_output)(jax.random.key(0, impl="rbg"), x, labels)
    assert jnp.abs(out).max() < 1e-4
    kernel = params["params"]["Conv_0"]["kernel"]  # uniform, variance 2 / (fan_in + fan_out)
    assert jnp.abs(kernel).max() == pytest.approx((6 / (9 * (3 + 8))) ** 0.5, rel=0.05)


def test_dropout_acts_in_training_only():
    config, params, arrays = golden("ddpmpp")
    net = network(config, dropout=0.5)
    apply = jax.jit(functools.partial(net.apply, {"params": params}, train=True))

    def trained(seed):
        return apply(arrays["x"], arrays["labels"], rngs={"dropout": jax.random.key(seed)})

    assert relative_error(run("ddpmpp", dropout=0.5), arrays["out"]) < 2e-5
    np.testing.assert_array_equal(trained(0), trained(0))
    assert relative_error(trained(0), arrays["out"]) > 1e-2
    assert relative_error(trained(0), trained(1)) > 1e-2


def test_each_block_drops_by_a_key_of_its_own(monkeypatch):
    keys, config = [], TINY | {"dropout": 0.5}
    monkeypatch.setattr(layers, "drop", lambda h, rate, key: keys.append(key) or h)
    net, x, t = DDPMpp(**config), jnp.zeros((1, 8, 8, 3)), jnp.ones(1)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    jax.eval_shape(lambda: net.init(rngs, x, t))  # without training: none is drawn
    assert keys and set(keys) == {None}
    keys.clear()

    @jax.jit
    def drawn():
        net.init(rngs, x, t, train=True)
        return jnp.stack([jax.random.key_data(key) for key in keys])

    found = drawn()
    assert len(np.unique(found, axis=0)) == len(found) > 5


def test_what_is_dropped_is_the_share_that_flax_drops():
    key, h = jax.random.key(3), jax.random.normal(jax.random.key(4), (3, 5, 7, 2))
    expected = nn.Dropout(0.3, deterministic=False).apply({}, h, rng=key)
    np.testing.assert_allclose(layers.drop(h, 0.3, key), expected, rtol=1e-6)
    assert layers.drop(h, 0.3, None) is h and layers.drop(h, 0.0, key) is h


@pytest.mark.long
def test_what_a_gradient_computes_again_saves_memory_and_changes_no_number(monkeypatch):
    """Elementwise work on a CPU, and with ``remat`` all of a block."""
    small = TINY | {"ch_mult": (1,), "attn_resolutions": (), "dropout": 0.5, "init_scale": 1.0}
    x, labels = jax.random.normal(jax.random.key(1), (4, 8, 8, 3)), jnp.arange(4.0)
    params = jax.jit(DDPMpp(**small).init)(jax.random.key(0, impl="rbg"), x, labels)
    found, memory = [], []
    for remat, everything in [(False, True), (False, False), (True, False)]:
        with monkeypatch.context() as patch:
            if everything:
                patch.setattr(xla, "_what_is_dear", lambda *_, **__: True)
            net = DDPMpp(**small, remat=remat)

            def loss(params, net=net):
                rngs = {"dropout": jax.random.key(0)}
                out = net.apply(params, x, labels, train=True, rngs=rngs)
                return jnp.mean(out**2)

            program = jax.jit(jax.grad(loss)).lower(params).compile()
        found.append(program(params))
        memory.append(program.memory_analysis().temp_size_in_bytes)
    assert memory[2] < memory[1] < 0.8 * memory[0], memory
    kept, *again = map(jax.tree.leaves, found)
    largest = max(jnp.abs(a).max() for a in kept)
    for other in again:
        assert max(jnp.abs(a - b).max() for a, b in zip(kept, other, strict=True)) < 1e-5 * largest


def test_an_unconditional_network_does_not_read_the_labels():
    config, params, arrays = golden("ddpmpp")
    net = network(config, conditional=False)
    apply = jax.jit(functools.partial(net.apply, {"params": params}))
    np.testing.assert_array_equal(
        apply(arrays["x"], arrays["labels"]), apply(arrays["x"], arrays["labels"] / 2)
    )
    shape = jax.eval_shape(net.init, jax.random.key(0), arrays["x"], arrays["labels"])
    assert not any("Dense" in path for path in flax.traverse_util.flatten_dict(shape, sep="/"))


@pytest.mark.long
def test_forward_and_reverse_derivatives_agree():
    net = DDPMpp(**TINY, fir=True, progressive="residual", init_scale=1.0)
    x, u, v = jax.random.normal(jax.random.key(2), (3, 2, 8, 8, 3))
    labels = jnp.array([1.0, 999.0])
    params = jax.jit(net.init)(jax.random.key(0, impl="rbg"), x, labels)

    @jax.jit
    def both(x):
        f = functools.partial(net.apply, params, labels=labels)
        _, forward = jax.jvp(f, (x,), (u,))
        (reverse,) = jax.vjp(f, x)[1](v)
        return jnp.vdot(v, forward), jnp.vdot(reverse, u), jnp.linalg.norm(v * forward)

    a, b, scale = both(x)
    assert abs(a - b) < 1e-4 * scale


@pytest.mark.parametrize(
    ("fields", "shape", "words"),
    [
        ({"resblock_type": "resnet"}, (8, 8, 3), "resblock_type.*'resnet'.*ddpm, biggan"),
        ({"progressive": "skip"}, (8, 8, 3), "progressive .*output_skip"),
        ({"progressive_input": "x"}, (8, 8, 3), "none, input_skip, residual"),
        ({"progressive_combine": "x"}, (8, 8, 3), "progressive_combine.*sum, cat"),
        ({"embedding_type": "x"}, (8, 8, 3), "embedding_type.*positional, fourier"),
        ({"nonlinearity": "gelu"}, (8, 8, 3), "'gelu'.*swish"),
        ({"scale_by_sigma": True}, (8, 8, 3), "set scale_by_sigma=False"),
        ({"log_labels": True}, (8, 8, 3), "embedding_type='fourier'"),
        ({"nf": 3}, (8, 8, 3), "nf must"),
        ({"ch_mult": (1, 0)}, (8, 8, 3), "ch_mult must"),
        ({"ch_mult": (1.5,)}, (8, 8, 3), "ch_mult must"),
        ({"dropout": 1.0}, (8, 8, 3), "dropout must"),
        ({"dropout": -0.1}, (8, 8, 3), "dropout must"),
        ({"nf": 18}, (8, 8, 3), "18 channels"),
        ({"ch_mult": (1, 2, 2)}, (30, 30, 3), "30x30.*2 times"),
        ({}, (8, 16, 3), "8x16.*square"),
    ],
)
def test_mistakes_are_named(fields, shape, words):
    net = DDPMpp(**TINY | fields)
    with pytest.raises(UserError, match=words) as error:
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.ones(1))
    assert "\n" not in str(error.value)


def test_three_levels_take_images_of_28():
    net = DDPMpp(**TINY | {"ch_mult": (1, 1, 1), "attn_resolutions": (14, 7)})
    args = jax.random.key(0), jnp.zeros((1, 28, 28, 1)), jnp.ones(1)
    out, params = jax.eval_shape(net.init_with_output, *args)
    assert out.shape == (1, 28, 28, 1)
    # One on the way down and one on the way up at each of 14 and 7, and the middle.
    assert sum(name.startswith("AttnBlockpp") for name in params["params"]) == 5


@pytest.mark.long
def test_fourier_features_of_the_image_are_seen_by_the_first_layer_alone():
    """It has five channels for each of the image's, and learns from the last bits of a pixel."""
    small = {"nf": 8, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": ()}
    net, x = DDPMpp(**small, fourier_features=True, init_scale=1.0), jnp.zeros((1, 4, 4, 3))
    t = jnp.ones(1)
    params = net.init(jax.random.key(0), x, t)["params"]
    plain = DDPMpp(**small, init_scale=1.0).init(jax.random.key(0), x, t)["params"]
    shapes, others = (jax.tree.map(jnp.shape, tree) for tree in (params, plain))
    assert shapes["Conv_0"].pop("kernel") == (3, 3, 15, 8)
    assert others["Conv_0"].pop("kernel") == (3, 3, 3, 8) and shapes == others
    kernel = params["Conv_0"]["kernel"].at[:, :, :3].set(0)
    params = {**params, "Conv_0": {**params["Conv_0"], "kernel": kernel}}
    found = [net.apply({"params": params}, x + shift, t) for shift in (0, 1 / 64, 1 / 256)]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)  # a whole turn of both waves
    assert jnp.abs(found[0] - found[2]).max() > 1e-3
