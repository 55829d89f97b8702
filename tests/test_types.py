"""A user's own file passes ``mypy --strict``, and what is wrong in it is seen."""

import os
import subprocess
import sys

import pytest
from helpers.places import CACHE, ROOT

import scoremle

pytest.importorskip("mypy")

MINE = """
import jax
import jax.numpy as jnp
import numpy as np

import scoremle

SDE = scoremle.VP()


def noise(x: jax.Array, t: jax.Array) -> jax.Array:
    return SDE.sigma(t)[:, None] * x


def of_vectors() -> scoremle.ScoreModel:
    return scoremle.ScoreModel(noise, SDE, eps=1e-3, shape=(2,))


def bits(images: np.ndarray, key: jax.Array) -> float:
    model = scoremle.load("digits")
    finer = scoremle.ByOde(scoremle.Hutchinson(probes=8), scoremle.Multistep(steps=64))
    scores: scoremle.Scores = model.score(images, passes=2, estimator=finer)
    better, choice = model.calibrated(images)
    print(choice.solver.steps, better.check(images), len(scores), scores.to_pandas().columns)
    samples: np.ndarray = model.sample(4, key)
    return float(scores.bpd.mean()) + float(scores.stderr.max()) + float(samples.mean())


def nats(x: jax.Array, key: jax.Array) -> jax.Array:
    exact = scoremle.ode_log_likelihood(noise, SDE, x, key, eps=1e-3).log_prob
    times = scoremle.UniformLogSNR(SDE, 1e-3, stratified=True)
    bound = scoremle.elbo(noise, SDE, x, key, eps=1e-3, times=times, draws=8)
    v = scoremle.noise_fn(lambda x, t: x, SDE, prediction="v")
    loss = scoremle.denoising_loss(v, SDE, x, key, times=times, weighting="likelihood")
    return exact - bound.log_prob + loss


def under(x: jax.Array, t: jax.Array, given: dict[str, jax.Array]) -> jax.Array:
    return noise(x - given["mean"], t)


def of_numpy(x: np.ndarray, key: jax.Array, with_density: bool) -> object:
    # As docs/howto/vectors.md calls them.
    model = scoremle.ScoreModel(under, SDE, eps=1e-3, shape=(3,))
    chosen, _ = model.within(0.05, x)
    found = scoremle.ode_log_likelihood(noise, SDE, x, key, eps=1e-4, tolerance=0.05)
    lines = model.check(x), model.profile(x), model.elbo(x, key), chosen.log_prob(x, key)
    maps = scoremle.Affine.standardizing(x), model.encode(x), model.decode(x)
    return found, lines, maps, model.sample(3, key, log_prob=with_density)


data = scoremle.data.load("digits")
print(of_vectors().log_prob(jnp.zeros((1, 2)), jax.random.key(0)), data.test.shape)
"""
WRONG = {
    "scoremle.Nonsense": 'Module has no attribute "Nonsense"',
    'scoremle.load("digits").score("images.npy")': 'Argument 1 to "score"',
    'scoremle.VP(beta="large")': 'Unexpected keyword argument "beta" for "VP"',
}


@pytest.mark.long
def test_a_users_file(tmp_path):
    """Read with the package as one that is installed."""
    names = [f"print(scoremle.{name})" for name in scoremle.__all__]
    lines = [*MINE.splitlines(), *names, *WRONG]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    words = ["--strict", "--follow-imports=silent", f"--cache-dir={CACHE}/mypy", "mine.py"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"MYPYPATH": str(ROOT)},
    )  # fmt: skip
    told = done.stdout + done.stderr
    for line, words in enumerate(WRONG.values(), len(lines) - len(WRONG) + 1):
        assert f"mine.py:{line}: error: {words}" in told, told
    assert told.count(": error: ") == len(WRONG), told  # and all the rest is right
