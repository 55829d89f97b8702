"""The callable for pipelines: the values of ``ScoreModel.score``, image by image."""

import pickle

import numpy as np
import pytest

import scoremle

IMAGES = scoremle.data.load("digits").test[:5]
INDEX = np.asarray([7, 2**63 + 5, 0, 2**33, 4], np.uint64)
VALUES = ("log_prob", "bpd", "probe_stderr", "solver_error")


def digits():
    return scoremle.load("digits")


@pytest.fixture(scope="module")
def expected():
    return digits().score(IMAGES, index=INDEX, seed=3)


@pytest.fixture(scope="module")
def scorer():
    return scoremle.Scorer("digits", seed=3, batch_size=2)


def same(found, expected, rows=slice(None)):
    for name in VALUES:
        np.testing.assert_allclose(found[name], getattr(expected, name)[rows], rtol=2e-5)


def test_values_belong_to_images(scorer, expected):
    found = scorer({"image": IMAGES, "index": INDEX})
    same(found, expected)
    np.testing.assert_array_equal(found["index"], INDEX)
    order = np.asarray([3, 1])
    same(scorer({"image": IMAGES[order], "index": INDEX[order]}), expected, order)


def test_a_column_of_arrays(scorer, expected):
    column = np.empty(2, object)
    column[:] = list(IMAGES[:2])
    same(scorer({"image": column, "index": INDEX[:2]}), expected, slice(2))


@pytest.mark.parametrize(
    ("model", "words"),
    [(digits, "lambda: model"), (lambda: lambda: 3, "load"), (lambda: None, "place")],
)
def test_what_has_no_model_is_refused(model, words, unchecked):
    with pytest.raises(scoremle.UserError, match=words):
        scoremle.Scorer(model())


def test_pickled(scorer, expected):
    data = pickle.dumps(scoremle.Scorer(digits, seed=3, batch_size=2))
    assert len(data) < 1000  # the place of the model, not the model
    same(pickle.loads(data)({"image": IMAGES[:2], "index": INDEX[:2]}), expected, slice(2))


def test_a_name_is_an_index_and_comes_back(scorer):
    names = ["a.png", "b.png"]
    found = scorer({"image": IMAGES[:2], "name": names})
    # printf a.png | sha256sum: the first 8 bytes, the lowest first
    assert found["index"].tolist() == [6394935000140220287, 17652824638580349279]
    assert found["name"].tolist() == names


def of_many_levels():
    return scoremle.ScoreModel(
        lambda x, t: x, scoremle.VP(), 1e-3, (1, 2, 1), scoremle.Pixels(1000)
    )


@pytest.mark.parametrize("model", ["digits", of_many_levels])
def test_nothing(model):
    found = scoremle.Scorer(model)({"image": np.zeros((0,)), "index": np.zeros(0)})
    assert all(len(column) == 0 for column in found.values())


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"index": [1]}, "holds index"),
        ({"image": IMAGES[:1]}, "must hold 'index'"),
        ({"image": IMAGES[:1], "index": [-1]}, "whole numbers"),
        ({"image": IMAGES[:2], "index": [0]}, "index"),
        ({"image": IMAGES[:1, :4], "index": [0]}, "8"),
    ],
)
def test_what_is_refused(scorer, batch, words, unchecked):
    with pytest.raises(scoremle.UserError, match=words):
        scorer(batch)
