"""The network of a file: told from its shapes, named where it differs, mapped from PyTorch."""

import json
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden_networks import NETWORKS, golden
from helpers.places import GOLDEN
from helpers.pytorch_checkpoints import as_checkpoint, as_pytorch, as_tensors

from scoremle import published
from scoremle.errors import UserError
from scoremle.nn import DDPMpp
from scoremle.published import (
    PublishedCheckpoints,
    architecture,
    flow_architecture,
    origin,
    pytorch,
    state_dict,
    torch_file,
)
from scoremle.published.origin import PublishedModel, mismatch
from scoremle.training.checkpoints import Damaged
from scoremle.training.checksums import tree_hash
from scoremle.training.step import init_state, make_optimizer


def published_shapes(name):
    shapes = json.loads((GOLDEN / f"{name}_shapes.json").read_text())["shapes"]
    leaves = {k: SimpleNamespace(shape=tuple(shape)) for k, shape in shapes.items()}
    return flax.traverse_util.unflatten_dict(leaves, sep="/")


# Told from the shapes


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_found_from_its_shapes(name):
    config, params, _ = golden(name)
    found = architecture(params)
    levels, channels = found.pop("attention at levels"), found.pop("num_channels")
    size = config["data"]["image_size"]
    assert [size >> level for level in levels] == config["model"]["attn_resolutions"]
    assert channels == config["data"].get("num_channels", 3)
    found["ch_mult"] = list(found["ch_mult"])
    assert found == {field: config["model"][field] for field in found}
    # Seen only in resampling layers with parameters.
    assert ("fir" in found) == (name in ("ncsnpp_ve", "residual_out"))


@pytest.mark.parametrize(
    "fields",
    [
        {"ch_mult": (1,), "attn_resolutions": ()},
        {"ch_mult": (1, 1, 1), "attn_resolutions": (16, 4), "num_res_blocks": 3},
        {"ch_mult": (2, 1, 3), "attn_resolutions": (8,), "resblock_type": "ddpm"},
        {"ch_mult": (1, 1, 2), "attn_resolutions": (16, 8)},
        {"ch_mult": (1, 1), "resblock_type": "ddpm", "resamp_with_conv": False},
        {"ch_mult": (2, 1), "progressive_input": "input_skip", "progressive_combine": "cat"},
        pytest.param(
            {"ch_mult": (1, 2, 2), "progressive": "residual", "progressive_input": "residual"},
            marks=pytest.mark.long,
        ),
        {"conditional": False, "progressive": "output_skip"},
    ],
)
def test_other_networks_are_found_too(fields):
    fields = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 2, "attn_resolutions": ()} | fields
    args = jax.random.key(0), jnp.zeros((1, 16, 16, 1)), jnp.ones(1)
    params = jax.eval_shape(DDPMpp(**fields).init, *args)["params"]
    found = architecture(params)
    levels, sizes = found.pop("attention at levels"), fields.pop("attn_resolutions")
    assert len(levels) == len(sizes) and [*levels] == sorted({*levels})
    fields.pop("resamp_with_conv", None)
    assert fields.items() <= found.items()


BLOCK = {"Conv_0": {"kernel": np.zeros((3, 3, 4, 4))}}
BLOCKS = {f"ResnetBlockDDPMpp_{i}": BLOCK for i in range(5)}


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"Conv_0": {}},
        {"Conv_0": {"kernel": np.zeros(3)}},
        {"Conv_0": {"kernel": np.zeros((3, 3, 3, 4))}, **BLOCKS},  # none with a skip connection
        {n: part for n, part in published_shapes("ddpmpp").items() if n[-4:] != "p_20"},
    ],
)
def test_what_is_no_such_network(tree):
    with pytest.raises(Damaged, match="of a DDPM"):
        architecture(tree)


@pytest.mark.parametrize(
    ("name", "numbers"), [("cifar10", (96, 32, 2, 4)), ("imagenet32", (128, 32, 8, 8))]
)
def test_the_dequantizer_is_found_too(name, numbers):
    found = flow_architecture(published_shapes(f"dequantizer_{name}"))
    fields = ("filters", "components", "blocks", "couplings")
    want = dict(zip(fields, numbers, strict=True))
    assert found == {"variant": name, **want, "image_size": 32}
    with pytest.raises(Damaged, match=r"of a Flow\+\+"):
        flow_architecture(published_shapes("ddpmpp"))


# Named where it differs


@pytest.mark.parametrize(
    ("folder", "advice"),
    [
        ("cifar10_deep_vp_flip", "use the config vp/cifar10_ddpmpp_deep_continuous"),
        ("imagenet32_deep_subvp", "use the config subvp/imagenet32_ddpmpp_deep_continuous"),
        ("mine", "use a config such as vp/cifar10_ddpmpp_deep_continuous"),
    ],
)
def test_a_deep_network_where_the_config_says_four_blocks(folder, advice):
    path = Path("/x") / folder / "checkpoints" / "checkpoint_19"
    text = mismatch(published_shapes("ddpmpp_deep"), published_shapes("ddpmpp"), path)
    assert text.startswith(f"{path} holds another network than the config says: ")
    assert "model.num_res_blocks is 8" in text


def test_a_network_of_no_published_config():
    text = mismatch(golden("ddpmpp")[1], published_shapes("ddpmpp"), Path("a/b/c"))
    assert "model.nf is" in text
    assert text.endswith("set model.nf=16 model.ch_mult=(1,2) model.num_res_blocks=1")


def test_networks_that_differ_in_attention_alone():
    fields = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1}
    args = jax.random.key(0), jnp.zeros((1, 16, 16, 1)), jnp.ones(1)
    one, none = (
        jax.eval_shape(DDPMpp(**fields, attn_resolutions=sizes).init, *args)["params"]
        for sizes in ((8,), ())
    )
    text = mismatch(one, none, Path("a/b/c"))
    assert "attention at levels is (1,), not ()" in text
    assert text.endswith("set model.attn_resolutions")
    assert mismatch(one, one, Path("a/b/c")) is None


def test_another_dequantizer():
    found, needed = (published_shapes(f"dequantizer_{n}") for n in ("imagenet32", "cifar10"))
    text = mismatch(found, needed, Path("a/b/c"))
    assert "another dequantizer" in text
    assert text.endswith(
        "set deq.variant='imagenet32' deq.filters=128 deq.blocks=8 deq.couplings=8"
    )
    assert mismatch(published_shapes("ddpmpp"), needed, Path("a/b/c")) is None


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("cifar10_vp", ("cifar10", "vp", False, False, False, False)),
        ("imagenet32_deep_subvp_likelihood", ("imagenet32", "subvp", True, True, False, False)),
        ("cifar10_deep_vp_likelihood_iw_flip", ("cifar10", "vp", True, True, True, True)),
        ("ve/cifar10_ncsnpp_continuous", ("cifar10", "ve", False, False, False, None)),
        ("subvp/cifar10_ddpmpp_deep_continuous", ("cifar10", "subvp", True, False, False, None)),
        ("cifar10_ncsnpp_continuous", None),
        ("cifar10", None),
        ("cifar10_vp_2", None),
    ],
)
def test_names_of_folders(name, known):
    found = origin(Path("/data") / name / "checkpoints" / "checkpoint_26")
    assert found == (known and PublishedModel(*known))


def test_a_flax_checkpoint_of_ncsnpp(tmp_path):
    _, params, _ = golden("ncsnpp_ve")
    optimizer = make_optimizer(lr=1e-3, beta1=0.9, eps=1e-8, warmup=5, grad_clip=1.0)
    state = init_state(jax.tree.map(jnp.asarray, params), optimizer)
    tree = published.published_tree(state, lr=1e-3, ema_rate=0.999, rng=[1, 2])
    (tmp_path / "checkpoint_24").write_bytes(flax.serialization.msgpack_serialize(tree))
    found = published.read(tmp_path / "checkpoint_24")
    assert tree_hash(found.params) == tree_hash(found.ema) == tree_hash(params)
    assert (found.lr, found.ema_rate, found.rng) == (1e-3, 0.999, [1, 2])


# Mapped from PyTorch


@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_layouts_of_pytorch(name):
    config, params, _ = golden(name)
    found = pytorch.network_parameters(as_pytorch(config, params))
    assert tree_hash(found) == tree_hash(params)


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp_ve"])
def test_a_training_state_of_pytorch(name):
    config, params, _ = golden(name)
    found = pytorch.trees(as_checkpoint(config, params))
    for tree, factor in zip(found, (1, 2, 3, 4), strict=True):
        expected = jax.tree.map(lambda a, f=factor: f * a, params)
        if "GaussianFourierProjection_0" in params:  # not trained: no average, no moments
            frequencies = params["GaussianFourierProjection_0"]["W"]
            kept = frequencies if factor < 3 else np.zeros_like(frequencies)
            expected["GaussianFourierProjection_0"] = {"W": kept}
        assert tree_hash(tree) == tree_hash(expected)


def test_other_state_dicts_of_pytorch():
    with pytest.raises(Damaged, match=r"fc\.weight"):
        pytorch.network_parameters({"fc.weight": np.zeros((3, 3))})
    with pytest.raises(Damaged, match="of a DDPM"):
        pytorch.network_parameters({"all_modules.0.weight": np.zeros((3, 3))})
    with pytest.raises(Damaged, match="which no DDPM"):
        pytorch.network_parameters({f"all_modules.{10**12}.weight": np.zeros((3, 3))})
    config, params, _ = golden("ddpmpp")
    content = as_checkpoint(config, params)
    content["ema"]["shadow_params"].pop()
    with pytest.raises(Damaged, match="averages of"):
        pytorch.trees(content)


def test_a_checkpoint_of_pytorch_is_one_like_any_other(tmp_path):
    torch = pytest.importorskip("torch")
    config, params, _ = golden("ncsnpp_ve")
    torch.save(as_tensors(as_checkpoint(config, params), torch), tmp_path / "checkpoint_24.pth")
    optimizer = make_optimizer(lr=1e-3, beta1=0.9, eps=1e-8, warmup=5, grad_clip=1.0)
    template = jax.eval_shape(lambda: init_state(params, optimizer))
    store = PublishedCheckpoints(tmp_path, keep=None)
    state, meta, number = store.restore(template)
    store.verify(24)
    assert (number, int(state.step), meta["step"]) == (24, 7, 7)
    assert tree_hash(state.params) == tree_hash(params)
    content = (tmp_path / "checkpoint_24.pth").read_bytes()
    (tmp_path / "checkpoint_24.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"checkpoint_24\.pth is damaged"):
        store.restore(template)
    with pytest.raises(UserError, match="zip is cut"):
        store.verify(24)


def test_layouts_mean_the_same_to_pytorch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 6, 6, 3)).astype(np.float32)
    kernel, matrix = (rng.normal(size=s).astype(np.float32) for s in ((5, 3, 3, 3), (4, 3)))
    ours = pytorch._translated({"Conv_0.weight": kernel, "Dense_0.weight": matrix})
    nchw = torch.from_numpy(x).permute(0, 3, 1, 2)
    want = torch.nn.functional.conv2d(nchw, torch.from_numpy(kernel), padding=1)
    conv = flax.linen.Conv(5, (3, 3), use_bias=False)
    found = conv.apply({"params": ours["Conv_0"]}, x)
    np.testing.assert_allclose(found, want.permute(0, 2, 3, 1).numpy(), atol=1e-5)
    want = torch.nn.functional.linear(torch.from_numpy(x), torch.from_numpy(matrix)).numpy()
    np.testing.assert_allclose(x @ ours["Dense_0"]["kernel"], want, atol=1e-5)


class Harm:
    def __reduce__(self):
        return (Path.touch, (Path("harm_was_done"),))


def test_no_code_in_a_pth_is_run(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint_1.pth").write_bytes(pickle.dumps({"model": Harm()}, protocol=2))
    with pytest.raises(UserError, match="published checkpoint"):
        published.read(tmp_path / "checkpoint_1.pth")
    assert not (tmp_path / "harm_was_done").exists()


def plain(content):
    """Without an order of names."""
    if isinstance(content, dict):
        return {name: plain(value) for name, value in content.items()}
    return [*map(plain, content)] if isinstance(content, list | tuple) else content


@pytest.mark.parametrize("as_a_zip", [True, False])
def test_what_pytorch_saves_is_read_without_it(as_a_zip, tmp_path, monkeypatch):
    """Containers, types, views and tied weights; a file of before version 1.6 is not a zip."""
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    adam = torch.optim.Adam(module.parameters())
    module(torch.ones(5, 3)).sum().backward()
    adam.step()
    numbers = torch.arange(24.0).reshape(4, 6)
    content = {
        "model": module.state_dict(), "optimizer": adam.state_dict(), "tied": [numbers, numbers],
        "ema": {"shadow_params": [*module.parameters()], "decay": 0.999}, "step": 7, "none": None,
        "views": (numbers.T, numbers[1:3], numbers[:, ::2], torch.zeros(0), torch.tensor(3)),
        "types": [numbers.to(kind) for kind in (torch.float64, torch.float16, torch.bfloat16,
                                                torch.int64, torch.uint8, torch.bool)],
    }  # fmt: skip
    path = tmp_path / "m.pt"
    torch.save(content, path, _use_new_zipfile_serialization=as_a_zip)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    found = jax.tree.leaves(pytorch.load_pth(path))
    for one, other in zip(found, jax.tree.leaves(plain(content)), strict=True):
        if isinstance(other, torch.Tensor):
            kind = str(other.dtype).removeprefix("torch.")
            assert str(one.dtype) == kind and one.shape == tuple(other.shape)
            one, other = one.astype(float), other.detach().double().numpy()
        np.testing.assert_array_equal(one, other)


def test_sizes_and_devices_in_a_pth(tmp_path):
    torch = pytest.importorskip("torch")
    devices = [torch.device(name) for name in ("cpu", "cuda:1")]
    torch.save({"size": torch.Size((2, 3)), "devices": devices}, tmp_path / "m.pt")
    found = pytorch.load_pth(tmp_path / "m.pt")
    assert found == {"size": (2, 3), "devices": ["cpu", "cuda"]}


def altered(path, change):
    """The members of a zip as ``change`` leaves them, by the end of their names."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change.get(name.partition("/")[2], lambda b: b)(content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data/0": lambda b: b[:-1]}, "storage is cut"),
        ({"byteorder": lambda b: b"big"}, "order of bytes"),
        ({"data.pkl": lambda b: b.replace(b"storage", b"warehou")}, "than storages"),
        ({"data.pkl": lambda b: b.replace(b"_rebuild_tensor_v2", b"_rebuild_parameter")}, "calls"),
        ({"data.pkl": lambda b: b + bytes(1000)}, "1000 bytes"),
    ],
)
def test_a_pth_whose_parts_do_not_fit(change, words, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(3)}, tmp_path / "m.pt")
    monkeypatch.setattr(torch_file, "LONGEST_PICKLE", 1000)
    altered(tmp_path / "m.pt", {})
    assert pytorch.load_pth(tmp_path / "m.pt")["a"].tolist() == [1, 1, 1]
    altered(tmp_path / "m.pt", change)
    with pytest.raises(Damaged, match=words):
        pytorch.load_pth(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("change", "words"), [(lambda b: b[:-1], "cut off"), (lambda b: pickle.dumps(7), "begins")]
)
def test_an_older_pth_whose_parts_do_not_fit(change, words, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "m.pt"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(Damaged, match=words):
        pytorch.load_pth(path)


def test_numbers_of_files(tmp_path):
    for name in ("checkpoint_2", "checkpoint_10.pth", "checkpoint_x", "checkpoint_3.published"):
        state_dict.write(tmp_path / name, {})
    (tmp_path / "checkpoint_7").mkdir()
    assert list(published.checkpoint_files(tmp_path)) == [10, 2]
    assert PublishedCheckpoints(tmp_path, keep=None).numbers() == [2, 7, 10]
