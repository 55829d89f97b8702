"""Parameters and values that are not finite: every door refuses them in one line."""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_runs import run

import scoremle
from scoremle import published
from scoremle.cli import main as cli
from scoremle.errors import UserError
from scoremle.experiment.build import build
from scoremle.experiment.workdir import Workdir
from scoremle.published import state_dict

IMAGES = scoremle.data.load("digits").test[:3]
WORDS = "not all finite"
EXACT = {"eval__num_images": 3}
SAMPLES = {"eval__enable_bpd": False, "eval__enable_sampling": True, "eval__num_samples": 3}


def poisoned(tree):
    """One number of one array becomes NaN."""
    leaves, structure = jax.tree.flatten(tree)
    leaves[-1] = jnp.asarray(leaves[-1]).ravel().at[0].set(jnp.nan).reshape(leaves[-1].shape)
    return jax.tree.unflatten(structure, leaves)


@pytest.fixture(scope="module")
def broken(tiny, tmp_path_factory):
    """The tiny workdir, whose newest snapshot has a NaN; and the same as published."""
    folder = tmp_path_factory.mktemp("broken")
    workdir = folder / "workdir"
    shutil.copytree(tiny.workdir, workdir)
    place = Workdir(workdir)
    template = build(place.config(), levels=17).training.template
    state, meta, number = place.snapshots.restore(template)
    state = state._replace(ema=poisoned(state.ema))
    place.snapshots.save(number, state, meta)
    tree = published.published_tree(state, lr=1e-3, ema_rate=0.9, rng=[0, 1])
    state_dict.write(folder / "checkpoint_1", tree)
    np.save(folder / "x.npy", IMAGES)
    return folder


@pytest.mark.parametrize(
    "door",
    [
        lambda folder: cli.main(
            ["score", f"{folder}/workdir", f"{folder}/x.npy", f"--out={folder}/scores.csv"]
        ),
        lambda folder: run("eval", folder / "workdir", "--eval_folder=e", **EXACT),
        lambda folder: run("eval", folder / "workdir", "--eval_folder=e", **SAMPLES),
        lambda folder: run("train_deq", folder / "workdir", "--deq_folder=d"),
        lambda folder: cli.main(["export", f"{folder}/workdir", f"{folder}/w.safetensors"]),
        lambda folder: cli.main(["import", f"{folder}/checkpoint_1", f"--out={folder}/imported"]),
    ],
    ids=["score", "eval", "sample", "train_deq", "export", "import"],
)
def test_parameters_that_are_not_finite(door, broken, capfd):
    before = {path for path in broken.rglob("*") if path.is_file()}
    assert door(broken) == 2
    err = capfd.readouterr().err
    assert WORDS in err and re.fullmatch(r"scoremle: error: [^\n]+\n", err), err
    assert {path for path in broken.rglob("*") if path.is_file()} == before


def test_parameters_that_are_not_finite_from_python(broken):
    with pytest.raises(UserError, match=WORDS):
        scoremle.load(broken / "workdir")
    assert scoremle.load(broken / "workdir", 1).origin.step == 10


def nan_where_white(x, t):
    return jnp.where((x > 0.9).all(axis=(1, 2, 3), keepdims=True), jnp.nan, x)


def test_values_that_are_not_finite():
    pixels, solver = scoremle.Pixels(16), scoremle.Multistep(4)
    model = scoremle.ScoreModel(nan_where_white, scoremle.VP(), 1e-3, (2, 2, 1), pixels, solver)
    images = np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1)
    assert np.isfinite(model.score(images).bpd).all()
    images = np.concatenate([images, np.full((1, 2, 2, 1), 15, np.uint8)])
    for index, name in ((None, 2), (np.array([5, 6, 7]), 7)):
        with pytest.raises(UserError, match=f"of image {name}"):
            model.score(images, index=index)


@pytest.mark.parametrize(
    ("scale", "options"),
    [
        (jnp.nan, {"pixels": scoremle.Pixels(16)}),
        (jnp.nan, {}),
        (1.0, {"bijector": scoremle.Affine(3e38, 3e38)}),
    ],
)
def test_samples_that_are_not_finite(scale, options):
    """Decoded, NaN would be a pixel like any other."""
    model = scoremle.ScoreModel(
        lambda x, t: x * scale, scoremle.VP(), 1e-3, (2, 2, 1), solver=scoremle.Multistep(4),
        **options,
    )  # fmt: skip
    with pytest.raises(UserError, match="sample 0"):
        model.sample(2, jax.random.key(0))


OWN = """
import jax.numpy as jnp
import scoremle

def nan():
    return make(lambda x, t: x * jnp.nan, (2, 2, 1), scoremle.Pixels(16))

def reals():
    return make(lambda x, t: x, (2,), None)

def flat():
    return make(lambda x, t: x, (4,), scoremle.Pixels(16))

def make(noise, shape, pixels):
    return scoremle.ScoreModel(noise, scoremle.VP(), 1e-3, shape, pixels)
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [("nan", "no image has"), ("reals", "no pixels"), ("flat", "integer images")],
)
def test_an_own_model_that_has_no_value(name, words, tmp_path, capfd):
    """Which is seen where it is used: what a function closes over can't be looked at."""
    (tmp_path / "own.py").write_text(OWN)
    np.save(tmp_path / "x.npy", np.zeros((1, 2, 2, 1), np.uint8))
    out = tmp_path / "scores.csv"
    place = f"{tmp_path / 'own.py'}:{name}"
    assert cli.main(["score", place, str(tmp_path / "x.npy"), f"--out={out}"]) == 2
    err = capfd.readouterr().err
    assert words in err and err.count("\n") == 1 and not out.exists(), err
