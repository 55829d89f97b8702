"""A trained model from Python: scores of integer images, in batches, and clear refusals."""

import json
import shutil

import jax
import numpy as np
import pytest

import scoremle
from scoremle.errors import UserError
from scoremle.experiment.build import build
from scoremle.experiment.workdir import Workdir
from scoremle.files import SEAL, read_json, read_sealed, write_sealed
from scoremle.likelihood.images import ByOde
from scoremle.likelihood.score_images import _compiled_measure

TEST = scoremle.data.load("digits").test


@pytest.fixture(scope="module")
def model(tiny):
    return scoremle.load(tiny.workdir)


def compilations():
    """The number of programs of scores."""
    return sum(each._alone.jitted._cache_size() for each in _compiled_measure._programs.values())


def test_many_images_are_one_program(model):
    before = compilations()
    scores = model.score(TEST[:70], batch_size=16)
    assert compilations() <= before + 1
    some = model.score(TEST[:40], batch_size=16)
    np.testing.assert_array_equal(scores.bpd[:40], some.bpd)
    assert not np.array_equal(some.bpd, model.score(TEST[:40], batch_size=16, seed=1).bpd)


def test_numbers_of_images_share_programs(model):
    scores = model.score(TEST[:9], batch_size=16)
    before = compilations()
    for n in (10, 13, 16, 30):
        found = model.score(TEST[:n], batch_size=16).bpd
        np.testing.assert_array_equal(found[:9], scores.bpd)
    assert compilations() == before


def test_grey_images_need_no_axis_for_their_channel(model):
    np.testing.assert_array_equal(model.score(TEST[:5, ..., 0]).bpd, model.score(TEST[:5]).bpd)


@pytest.mark.long
def test_the_error_over_passes_is_that_of_the_mean(model):
    """It covers the dequantization noise, which the probes' error leaves out."""
    images, passes = TEST[:50], 4
    two_probes = ByOde(scoremle.Hutchinson(probes=2), model.solver)
    means = [
        model.score(images, seed=s, passes=passes, estimator=two_probes) for s in range(5)
    ]
    spread = np.sqrt(np.mean(np.var([m.bpd for m in means], axis=0, ddof=1)))
    stated = np.sqrt(np.mean([m.stderr**2 for m in means]))
    assert 0.85 < stated / spread < 1.15
    assert np.sqrt(np.mean([m.probe_stderr**2 for m in means])) < spread
    one = model.score(images, estimator=two_probes)
    assert np.isnan(one.stderr).all()
    ratio = np.sqrt(np.mean(one.probe_stderr**2) / np.mean(means[0].probe_stderr**2))
    assert ratio == pytest.approx(np.sqrt(passes), rel=0.2)
    np.testing.assert_allclose(means[0].log_prob, -means[0].bpd * 64 * np.log(2))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": -1}, "seed must"), ({"seed": 2**32}, "not 4294967296"),
        ({"passes": 0}, "passes must"),
    ],
)  # fmt: skip
def test_seeds_and_passes_that_are_none(model, settings, words):
    with pytest.raises(UserError, match=words):
        model.score(TEST[:1], **settings)


def test_a_model_says_in_a_line_what_it_is(model):
    assert len(repr(model)) < 200
    for words in ("digits", "8x8x1", "17 levels", "VP(beta_min=0.1", "parameters", "step 20"):
        assert words in repr(model)


def test_errors_come_with_the_scores(model):
    scores = model.score(TEST[:20], batch_size=16)
    assert (scores.probe_stderr > 0).all() and np.isfinite(scores.probe_stderr).all()
    assert (scores.solver_error >= 0).all() and scores.solver_error.shape == (20,)


def test_no_images_have_no_scores(model):
    assert model.score(np.zeros((0, 8, 8, 1), np.uint8)).log_prob.shape == (0,)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 8, 8, 1)), "not float64"),
        (np.zeros((8, 8, 1), np.uint8), "uint8 of shape"),
        (np.zeros((8, 8, 1), np.uint8), "; try images[None]"),
        (np.zeros((8, 8), np.uint8), "; try images[None]"),
        (np.zeros((2, 1, 8, 8), np.uint8), "images.transpose(0"),
        (np.eye(8)[None, ..., None], "(16 * images).round()"),
        (16 * np.eye(8), "images[None]; try images.round()"),
        (np.full((2, 8, 8), "a"), "of <U1"),
        (np.zeros((2, 28, 28, 1), np.uint8), "shape (2, 28"),
        (np.full((2, 8, 8, 1), 17, np.uint8), "in 0..16"),
        ([[0, 1], [2, 3]], "shape (2, 2)"),
    ],
)
def test_other_images_are_refused(model, images, words, unchecked):
    with pytest.raises(UserError) as error:
        model.score(images)
    assert words in str(error.value)


def test_loading(tiny, model, tmp_path):
    assert model.origin.step == 20
    first = scoremle.load(str(tiny.workdir), checkpoint=1)
    assert first.origin.step == 10
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(first.noise), jax.tree.leaves(model.noise), strict=True)
    )
    with pytest.raises(UserError, match="file missing"):
        scoremle.load("missing")
    with pytest.raises(UserError, match="no checkpoint 7"):
        scoremle.load(tiny.workdir, checkpoint=7)
    with pytest.raises(UserError, match="known family"):
        scoremle.load(tmp_path)
    for name in ("config.json", "data.json"):
        shutil.copy(tiny.workdir / name, tmp_path)
    with pytest.raises(UserError, match="no checkpoint in"):
        scoremle.load(tmp_path)
    config = read_json(tmp_path / "config.json")
    del config[SEAL]
    for changed, words in [
        ({"training": []}, "training is a"),
        ({"model": {**config["model"], "nf": "4"}}, "model.nf must"),
        ({"seed": None}, "seed must"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps({**config, **changed}))
        with pytest.raises(UserError, match=words):
            scoremle.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="can't be read"):
        scoremle.load(tmp_path)


def test_a_model_is_not_loaded_with_another_sde_than_it_was_trained_with(tiny, tmp_path):
    """One digit of beta_max makes other bits/dim; as sealed, and with a seal that fits again."""
    for name in ("config.json", "data.json"):
        shutil.copy(tiny.workdir / name, tmp_path)
    shutil.copytree(tiny.workdir / "checkpoints", tmp_path / "checkpoints")
    path = tmp_path / "config.json"
    text = path.read_text()
    assert text.count('"beta_max": 20.0') == 1
    path.write_text(text.replace('"beta_max": 20.0', '"beta_max": 30.0'))
    with pytest.raises(UserError, match=r"config\.json .*written"):
        scoremle.load(tmp_path)
    content = read_json(path)
    del content[SEAL]
    write_sealed(path, content)
    with pytest.raises(UserError, match=r"beta_max=30\.0, .* 20\.0"):
        scoremle.load(tmp_path)
    path.write_text(text)
    write_sealed(tmp_path / "data.json", {"levels": 256})
    with pytest.raises(UserError, match=r"levels=256, .* 17"):
        scoremle.load(tmp_path)


def test_the_config_comes_back_as_it_was(tiny):
    experiment = build(Workdir(tiny.workdir).config(), levels=17)
    assert dict(experiment.config) == read_sealed(tiny.workdir / "config.json", "")
    assert experiment.model.network.ch_mult == (1,)


def test_a_model_works_where_its_data_set_is_not(tiny, model, monkeypatch):
    def absent(*_, **__):
        raise UserError("the data set is not here")

    monkeypatch.setattr("scoremle.data.load", absent)
    found = scoremle.load(tiny.workdir).score(TEST[:5]).bpd
    np.testing.assert_array_equal(found, model.score(TEST[:5]).bpd)
