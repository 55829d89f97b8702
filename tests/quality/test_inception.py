"""Inception's features are torch-fidelity's: stored ones everywhere, fresh ones where it is there.

Tolerances are in units of the mean size of a feature. Rounding makes 4e-6 of it. A wrong scale
(127.5) makes 2e-2, half-pixel resizing 0.2, batch normalisation's usual eps 0.1, padding counted
in averages 0.6, and an average in place of the last maximum 3.
"""

import hashlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.extractors import images, state_dict

from scoremle.cli import main as cli
from scoremle.errors import UserError
from scoremle.quality import inception
from scoremle.quality.features import load_inception, write_inception

NEEDS = "needs the extra: pip install 'scoremle[torch]'"


def compare(found, expected, tolerance=5e-5):
    for ours, theirs in zip(found, expected, strict=True):
        difference = np.abs(np.asarray(ours) - theirs).max()
        assert difference < tolerance * np.abs(theirs).mean()


@pytest.fixture(scope="module")
def state():
    return state_dict()


# Resizing


def test_resizing_is_linear_interpolation_from_the_corners():
    """To twice the size: the pixels themselves, and between them their means; the last repeats."""
    x = np.arange(6.0).reshape(1, 2, 3, 1) ** 2
    rows = np.array([[0, 0.5, 1, 2.5, 4, 4], [9, 12.5, 16, 20.5, 25, 25]])
    between = rows.mean(axis=0)
    found = inception._interpolate(inception._interpolate(jnp.asarray(x), 2, 6), 1, 4)
    np.testing.assert_allclose(found[0, :, :, 0], [rows[0], between, rows[1], rows[1]])


def test_an_image_of_the_right_size_stays_as_it_is():
    x = np.random.default_rng(0).random((1, 299, 299, 1), np.float32)
    np.testing.assert_array_equal(inception.resize(jnp.asarray(x)), x)


# Weights


def test_there_are_as_many_parameters_as_published():
    # Without the 1008 biases of the classes, and with one scale and shift a channel.
    sizes = {name: np.prod(shape) for name, shape in inception.shapes().items()}
    kernels = sum(size for name, size in sizes.items() if name.endswith("kernel"))
    assert (len(sizes), kernels) == (189, 23_815_520)


def test_missing_arrays_are_named(state):
    few = {name: state[name] for name in state if "7c" not in name}
    few.pop("Conv2d_1a_3x3.bn.running_var")
    with pytest.raises(UserError) as error:
        inception.from_state_dict(few)
    assert str(error.value).startswith("lacks Conv2d_1a_3x3.bn.running_var, Mixed_7c.branch1x1.")
    assert str(error.value).endswith("and 43 more")


def test_todays_classifier_is_refused(state):
    with pytest.raises(UserError, match=r"fc.weight of shape"):
        inception.from_state_dict({**state, "fc.weight": state["fc.weight"][:1000]})


@pytest.mark.parametrize("content", [b"", b"PK\3\4damaged", b"x" * 1000])
def test_files_of_weights_that_are_none(content, tmp_path):
    path = tmp_path / "weights.npz"
    with pytest.raises(UserError, match="no Inception weights"):
        load_inception(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match="of Inception weights"):
        load_inception(path)
    write_inception(path, {"fc/kernel": np.zeros((2048, 1000))}, "0")
    with pytest.raises(UserError, match="not fit"):
        load_inception(path)


@pytest.mark.parametrize("kernel", [[["x"] * 3] * 4, [[1] * 3] * 4, [[np.nan] * 3] * 4])
def test_weights_that_are_no_numbers(kernel, tmp_path, monkeypatch):
    monkeypatch.setattr(inception, "shapes", lambda: {"fc/kernel": (4, 3)})
    path = tmp_path / "weights.npz"
    write_inception(path, {"fc/kernel": np.asarray(kernel)}, "0")
    with pytest.raises(UserError, match="finite float32"):
        load_inception(path)
    write_inception(path, {"fc/kernel": np.ones((4, 3), np.float32)}, "0")
    assert load_inception(path).size == 4


# Features


def test_stored_features(state, golden, tmp_path):
    """Made by torch-fidelity 0.4 of these weights and images."""
    path = tmp_path / "weights.npz"
    write_inception(path, inception.from_state_dict(state), "0" * 64)
    extractor = load_inception(path)
    assert (extractor.size, extractor.weights_sha256) == (2048, "0" * 64)
    assert extractor.name == "Inception-2015, weights of unknown origin"
    expected = golden("inception")
    compare(extractor.apply(images()), (expected["pool"], expected["logits"]))


@pytest.fixture(scope="module")
def torch_file(state, tmp_path_factory):
    torch = pytest.importorskip("torch", reason=NEEDS)
    path = tmp_path_factory.mktemp("torch") / "weights.pth"
    tensors = {name: torch.tensor(np.ascontiguousarray(array)) for name, array in state.items()}
    torch.save({**tensors, "fc.bias": torch.ones(1008)}, path)
    return path


@pytest.fixture(scope="module")
def calibrated(torch_file):
    """torch-fidelity's network whose batch normalisation knows the photograph that it will see."""
    import torch
    from sklearn.datasets import load_sample_image

    pytest.importorskip("torch_fidelity", reason=NEEDS)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3(
        "network", ["2048", "logits_unbiased"], feature_extractor_weights_path=torch_file
    )
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    photograph = load_sample_image("china.jpg")[:416, :640].reshape(13, 32, 20, 32, 3)
    patches = photograph.swapaxes(1, 2).reshape(-1, 32, 32, 3)[[40, 100, 150, 200]]
    chw = torch.tensor(patches).permute(0, 3, 1, 2)
    network.train()(chw)
    features = network.eval()(chw[:2])
    arrays = {name: array.numpy() for name, array in network.state_dict().items()}
    return arrays, patches[:2], [f.numpy() for f in features]


@pytest.mark.slow
def test_features_of_photographs_with_calibrated_weights(calibrated, tmp_path):
    arrays, patches, expected = calibrated
    pool = expected[0]
    assert np.abs(pool[0] - pool[1]).mean() > 0.2 * pool.mean()  # they do tell images apart
    write_inception(tmp_path / "weights.npz", inception.from_state_dict(arrays), "0" * 64)
    # Channels that hardly vary on these patches are enlarged, and rounding with them.
    compare(load_inception(tmp_path / "weights.npz").apply(patches), expected, 1e-3)


def test_converting_a_file(torch_file, state, tmp_path, capsys):
    out = tmp_path / "weights.npz"
    assert cli.main(["convert-inception", str(torch_file), str(out)]) == 0
    printed = capsys.readouterr().out
    assert "23,8" in printed and "published weights" in printed
    extractor = load_inception(out)
    assert extractor.weights_sha256 in printed
    assert extractor.weights_sha256 == hashlib.sha256(torch_file.read_bytes()).hexdigest()
    assert not extractor.is_published_inception
    with np.load(out, allow_pickle=False) as saved:
        kernel, bias = (saved[f"Mixed_6a/branch3x3/{part}"] for part in ("kernel", "bias"))
    weight, scale, shift, mean, var = (state[f"Mixed_6a.branch3x3.{p}"] for p in inception.PARTS)
    x = np.random.default_rng(0).normal(size=weight.shape[1:])
    normalised = ((weight * x).sum((1, 2, 3)) - mean) / np.sqrt(var + 1e-3) * scale + shift
    folded = (kernel * x.transpose(1, 2, 0)[..., None]).sum((0, 1, 2)) + bias
    np.testing.assert_allclose(folded, normalised, rtol=1e-4, atol=1e-4)


def test_mistakes_in_converting(torch_file, tmp_path, capsys):
    import torch

    def mistake(path, out="out.npz"):
        assert cli.main(["convert-inception", str(path), str(tmp_path / out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert f"file {tmp_path / 'absent'}" in mistake(tmp_path / "absent")
    assert "end in .npz" in mistake(torch_file, "out.pth")
    other = tmp_path / "other.pth"
    other.write_bytes(b"text")
    assert "not a state dict" in mistake(other)
    torch.save([1, 2], other)
    assert "not a state dict" in mistake(other)
    torch.save({"fc.weight": torch.zeros(1)}, other)
    assert "lacks Conv2d_1a_3x3.conv.weight" in mistake(other)
    torch.save({"code": Hostile(tmp_path / "ran")}, other)
    assert "not a state dict" in mistake(other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.pth"]


class Hostile:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))
