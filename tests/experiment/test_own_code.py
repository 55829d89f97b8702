"""A mistake in a user's file is one line with its file, line and function, and the error."""

import re

import numpy as np
import pytest

from scoremle.cli import main as cli

FILE = """
import jax, jax.numpy as jnp, numpy as np, scoremle
from beside import helped

def make(noise):
    def model():
        return scoremle.ScoreModel(noise, scoremle.VP(), 1e-3, (2, 2, 1), scoremle.Pixels(4))
    return model

def called(x, t):
    def raises(x):
        raise OSError(2, "no weights", "w.npz")
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    x = jax.lax.stop_gradient(x)
    return jax.pure_callback(raises, like, x, vmap_method="sequential")

def bounced(x, t):
    return bounced(x, t)

def learned(x, t):
    raise KeyError("layer")

def converted(x, t):
    return jnp.asarray(np.tanh(np.asarray(x)))

def branched(x, t):
    return x if x.sum() > 0 else -x

def ended(x, t):
    raise SystemExit(0)

def nothing(x, t):
    x * 2

def short(x, t):
    return x[:1]

models = [called, bounced, learned, converted, branched, ended, nothing, short, helped]
for noise in models:
    globals()[f"of_{noise.__name__}"] = make(noise)

def of_network():
    sde = scoremle.VP()
    noise = scoremle.noise_fn(nothing, sde, prediction="v")
    return scoremle.ScoreModel(noise, sde, 1e-3, (2, 2, 1), scoremle.Pixels(4))

number = 3
"""
BESIDE = """
def helped(x, t):
    return x.nonsense
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "beside.py").write_text(BESIDE)
    np.save(tmp_path / "x.npy", np.zeros((2, 2, 2, 1), np.uint8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("of_called", "mine.py, line 12, in raises: FileNotFoundError: .*w.npz"),
        ("of_bounced", "mine.py, line 18, in bounced: RecursionError: maximum recursion"),
        ("of_learned", "mine.py, line 21, in learned: KeyError: 'layer'"),
        ("of_converted", "mine.py, line 24, in converted: TracerArrayConv.*use jax.numpy"),
        ("of_branched", "mine.py, line 27, in branched: TracerBoolConv.*use jax.numpy.where"),
        ("of_ended", "mine.py, line 30, in ended: SystemExit: 0"),
        ("of_nothing", r"nothing \(\S*mine.py, line 32\) gives None where x has"),
        ("of_network", r"nothing \(\S*mine.py, line 32\) gives None where x has"),
        ("of_short", r"short \(\S*mine.py, line 35\) gives shape .* where x has"),
        ("of_helped", "beside.py, line 3, in helped: AttributeError: .*nonsense"),
        ("number", "mine.py has no function number"),
    ],
)
def test_a_function_that_is_called_later(function, words, place, capfd):
    for command in (["score", f"mine.py:{function}", "x.npy"], ["sample", f"mine.py:{function}"]):
        assert cli.main(command) == 2
        err = capfd.readouterr().err
        assert re.fullmatch(f"scoremle: error: {words}[^\n]*\n", err), err


def test_code_where_its_function_must_be_named_or_a_file_is_wanted(place, capfd):
    for command, words in (
        (["score", "mine.py", "x.npy"], "name its function"),
        (["import", "mine.py", "a"], "is code"),
        (["import", "mine.py:of_called", "a"], "is code"),
    ):
        assert cli.main(command) == 2
        err = capfd.readouterr().err
        assert words in err and err.count("\n") == 1


def test_the_whole_error_is_shown_with_a_flag(place, capfd):
    assert cli.main(["score", "mine.py:of_learned", "x.npy", "--debug"]) == 2
    err = capfd.readouterr().err
    assert "Traceback" in err and 'raise KeyError("layer")' in err
