"""A model by what a user has: functions of files, the hub's cache, and what is not a model."""

import json
import sys
from fnmatch import fnmatch
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import scoremle
from scoremle.cli import main as cli
from scoremle.errors import UserError
from scoremle.evaluation.baselines import histogram_bpd
from scoremle.experiment.results import measured
from scoremle.experiment.shipped import FOLDER
from scoremle.training.checksums import model_hash
from scoremle.zoo.diffusers import WEIGHTS

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
    expected = model.score(images, passes=4)
    np.testing.assert_allclose(bpd, expected.bpd, atol=5 * expected.solver_error.max() + 1e-3)


def test_a_model_whose_images_are_of_no_file(file, tmp_path, capsys):
    code = cli.main(["score", f"{file}:of_two_channels", str(tmp_path), f"--out={file}.csv"])
    assert code == 2 and "of 2 channels" in capsys.readouterr().err


def test_a_path_that_exists_wins(tmp_path, monkeypatch):
    place = tmp_path / "folder.py:model"
    place.mkdir()
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="hides the model"):
        scoremle.load("digits")
    with pytest.raises(UserError, match="known family"):
        scoremle.load(place)


def test_the_model_that_ships_finds_digits_likely():
    """Its values are those of its own evaluation, which is far below a histogram's."""
    pytest.importorskip("sklearn")
    digits, model = scoremle.data.load("digits"), scoremle.load("digits")
    (own,) = measured(FOLDER / "digits", "eval")
    assert own.mean < histogram_bpd(digits.train, digits.test, digits.levels).mean() - 0.4
    found = model.score(digits.test[:12]).bpd
    assert found.mean() == pytest.approx(own.values[:12].mean(), abs=0.05)
    assert repr(model).endswith(f"188,769 parameters, digits, step {own.step:,})")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("{file}:other", "no function other"),
        ("{file}:scoremle", "no function scoremle"),
        ("{file}:broken", "line 13, .*ZeroDivisionError"),
        ("{file}:leaves", "line 19, .*SystemExit"),
        ("{file}:number", "a ScoreModel"),
        ("{file}x.py:model", "no file"),
        ("{file}", "known family"),
        ("nowhere", "file nowhere"),
    ],
)
def test_mistakes_are_one_line(file, place, words):
    with pytest.raises(UserError, match=words) as error:
        scoremle.load(place.format(file=file))
    assert "\n" not in str(error.value)


def test_a_number_of_a_checkpoint_is_of_a_working_directory(file):
    for place in ("digits", f"{file}:model"):
        with pytest.raises(UserError, match="the number 7"):
            scoremle.load(place, 7)


def test_a_mistake_has_its_line_in_a_file_beside_us(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    with pytest.raises(UserError, match=r"^mine.py, line 13"):
        scoremle.load("mine.py:broken")


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The folder of a commit in a cache as the hub's library leaves it, offline."""
    pytest.importorskip("huggingface_hub")
    cache = tmp_path / "models--someone--ddpm"
    (cache / "refs").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_OFFLINE", True)

    def add(revision, commit):
        (cache / "refs" / revision).write_text(commit)
        return cache / "snapshots" / commit

    return add


@pytest.mark.long
def test_a_model_on_the_hub_is_its_folder(cached):
    """Two revisions of it in the hub's cache; weights in the older form, where no others are."""
    torch, diffusers = map(pytest.importorskip, ("torch", "diffusers"))
    for seed, revision in enumerate(("main", "v1")):
        torch.manual_seed(seed)
        unet = diffusers.UNet2DModel(
            sample_size=4, in_channels=1, out_channels=1, layers_per_block=1,
            block_out_channels=(8, 8), norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        )  # fmt: skip
        folder = cached(revision, f"{seed:040d}")
        diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder)
        if seed:
            unet.save_pretrained(folder / "unet", safe_serialization=False)
            (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
        found, here = scoremle.load("hf:someone/ddpm" + "@v1" * seed), scoremle.load(folder)
        for mine, theirs in zip(*map(jax.tree.leaves, (found, here)), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(UserError, match="from the hub"):
        scoremle.load("hf:someone/ddpm@v2")


class Hub:
    """Stands for the hub: files by name, each its content or its size; and what was fetched."""

    def __init__(self, folder, files):
        self.folder, self.files, self.fetched = folder / COMMIT, files, []

    def snapshot_download(self, repo_id, *, revision, allow_patterns, dry_run=False):
        assert repo_id == "someone/ddpm" and revision in (None, COMMIT)
        names = [name for name in self.files if any(fnmatch(name, p) for p in allow_patterns)]
        if dry_run:
            sizes = [len(c) if isinstance(c, bytes) else c for c in map(self.files.get, names)]
            return [
                SimpleNamespace(filename=n, file_size=s) for n, s in zip(names, sizes, strict=True)
            ]
        for name in names:
            self.fetched.append(name)
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(self.files[name])
        return str(self.folder)


COMMIT = "0123456789" * 4
PIPELINE = {
    "model_index.json": b'{"_diffusers_version": "0.1", "unet": ["diffusers", "UNet2DModel"]}',
    "unet/config.json": json.dumps(
        {"_diffusers_version": "0.1", "sample_size": 4, "in_channels": 1, "out_channels": 1,
         "layers_per_block": 1, "block_out_channels": [8], "norm_num_groups": 4,
         "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    ).encode(),
    "scheduler/scheduler_config.json": b'{"beta_schedule": "linear"}',
    "unet/diffusion_pytorch_model.safetensors": b"no tensors",
    "unet/diffusion_pytorch_model.bin": b"no tensors",
    "vae/config.json": b"{}", "vae/diffusion_pytorch_model.safetensors": b"no tensors",
    "tokenizer/vocab.json": b"{}", "README.md": b"", "code.py": b"",
}  # fmt: skip
READ = ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"]


@pytest.mark.parametrize(
    ("changed", "words", "fetched"),
    [
        ({}, "complete safetensors", [*READ, "unet/diffusion_pytorch_model.safetensors"]),
        ({"model_index.json": b'{"vae": []}'}, "a vae", READ),
        ({"unet/config.json": b'{"sample_size": 4, "in_channels": "x"}'}, "in_channels", READ),
        ({"scheduler/scheduler_config.json": b"{}"}, "no betas", READ),
        ({"unet/config.json": 2 << 20}, "2097152 bytes", []),
        (dict.fromkeys([f"unet/{name}" for name in WEIGHTS], ...), r"no .*safetensors.* or", READ),
        ({"unet/diffusion_pytorch_model.safetensors": 1 << 40}, "1099511627776 bytes", READ),
        ({"unet/diffusion_pytorch_model.safetensors": None}, "of None bytes", READ),
    ],
)
def test_no_more_is_fetched_than_is_read_and_may_be_served(
    changed, words, fetched, tmp_path, monkeypatch
):
    pytest.importorskip("huggingface_hub")
    files = {name: of for name, of in (PIPELINE | changed).items() if of is not ...}
    hub = Hub(tmp_path, files)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    with pytest.raises(UserError, match=words) as error:
        scoremle.load("hf:someone/ddpm")
    assert sorted(hub.fetched) == sorted(fetched) and "\n" not in str(error.value)


def test_the_hub_needs_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'scoremle\[hub\]'"):
        scoremle.load("hf:someone/digits")


def test_a_model_is_the_same_in_double_precision():
    hashes = set()
    for precise in (False, True):
        with jax.enable_x64(precise):
            hashes.add(model_hash(scoremle.load("digits")))
    assert len(hashes) == 1
