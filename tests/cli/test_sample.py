"""The command that draws samples: those of the library, in a picture or an array."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from helpers.stops import StoppedOnce
from PIL import Image

import scoremle
from scoremle import model as model_module
from scoremle.cli import main as cli
from scoremle.evaluation.pictures import STRIP, image_grid
from scoremle.experiment.results import measured
from scoremle.experiment.shipped import FOLDER
from scoremle.sampling.ends import ends
from scoremle.sampling.ode import denoise, ode_sample


def sample(capfd, *arguments):
    code = cli.main(["sample", *map(str, arguments)])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def test_samples_are_those_of_the_sampler(tmp_path, capfd):
    """The multistep solver to t = 1e-3 and the mean there, of the latents of each image's key."""
    out = tmp_path / "x.npy"
    how = ("--seed=3", "--sampler=ode", "--steps=7")
    code, told, err = sample(capfd, "digits", "-n", 5, "-o", out, *how)
    assert code == 0 and err == "" and told.endswith(f"5 samples of seed 3: {out}\n")
    (own,) = measured(FOLDER / "digits", "eval")
    assert f"digits, step {own.step:,}), by ode in 7 steps\n" in told
    model = scoremle.load("digits")

    @ends(lambda eps: None)
    def draw(noise, sde, key, shape, *, eps):
        z = sde.prior_sample(key, shape)
        x = ode_sample(noise, sde, z, eps=1e-3, solver=scoremle.Multistep(7))
        return denoise(noise, sde, x, eps=1e-3)

    expected = model.sample(8, jax.random.key(3), sampler=draw)[:5]
    found = np.load(out)
    assert found.dtype == np.uint8 and found.shape == (5, 8, 8, 1)
    assert (found != expected).mean() < 0.01  # another batch: a rounding may fall the other way


def test_a_picture_of_a_working_directory(tiny, tmp_path, capfd):
    fast = ("--sampler=dpm_solver", "--steps=3")
    assert sample(capfd, tiny.workdir, "-n", 6, "-o", tmp_path / "x.npz", *fast)[0] == 0
    assert sample(capfd, tiny.workdir, "-n", 6, "-o", tmp_path / "x.png", *fast)[0] == 0
    with np.load(tmp_path / "x.npz") as saved:
        assert saved["levels"] == 17
        grid = image_grid(saved["samples"], 17, columns=3).squeeze()
    with Image.open(tmp_path / "x.png") as picture:
        found = np.asarray(picture)
    assert found[:STRIP].min() < 100, "the caption"
    found = found[STRIP:]
    factor = found.shape[0] // grid.shape[0]
    np.testing.assert_array_equal(found[::factor, ::factor], grid)


def test_samples_that_were_stopped_go_on(tiny, tmp_path, capfd, monkeypatch):
    """With the batches that were finished, of which none is left in the end."""
    keys_of_batches = StoppedOnce(model_module.image_keys, 2)
    drawn = partial(sample, capfd, tiny.workdir, "-n", 5, "--sampler=ddim", "--steps=3", "-o")
    assert drawn(tmp_path / "whole.npy")[0] == 0
    monkeypatch.setattr(model_module, "round_up", lambda size, devices: 2)
    monkeypatch.setattr(model_module, "image_keys", keys_of_batches)
    code, _, said = drawn(tmp_path / "x.npy")
    assert code == 130 and f"are in {tmp_path}/.x.npy.parts" in said
    assert drawn(tmp_path / "x.npy")[0] == 0
    assert keys_of_batches.calls == 2 + 2  # of three batches one was finished
    found, expected = np.load(tmp_path / "x.npy"), np.load(tmp_path / "whole.npy")
    assert (found != expected).mean() < 0.01  # of another batch
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "whole.npy"}


def test_a_file_that_another_process_wrote_meanwhile_stays(tiny, tmp_path, capfd, monkeypatch):
    whole, out = model_module.image_keys, tmp_path / "x.npy"

    def meanwhile(*arguments):
        out.write_text("another's")
        return whole(*arguments)

    monkeypatch.setattr(model_module, "image_keys", meanwhile)
    code, _, said = sample(capfd, tiny.workdir, "-n", 5, "--sampler=ddim", "--steps=3", "-o", out)
    assert code == 2 and "--force writes" in said and out.read_text() == "another's"


@pytest.mark.long
def test_samples_with_log_p_are_those_of_the_library(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, told, err = sample(capfd, "digits", "-n", 3, "--steps=5", "--log-prob")
    assert code == 0 and err == "" and "Samples(3: log p" in told
    model = replace(scoremle.load("digits"), solver=scoremle.Multistep(5))
    expected = model.sample(3, jax.random.key(0), log_prob=True)
    with np.load("samples.npz") as saved:
        assert {*saved} == {*vars(expected)}
        np.testing.assert_allclose(saved["log_prob"], expected.log_prob, rtol=1e-4)
        assert saved["integers"].dtype == np.uint8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("digits", "-o", "x.npy", "--log-prob"), "--log-prob"),
        (("digits", "-o", "x.npz", "--log-prob", "--sampler=ddim"), "--log-prob"),
        (("digits", "-o", "x.jpg"), "end in .png"),
        (("digits", "-o", f"{__file__}/x.png"), "written"),
        (("digits", "-n", "0"), "argument -n"),
        (("digits", "--seed=-1"), "--seed: -1"),
        (("digits", f"--seed={2**32}"), f"not below {2**32}"),
        (("digits", "--sampler=rk45"), "invalid choice: 'rk45'"),
        (("nowhere",), "file nowhere"),
    ],
)
def test_mistakes_are_one_line(arguments, words, capfd):
    code, out, err = sample(capfd, *arguments)
    assert code == 2 and out == "" and words in err and err.count("\n") == 1


def test_samples_of_reals_are_no_picture(tmp_path, capfd):
    (tmp_path / "m.py").write_text(
        "import scoremle\n"
        "def model():\n"
        "    return scoremle.ScoreModel(lambda x, t: x, scoremle.VP(), 1e-3, (2,))\n"
    )
    place = f"{tmp_path / 'm.py'}:model"
    code, _, err = sample(capfd, place, "-o", tmp_path / "x.png")
    assert code == 2 and "not pictures" in err
    assert sample(capfd, place, "-n", 3, "-o", tmp_path / "x.npy")[0] == 0
    assert np.load(tmp_path / "x.npy").shape == (3, 2)
