"""UNet2D gives what diffusers' UNet2DModel gives, has a derivative, and names mistakes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.marks import some

from scoremle.errors import UserError
from scoremle.zoo.blocks import timestep_embedding
from scoremle.zoo.unet2d import Learned, UNet2D, unet2d_params

# Two levels, one layer each, and so few pixels that it compiles in a second.
TINY = {
    "sample_size": 8,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
# As the files of google/ddpm-cifar10-32 say it, but for the sizes.
OLD = TINY | {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "out_channels": 3,
    "time_embedding_type": "positional",
}
# As those of google/ncsnpp-church-256.
NCSNPP = TINY | {
    "attention_head_dim": None,
    "block_out_channels": [32, 64, 64],
    "center_input_sample": True,
    "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"],
    "mid_block_scale_factor": 2**0.5,
    "norm_eps": 1e-6,
    "norm_num_groups": None,
    "time_embedding_type": "fourier",
    "up_block_types": ["SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"],
}
CONFIGS = {
    "defaults": TINY,
    "old": OLD,
    "ncsnpp": NCSNPP,
    "attention everywhere, resampled in residual blocks": TINY | {
        "down_block_types": ["AttnDownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["ResnetUpsampleBlock2D", "AttnUpBlock2D", "AttnUpBlock2D"],
        "block_out_channels": [32, 32, 64],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "attention_head_dim": 16,
        "resnet_time_scale_shift": "scale_shift",
        "act_fn": "mish",
        "dropout": 0.5,
    },
    "attention resampled by convolutions": TINY | {
        "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D"],
        "layers_per_block": 2,
        "attention_head_dim": 24,  # does not divide the channels: heads that leave some out
        "norm_num_groups": 8,
        "attn_norm_num_groups": 4,
        "mid_block_scale_factor": 1.5,
        "act_fn": "gelu",
    },
    "no middle": TINY | {"mid_block_type": None, "act_fn": "relu", "time_embedding_dim": 40},
    "no attention in the middle": TINY | {
        "add_attention": False, "norm_eps": 1e-3, "in_channels": 1, "out_channels": 2,
    },
    "skip blocks last": TINY | {
        "down_block_types": ["SkipDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnSkipUpBlock2D"],
        "center_input_sample": True,
    },
    "k": TINY | {
        "down_block_types": ["KDownBlock2D", "KDownBlock2D"],
        "up_block_types": ["KUpBlock2D", "KUpBlock2D"],
        "layers_per_block": 2,
        "act_fn": "gelu",
    },
    "k, one layer": TINY | {
        "down_block_types": ["KDownBlock2D", "KDownBlock2D", "KDownBlock2D"],
        "up_block_types": ["KUpBlock2D", "KUpBlock2D", "KUpBlock2D"],
        "block_out_channels": [32, 64, 64],
    },
    "classes": TINY | {"num_class_embeds": 10},
    "classes as times": TINY | {"class_embed_type": "timestep", "time_embedding_type": "fourier"},
    "classes as embeddings": TINY | {"class_embed_type": "identity", "sample_size": [8, 16]},
    "learned times": TINY | {"time_embedding_type": "learned", "num_train_timesteps": 100},
}  # fmt: skip
T = np.array([3.0, 57.25], np.float32)
LABELS = {
    "classes": np.array([7, 2]),
    "classes as times": np.array([7.5, 2.0], np.float32),
    "classes as embeddings": np.random.RandomState(2).randn(2, 128).astype(np.float32),
}


def randomized(module):
    """All parameters away from what they start with: scales from one, biases from zero."""
    import torch

    rng = np.random.RandomState(0)
    state = module.state_dict()
    for name, tensor in state.items():
        noise = torch.from_numpy(rng.randn(*tensor.shape).astype(np.float32))
        fan_in = max(tensor[0].numel(), 1) if tensor.ndim > 1 else 10
        is_scale = tensor.ndim == 1 and name.endswith("weight") and "time_proj" not in name
        state[name] = is_scale + noise * fan_in**-0.5
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)


@functools.cache
def diffusers_network(name):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    config = {k: v for k, v in CONFIGS[name].items() if not k.startswith("_")}
    return randomized(diffusers.UNet2DModel(**config))


def tensors(name):
    return {k: v.numpy() for k, v in diffusers_network(name).state_dict().items()}


def images(config):
    size = config["sample_size"]
    height, width = size if isinstance(size, list) else (size, size)
    shape = (2, height, width, config.get("in_channels", 3))
    return np.random.RandomState(1).randn(*shape).astype(np.float32)


def expected(name, t):
    import torch

    labels = LABELS.get(name)
    out = diffusers_network(name)(
        torch.from_numpy(images(CONFIGS[name])).permute(0, 3, 1, 2),
        torch.from_numpy(t.astype(int) if name == "learned times" else t),
        None if labels is None else torch.from_numpy(labels),
    )
    return out.sample.permute(0, 2, 3, 1).numpy()


def output(network, params, x, t, labels=None):
    return np.asarray(jax.jit(network.apply)({"params": params}, x, t, labels))


def relative_error(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


# All kinds of blocks.
QUICK = (
    "old", "ncsnpp", "attention everywhere, resampled in residual blocks", "no middle", "k",
    "classes as embeddings",
)  # fmt: skip


@some("name", CONFIGS, quick=QUICK)
def test_output_is_that_of_diffusers(name):
    network = UNet2D.from_config(CONFIGS[name])
    params = unet2d_params(tensors(name), network)
    t = np.floor(T) if name == "learned times" else T
    out = output(network, params, images(CONFIGS[name]), t, LABELS.get(name))
    assert relative_error(out, expected(name, t)) < 1e-5


def test_checkpoints_of_2022_name_attention_otherwise():
    network = UNet2D.from_config(OLD)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in tensors("old").items():
        for part, before in old.items():
            name = name.replace(part, before)
        state[name] = tensor
    assert "mid_block.attentions.0.proj_attn.weight" in state
    out = output(network, unet2d_params(state, network), images(OLD), T)
    assert relative_error(out, expected("old", T)) < 1e-5


# From here on without PyTorch.


def randomly(name, **fields):
    """A network, and random parameters for it."""
    network = UNet2D.from_config(CONFIGS[name]).clone(**fields)
    inputs = images(CONFIGS[name]), T, LABELS.get(name)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.RandomState(0)

    def draw(leaf):
        fan_in = max(np.prod(leaf.shape[:-1]), 10)
        return (rng.randn(*leaf.shape) * fan_in**-0.5).astype(np.float32)

    return network, jax.tree.map(draw, shapes)


def as_state(params):
    """PyTorch's names and layouts."""
    state = {}
    for (*layer, leaf), array in flatten_dict(params).items():
        if leaf == "kernel":
            array = np.moveaxis(array, (-1, -2), (0, 1))
        state[".".join([*layer, "bias" if leaf == "bias" else "weight"])] = np.asarray(array)
    return state


def test_every_tensor_has_its_place():
    network, params = randomly("ncsnpp")
    state = {k: v.astype(np.float16) for k, v in as_state(params).items()}
    found = unet2d_params(state, network)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-6), found, params)


def test_the_network_of_ddpm_cifar10_has_its_published_size():
    blocks = {
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "layers_per_block": 2,
        "sample_size": 32,
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    }
    network = UNet2D.from_config(OLD | blocks)
    x = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(1))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 35_746_307


@pytest.mark.parametrize(
    "name",
    [
        "skip blocks last",
        pytest.param(
            "attention everywhere, resampled in residual blocks", marks=pytest.mark.long
        ),
    ],
)
def test_derivative_agrees_with_differences(name, x64):
    network, params = randomly(name, dtype=jnp.float64)
    rng = np.random.RandomState(3)
    x = images(CONFIGS[name]).astype(np.float64)
    v = rng.randn(*x.shape)
    apply = functools.partial(network.apply, {"params": params}, t=T)
    value_and_jv = jax.jit(lambda x: jax.jvp(apply, (x,), (v,)))
    jv = value_and_jv(x)[1]
    assert jv.dtype == jnp.float64
    step = 1e-5
    differences = (value_and_jv(x + step * v)[0] - value_and_jv(x - step * v)[0]) / (2 * step)
    np.testing.assert_allclose(np.vdot(v, jv), np.vdot(v, differences), rtol=1e-7)


def test_learned_times_are_linear_between_two_steps():
    rows = np.random.RandomState(0).randn(100, 4).astype(np.float32)
    embed = jax.jit(Learned(100, 4).apply)
    out = embed({"params": {"weight": rows}}, np.array([0, 41.25, 99], np.float32))
    np.testing.assert_allclose(out[0], rows[0])
    np.testing.assert_allclose(out[1], 0.75 * rows[41] + 0.25 * rows[42], rtol=1e-6)
    np.testing.assert_allclose(out[2], rows[99])


MISTAKES = {
    "cross_attention_dim": {"cross_attention_dim": 768},
    "UNet2DConditionModel": {"_class_name": "UNet2DConditionModel"},
    "CrossAttnDownBlock2D": {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]},
    "KCrossAttnUpBlock2D": {"up_block_types": ["KCrossAttnUpBlock2D", "UpBlock2D"]},
    "UNetMidBlock2DCrossAttn": {"mid_block_type": "UNetMidBlock2DCrossAttn"},
    "down_block_types names 1": {"down_block_types": ["DownBlock2D"]},
    "time_embedding_type": {"time_embedding_type": "sinusoidal"},
    "num_train_timesteps": {"time_embedding_type": "learned"},
    "downsample_padding is 2": {"downsample_padding": 2},
    "resnet_time_scale_shift": {"resnet_time_scale_shift": "spatial"},
    "norm_num_groups is None": {"norm_num_groups": None},
    "act_fn is 'elu'": {"act_fn": "elu"},
    "K blocks": {"down_block_types": ["KDownBlock2D", "DownBlock2D"]},
    "first of down_block_types": {
        "down_block_types": ["DownBlock2D", "SkipDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "UpBlock2D"],
        "block_out_channels": [32, 32, 32],
    },
    "last of up_block_types": {"up_block_types": ["SkipUpBlock2D", "UpBlock2D"]},
    **{f"{field} must": {field: value} for field, value in (
        ("attention_head_dim", -8), ("time_embedding_dim", -1), ("num_class_embeds", 0),
        ("num_train_timesteps", -1), ("norm_num_groups", 0), ("out_channels", 0),
        ("mid_block_scale_factor", 0), ("norm_eps", -1.0),
    )},
    "freq_shift is": {"freq_shift": 16},
    "3 channels": {"down_block_types": ["SkipDownBlock2D", "DownBlock2D"], "in_channels": 1},
}


@pytest.mark.parametrize("words", MISTAKES)
def test_what_is_not_known_is_named(words):
    with pytest.raises(UserError, match=words):
        UNet2D.from_config(TINY | MISTAKES[words])


def apply(network, *inputs):
    jax.eval_shape(network.init, jax.random.key(0), *inputs)


def test_fields_without_effect_are_not_checked():
    UNet2D.from_config(TINY | {"time_embedding_dim": 0})
    UNet2D.from_config(TINY | {"freq_shift": 16, "time_embedding_type": "fourier"})


def test_what_does_not_go_together_is_named():
    x, t = jnp.zeros((2, 8, 8, 3)), jnp.zeros(2)
    with pytest.raises(UserError, match="1 channels"):
        apply(UNet2D.from_config(TINY), x[..., :1], t)
    with pytest.raises(UserError, match="multiples of 2"):
        apply(UNet2D.from_config(TINY), x[:, :7], t)
    with pytest.raises(UserError, match="no class labels"):
        apply(UNet2D.from_config(TINY), x, t, t.astype(int))
    with pytest.raises(UserError, match="needs class labels"):
        apply(UNet2D.from_config(TINY | {"num_class_embeds": 3}), x, t)
    for kind in ("timestep", "identity"):
        with pytest.raises(UserError, match="condition= gives it"):
            apply(UNet2D.from_config(TINY | {"class_embed_type": kind}), x, t)
    with pytest.raises(UserError, match="64 channels"):
        apply(UNet2D.from_config(TINY | {"attn_norm_num_groups": 24}), x, t)
    with pytest.raises(UserError, match="attention_head_dim is 128"):
        apply(UNet2D.from_config(TINY | {"attention_head_dim": 128}), x, t)


def test_tensors_that_do_not_fit_are_named():
    network, params = randomly("defaults")
    state = as_state(params)
    name = "down_blocks.1.resnets.0.conv1.weight"
    with pytest.raises(UserError, match=f"missing, .*{name}"):
        unet2d_params({k: v for k, v in state.items() if k != name}, network)
    with pytest.raises(UserError, match="2 without"):
        unet2d_params(state | {"a.b": state[name], "a.c": state[name]}, network)
    with pytest.raises(UserError, match=f"{name} has"):
        unet2d_params(state | {name: state[name].swapaxes(0, 1)}, network)


@pytest.mark.parametrize("size", [4, 5])
def test_waves_of_time_end_with_a_zero_where_their_size_is_odd(size):
    t = np.array([[0.5], [3.0]])
    phases = t * [1, 0.01]
    expected = np.hstack([np.cos(phases), np.sin(phases), np.zeros((2, size - 4))])
    found = timestep_embedding(jnp.asarray(t[:, 0], jnp.float32), size)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
