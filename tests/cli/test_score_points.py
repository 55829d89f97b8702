"""The command that finds log p of points: the library's values, in a table."""

import csv
import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.stops import StoppedOnce

from scoremle.cli import main as cli
from scoremle.cli.commands import score_points
from scoremle.core.keys import image_keys
from scoremle.experiment.models import load
from scoremle.likelihood.ode import warn_of_rows

MODEL = """
import jax.numpy as jnp
import scoremle

def model(**options):
    '''Data N((1, -2), diag(1/4, 1)), of which little is left at t = 1.'''
    sde = scoremle.VP()
    def noise(x, t):
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        variance = alpha**2 * jnp.asarray([0.25, 1.0]) + sigma**2
        return sigma * (x - alpha * jnp.asarray([1.0, -2.0])) / variance
    return scoremle.ScoreModel(noise, sde, eps=1e-4, shape=(2,), **options)

def positive():
    return model(bijector=scoremle.Bounded(low=0.0))

def far():
    return model(bijector=scoremle.Affine(1e8, 1.0))
"""
X = np.random.default_rng(0).normal([1, -2], [0.5, 1], size=(7, 2))


@pytest.fixture
def score(tmp_path, capfd, monkeypatch):
    """Scores an array: the exit code, both sides of what is printed, and the table."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODEL)
    (tmp_path / "x.NPY").symlink_to("points.npy")

    def scored(points, *flags, model="model"):
        np.save("points.npy", points)
        code = cli.main(["score", f"mine.py:{model}", "x.NPY", *flags])
        told, said = capfd.readouterr()
        table = []
        if (tmp_path / "scores.csv").exists():
            with open("scores.csv", newline="") as file:
                table = list(csv.DictReader(file))
        return code, told, said, table

    return scored


def test_points_have_the_librarys_values_and_errors(score):
    code, told, said, table = score(X, "--repeats=3", "--seed=5", "--json")
    assert code == 0 and [row["point"] for row in table] == [*map(str, range(7))]
    model = load("mine.py:model")
    passes = [
        model.log_prob(X, image_keys(jax.random.fold_in(jax.random.key(5), i), np.arange(7)))
        for i in range(3)
    ]
    values = np.asarray([found.log_prob for found in passes], float)
    summary = json.loads(told)
    assert summary["mean"] == pytest.approx(values.mean(), abs=1e-5)
    assert summary["stderr"] == pytest.approx(values.mean(axis=0).std(ddof=1) / 7**0.5, rel=1e-3)
    assert (summary["unit"], summary["points"], summary["passes"]) == ("nats", 7, 3)
    assert json.loads(Path("scores.csv.json").read_text()) == summary
    solver = np.mean([found.solver_error for found in passes], axis=0)
    for i, row in enumerate(table):
        error = float(row["error"])
        assert float(row["log_prob"]) == pytest.approx(values[:, i].mean(), abs=error)
        assert error == pytest.approx(solver[i] / 2, rel=0.2)  # few steps: their error is larger
    truth = -0.5 * (((X - [1, -2]) / [0.5, 1]) ** 2).sum(axis=1) - np.log(2 * np.pi * 0.5)
    # Of data that are N(0, I) at t = 1, which these are but for alpha = 0.0066.
    np.testing.assert_allclose([float(row["log_prob"]) for row in table], truth, atol=0.05)
    assert said == ""
    with_another = np.append(X, [[np.nan, 0]], axis=0)
    _, told, _, _ = score(with_another, "--skip-bad", "--repeats=3", "--seed=5", "--force")
    assert told.startswith("log p of 7 points") and "3 passes of 41 network evaluations" in told
    assert f"mean {values.mean():.4f} +- " in told


def test_points_that_were_stopped_go_on(score, capfd, monkeypatch):
    """With the batches that were finished, of which none is left in the end."""
    keys_of_batches = StoppedOnce(score_points.image_keys, 4)
    flags = "--repeats=2", "--seed=5", "--json"
    _, expected, _, _ = score(X, *flags)
    monkeypatch.setattr(score_points, "POINTS_AT_ONCE", 4)
    monkeypatch.setattr(score_points, "image_keys", keys_of_batches)
    code, _, said, _ = score(X, *flags, "--force")
    assert code == 130 and "are in .scores.csv.parts" in said
    code, found, _, _ = score(X, *flags, "--force")
    assert code == 0 and keys_of_batches.calls == 4 + 1
    expected, found = json.loads(expected), json.loads(found)
    assert found["mean"] == pytest.approx(expected["mean"], abs=1e-5)
    assert found["estimator"] == expected["estimator"]
    assert not [path.name for path in Path().iterdir() if "parts" in path.name]


def test_a_table_that_another_process_wrote_meanwhile_stays(score, monkeypatch):
    whole = score_points.image_keys

    def meanwhile(*arguments):
        Path("scores.csv").write_text("another's")
        return whole(*arguments)

    monkeypatch.setattr(score_points, "image_keys", meanwhile)
    code, _, said, _ = score(X, "--repeats=1")
    assert code == 2 and "--force writes" in said
    assert Path("scores.csv").read_text() == "another's"


def test_points_keep_the_digits_that_float32_loses_beside_an_offset(score):
    _, _, _, table = score(1e8 + X, model="far")
    values = load("mine.py:model").log_prob(X, jax.random.key(0)).log_prob
    np.testing.assert_allclose([float(row["log_prob"]) for row in table], values, atol=0.02)


def test_points_without_log_p_are_refused_or_left_out(score):
    """Each with its reason: no number, and outside of what the bijector takes."""
    points = np.abs(X) + 0.1
    points[2, 1], points[4] = np.nan, -1
    code, _, said, table = score(points, model="positive")
    assert code == 2 and not table
    assert "point 2" in said
    code, told, _, table = score(points, "--skip-bad", "--json", "--repeats=1", model="positive")
    assert code == 3 and json.loads(told)["left_out"] == 2
    notes = [row["note"] for row in table]
    assert [i for i, note in enumerate(notes) if note] == [2, 4]
    code, told, _, _ = score(
        points, "--skip-bad", "--repeats=1", "--force", model="positive"
    )
    assert code == 3 and "2 of 7 points have no log p" in told
    assert "bijector" in notes[4] and table[4]["log_prob"] == ""
    alone = load("mine.py:positive").log_prob(
        points[[6]], image_keys(jax.random.fold_in(jax.random.key(0), 0), np.asarray([6]))
    )
    assert float(table[6]["log_prob"]) == pytest.approx(float(alone.log_prob[0]), abs=1e-3)


@pytest.mark.filterwarnings("default")
def test_points_that_the_solver_fails_on_are_counted_once(score):
    code, _, said, table = score(1e30 * X)
    assert code == 2 and not table and "7 of 7" in said and said.count("\n") == 1


@pytest.mark.filterwarnings("default")
def test_a_large_error_of_the_solver_is_said_of_the_points_in_a_line(score, monkeypatch):
    monkeypatch.setattr(score_points, "warn_of_rows", partial(warn_of_rows, tolerance=1e-9))
    code, _, said, _ = score(X)
    assert code == 0 and "of 7 of 7 examples" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("points", "flags", "words"),
    [
        (X[:, :1], (), "no pixels"),
        (X.astype(int), (), "int64"),
        (X[:0], (), "(0, 2)"),
        (1e300 * X, (), "not finite"),
        (np.full((2, 2), np.nan), ("--skip-bad",), "2 of 2"),
        (X, ("--page=x.html",), "--page is"),
        (X, ("--estimator=bound",), "--estimator is"),
        (X, ("--label=3",), "--label is"),
    ],
)
def test_mistakes_are_one_line(score, points, flags, words):
    code, told, said, table = score(points, *flags)
    assert (code, told, table) == (2, "", []) and words in said and said.count("\n") == 1
