"""A model by what a user has: functions of files, the hub's cache, and what is no model."""

import sys
from fnmatch import fnmatch

import jax
import numpy as np
import pytest

import scoremle
from scoremle.cli import main as cli
from scoremle.errors import UserError

OWN = """
import jax.numpy as jnp
import scoremle

def model(channels=1):
    sde = scoremle.VP()
    return scoremle.ScoreModel(
        lambda x, t: sde.sigma(t)[:, None, None, None] * x, sde, 1e-4, (2, 2, channels),
        scoremle.Pixels(4), scoremle.Multistep(16),
    )

def broken():
    return 1 / 0

def number():
    return 3

def leaves():
    raise SystemExit("no weights")

def of_two_channels():
    return model(2)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return path


def test_a_function_of_a_file_is_scored_from_the_command_line(file, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 4, (5, 2, 2, 1), np.uint8)
    np.save(tmp_path / "images.npy", images)
    out = tmp_path / "scores.csv"
    code = cli.main(["score", f"{file}:model", str(tmp_path / "images.npy"), f"--out={out}"])
    assert code == 0, capsys.readouterr().err
    model = scoremle.load(f"{file}:model")
    bpd = [float(line.split(",")[0]) for line in out.read_text().splitlines()[1:]]
    expected = model.score(images, repeats=4)
    np.testing.assert_allclose(bpd, expected.bpd, atol=5 * expected.solver_error.max() + 1e-3)


def test_a_model_whose_images_are_of_no_file(file, tmp_path, capsys):
    code = cli.main(["score", f"{file}:of_two_channels", str(tmp_path), f"--out={file}.csv"])
    words = f"error: {file}:of_two_channels is a model of images of 2 channels, and those of"
    assert code == 2 and words in capsys.readouterr().err


def test_a_path_that_exists_wins(tmp_path):
    place = tmp_path / "folder.py:model"
    place.mkdir()
    with pytest.raises(UserError, match="is no working directory, and no model of a known family"):
        scoremle.load(place)


def test_the_model_that_ships_knows_digits():
    """Their likelihood is far above that of a histogram (2.42 bits/dim, docs/results.md)."""
    pytest.importorskip("sklearn")
    images = scoremle.data.load("digits").test[:32]
    model = scoremle.load("digits")
    assert model.score(images).bpd.mean() < 2.2
    assert repr(model).endswith("188,769 parameters, digits, step 2,400)")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("{file}:other", "has no function other"),
        ("{file}:broken", r"mine.py, line 13: ZeroDivisionError: division by zero"),
        ("{file}:leaves", r"mine.py, line 19: SystemExit: no weights"),
        ("{file}:number", "must return a ScoreModel, not a int"),
        ("{file}x.py:model", "no file"),
        ("{file}", "is no model of a known family: a folder of diffusers, a .pt"),
        ("nowhere", "no folder or file nowhere, and no model of that name; there are: digits"),
    ],
)
def test_mistakes_are_one_line(file, place, words):
    with pytest.raises(UserError, match=words) as error:
        scoremle.load(place.format(file=file))
    assert "\n" not in str(error.value)


def test_a_number_of_a_checkpoint_is_of_a_working_directory(file):
    for place in ("digits", f"{file}:model"):
        with pytest.raises(UserError, match=r"is one model, not .* leave the number 7 out"):
            scoremle.load(place, 7)


def test_a_mistake_has_its_line_in_a_file_beside_us(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    with pytest.raises(UserError, match=r"^mine.py, line 13: ZeroDivisionError"):
        scoremle.load("mine.py:broken")


def test_the_hub_is_read_from_its_cache(tmp_path, monkeypatch):
    """A cache as the hub's library leaves it, offline: the snapshot's folder is what is loaded."""
    pytest.importorskip("huggingface_hub")
    snapshot = tmp_path / "hub/models--someone--digits/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text('{"_diffusers_version": "0.1", "vae": []}')
    refs = tmp_path / "hub/models--someone--digits/refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"snapshots/abc is a pipeline with a vae"):
        scoremle.load("hf:someone/digits")
    with pytest.raises(UserError, match="hf:someone/other can't be had from the hub"):
        scoremle.load("hf:someone/other")


def test_a_model_on_the_hub_is_its_folder(tmp_path, monkeypatch):
    """Two revisions of it in the hub's cache; no file but those that are needed is asked for."""
    torch, diffusers, hub = map(pytest.importorskip, ("torch", "diffusers", "huggingface_hub"))
    cache, asked = tmp_path / "models--someone--ddpm", []
    (cache / "refs").mkdir(parents=True)
    for seed, revision in enumerate(("main", "v1")):
        torch.manual_seed(seed)
        unet = diffusers.UNet2DModel(
            sample_size=4, in_channels=1, out_channels=1, layers_per_block=1,
            block_out_channels=(8, 8), norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        )  # fmt: skip
        pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
        pipeline.save_pretrained(cache / "snapshots" / f"of_{revision}")
        (cache / "refs" / revision).write_text(f"of_{revision}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_OFFLINE", True)
    download = hub.snapshot_download

    def asking(name, **options):
        asked.append(options["allow_patterns"])
        return download(name, **options)

    monkeypatch.setattr("huggingface_hub.snapshot_download", asking)
    for place, revision in (("hf:someone/ddpm", "main"), ("hf:someone/ddpm@v1", "v1")):
        found = scoremle.load(place)
        expected = scoremle.load(cache / "snapshots" / f"of_{revision}")
        for mine, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    needed = [
        file.relative_to(cache / "snapshots/of_v1").as_posix()
        for file in (cache / "snapshots/of_v1").rglob("*.*")
    ]
    others = ("unet/diffusion_pytorch_model.bin", "unet/model.onnx", "README.md", "code.py")
    for patterns in asked:
        assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in needed)
        assert not any(fnmatch(name, pattern) for name in others for pattern in patterns)
    del asked[:]
    unet.save_pretrained(cache / "snapshots/of_v1/unet", safe_serialization=False)
    (cache / "snapshots/of_v1/unet/diffusion_pytorch_model.safetensors").unlink()
    scoremle.load("hf:someone/ddpm@v1")
    assert [fnmatch(others[0], each[-1]) for each in asked] == [False, True]
    with pytest.raises(UserError, match="hf:someone/ddpm@v2 can't be had from the hub"):
        scoremle.load("hf:someone/ddpm@v2")


def test_the_hub_needs_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'scoremle\[hub\]'"):
        scoremle.load("hf:someone/digits")
