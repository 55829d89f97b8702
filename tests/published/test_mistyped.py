"""Configs of others with a value of another kind: one line that names the field."""

import copy
import json
import resource
import struct
import zipfile

import jax
import numpy as np
import pytest

import scoremle
from scoremle.cli import main as cli
from scoremle.core.sde import VP
from scoremle.errors import UserError
from scoremle.published import pytorch, safetensors
from scoremle.zoo.families import published_model

UNET = {
    "_class_name": "UNet2DModel", "_diffusers_version": "0.30", "sample_size": 8, "in_channels": 1,
    "out_channels": 1, "block_out_channels": [32, 32], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2,
}  # fmt: skip
FLAGS = {"image_size": 32, "num_channels": 32, "num_res_blocks": 1}
BETAS = {"beta_schedule": "linear"}
DEEP = "[" * 100_000 + "]" * 100_000


def unet(folder, config=UNET, scheduler=None):
    """A folder of diffusers with weights that are none."""
    for name, content in (("config", config), ("scheduler_config", scheduler or BETAS)):
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text)
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"none")
    return folder


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_out_channels", 3), ("block_out_channels", ["a"]), ("block_out_channels", [[1]]),
        ("block_out_channels", [2**40] * 2),
        ("down_block_types", "DownBlock2D"), ("down_block_types", [{}]), ("sample_size", "8"),
        ("sample_size", [8]), ("in_channels", "1"), ("layers_per_block", None),
        ("layers_per_block", 2.0), ("act_fn", []), ("norm_eps", "x"), ("mid_block_type", {}),
    ],
)  # fmt: skip
def test_a_field_of_a_network(field, value, tmp_path):
    with pytest.raises(UserError, match=f"{field} must"):
        scoremle.load(unet(tmp_path, {**UNET, field: value}))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("block_out_channels", [0, 32], "one of block_out_channels"),
        ("block_out_channels", [2**31] * 2, "not 2147483648"),
        ("block_out_channels", [], "length of block_out_channels"),
        ("layers_per_block", 2**31, "layers_per_block must"),
    ],
)
def test_counts_that_no_network_has(field, value, words, tmp_path):
    with pytest.raises(UserError, match=words):
        scoremle.load(unet(tmp_path, {**UNET, field: value}))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("num_train_timesteps", "x", "num_train_timesteps must"),
        ("num_train_timesteps", 1.5, "num_train_timesteps must"),
        ("num_train_timesteps", 0, "steps .*not 0"),
        ("num_train_timesteps", 10**9, "steps .*not 1000000000"),
        ("beta_start", [], "beta_start must"),
        ("beta_start", float("nan"), "not nan"),
        ("beta_start", -1, "betas must"),
        ("beta_end", 2, "at most 1"),
        ("beta_schedule", {}, "beta_schedule must"),
        ("trained_betas", ["a"], "trained_betas: 1"),
        ("trained_betas", [], "two steps"),
        ("prediction_type", [], "prediction_type must"),
    ],
)
def test_a_field_of_a_scheduler(field, value, words, tmp_path):
    with pytest.raises(UserError, match=words):
        scoremle.load(unet(tmp_path, scheduler={**BETAS, field: value}))


@pytest.mark.parametrize("where", ["config", "scheduler"])
def test_json_that_is_nested_too_deep(where, tmp_path):
    with pytest.raises(UserError, match="as JSON"):
        scoremle.load(unet(tmp_path, **{where: DEEP}))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"image_size": "32"}, "image_size must"),
        ({"attention_resolutions": 3}, "attention_resolutions must"),
        ({"attention_resolutions": "0"}, "size in attention_resolutions"),
        ({"channel_mult": "1,nan"}, "channel_mult must"),
        ({"learn_sigma": "True"}, "learn_sigma must"),
        ({"num_channels": 0}, "num_channels at"),
        ({"num_res_blocks": 2**31}, "num_res_blocks must"),
        ({"diffusion_steps": "x"}, "diffusion_steps .*whole"),
        ({"diffusion_steps": 0}, "at least 2"),
        ({"diffusion_steps": 8}, "betas must"),
        ({"noise_schedule": []}, "noise_schedule must"),
        ({"predict_xstart": "False"}, "predict_xstart must"),
        ({"sigma_small": "False"}, "sigma_small must"),
        ({"dtype": "float16"}, "flag dtype"),
        ({"name": "x"}, "flag name"),
    ],
)
def test_a_flag(flags, words, tmp_path):
    (tmp_path / "m.json").write_text(json.dumps({**FLAGS, **flags}))
    (tmp_path / "m.pt").write_bytes(b"none")
    with pytest.raises(UserError, match=words):
        scoremle.load(tmp_path / "m.pt")


@pytest.mark.parametrize("side", [0, -1, 2**63])
def test_a_size_that_no_image_has(side):
    with pytest.raises(UserError, match=f"8x{side}x3"):
        published_model(lambda x, t: x, VP(), 1e-3, (8, side, 3))


@pytest.mark.parametrize(
    ("shape", "words"),
    [([float("inf")], "whole numbers"), ("4", "whole numbers"), ([-2, -2], "whole numbers"),
     ([5], "another size"), (4, "not iterable"), ([0, 2**70], "")],
)  # fmt: skip
def test_a_shape_of_a_tensor(shape, words, tmp_path):
    facts = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0 if words == "" else 16]}
    header = json.dumps({"a": facts}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(UserError, match=f"safetensors file .*{words}"):
        safetensors.read(path)


def test_a_pt_of_another_kind(tmp_path):
    torch = pytest.importorskip("torch")
    (tmp_path / "m.json").write_text(json.dumps(FLAGS))
    for content in ([1, 2], {"a": 3}, {"a": {"b": torch.zeros(2)}}):
        torch.save(content, tmp_path / "m.pt")
        with pytest.raises(UserError, match=r"not a state"):
            scoremle.load(tmp_path / "m.pt")
    (tmp_path / "m.pt").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"PyTorch checkpoint"):
        scoremle.load(tmp_path / "m.pt")


def repacked(path, compression, copies=1):
    """A zip with its members packed so; the largest is listed as often as that."""
    with zipfile.ZipFile(path) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    largest = max((info for info, _ in members), key=lambda info: info.file_size).filename
    with zipfile.ZipFile(path, "w", compression) as archive:
        for info, content in members:
            archive.writestr(info.filename, content)
        entry = archive.getinfo(largest)
        for number in range(1, copies):
            other = copy.copy(entry)
            other.filename = other.orig_filename = f"{largest}{number}"
            archive.filelist.append(other)


def test_a_pt_that_would_take_more_memory_than_it_has_bytes(tmp_path):
    torch = pytest.importorskip("torch")
    (tmp_path / "m.json").write_text(json.dumps(FLAGS))
    path, shared = tmp_path / "m.pt", torch.zeros(4096)
    for change, words in (
        (lambda: repacked(path, zipfile.ZIP_DEFLATED), "are compressed"),
        (lambda: repacked(path, zipfile.ZIP_STORED, 3), "or overlap"),
        (lambda: torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, path), "more numbers"),
        (lambda: torch.save({"a": torch.zeros(9), "b": torch.zeros(4).expand(5, 4)}, path),
         "more numbers"),  # more than its own storage has
        (lambda: torch.save({"a": [shared[:] for _ in range(9)]}, path),
         "more numbers"),  # none is too large alone
        (lambda: torch.save({"a": torch.zeros(9, dtype=torch.complex64).conj().imag}, path),
         "conjugate"),  # whose numbers have the other sign
    ):
        torch.save({"a": torch.zeros(4096)}, path)
        change()
        with pytest.raises(UserError, match=f"m.pt: .*{words}"):
            scoremle.load(path)
    torch.save({"a": torch.zeros(4096)}, path)
    repacked(path, zipfile.ZIP_STORED)
    assert pytorch.tensors(path)["a"].shape == (4096,)


def test_as_many_tensors_as_a_network_has_are_one_open_file(tmp_path):
    arrays = {f"a{i}": np.full(i % 3, i, np.float32) for i in range(500)}
    safetensors.write(tmp_path / "x.safetensors", arrays, {})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    try:
        found = safetensors.read(tmp_path / "x.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def test_a_header_of_tensors_is_bounded(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 25) + b"{")
        file.truncate(1 << 26)
    with pytest.raises(UserError, match="header is cut"):
        safetensors.read(path)


def test_a_platform_that_is_not_there(tmp_path, monkeypatch, capfd):
    """As where JAX_PLATFORMS=cuda, and no GPU: an assertion within JAX, or a RuntimeError."""
    np.save(tmp_path / "x.npy", np.zeros((1, 8, 8, 1), np.uint8))
    for error, words in [
        (AssertionError(), "none of that platform answers; unset"),
        (RuntimeError("No backend 'x' (set JAX_PLATFORMS='' to"), "No backend 'x'; unset"),
    ]:
        def devices(error=error):
            raise error

        monkeypatch.setattr(jax, "devices", devices)
        assert cli.main(["score", "digits", str(tmp_path / "x.npy")]) == 2
        err = capfd.readouterr().err
        assert err.startswith("scoremle: error: JAX finds no device (JAX_PLATFORMS is 'cpu'): ")
        assert words in err and err.count("\n") == 1
