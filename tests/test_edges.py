"""What is wrong for the functions of arrays is refused; what is right keeps its precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.oracles import SDES, Gaussian

import scoremle
from scoremle.core.dequantize import TruncatedNormal
from scoremle.sampling.ode import euler_sample

SDE, KEY, EPS = SDES["vp"], jax.random.key(0), 1e-3
DATA = Gaussian.random(3, 2, 0.6)
TIMES = scoremle.UniformLogSNR(SDE, EPS)
X = DATA.draw(0, 8)

FUNCTIONS = {
    "loss": lambda noise, x: scoremle.denoising_loss(
        noise, SDE, x, KEY, times=TIMES, weighting="likelihood"
    ),
    "exact": lambda noise, x: scoremle.ode_log_likelihood(
        noise, SDE, x, KEY, eps=EPS, solver=scoremle.Multistep(8)
    ).log_prob,
    "bound": lambda noise, x: scoremle.likelihood_bound(
        noise, SDE, x, KEY, eps=EPS, times=TIMES, draws=4
    ).log_prob,
    "sliced bound": lambda noise, x: scoremle.likelihood_bound(
        noise, SDE, x, KEY, eps=EPS, times=TIMES, draws=4, matching="sliced"
    ).log_prob,
    "latents": lambda noise, x: scoremle.ode_sample(
        noise, SDE, x, eps=EPS, solver=scoremle.Multistep(8)
    ),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


@every_function
def test_an_array_of_numpy_is_one_of_jax(name):
    """float64 becomes float32 without a warning, and the values are those of float32."""
    found = FUNCTIONS[name](DATA.noise(SDE), X)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, FUNCTIONS[name](DATA.noise(SDE), jnp.float32(X)))


@every_function
def test_the_precision_is_that_of_the_data(name, x64):
    assert FUNCTIONS[name](DATA.noise(SDE), X.astype(np.float32)).dtype == jnp.float32
    assert FUNCTIONS[name](DATA.noise(SDE), X).dtype == jnp.float64


@every_function
def test_integers_are_no_data(name, unchecked):
    with pytest.raises(ValueError, match=r"x is uint8.*encode integers first.*Pixels"):
        FUNCTIONS[name](DATA.noise(SDE), np.zeros((8, 2), np.uint8))


@every_function
def test_a_prediction_of_another_shape_is_refused(name):
    """It would be broadcast, into values that are finite and wrong."""
    right = DATA.noise(SDE)
    with pytest.raises(ValueError, match=r"shape \(8, 1\) where x has \(8, 2\)"):
        FUNCTIONS[name](lambda x, t: right(x, t)[:, :1], X)


def test_samples_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="must have the shape of x"):
        euler_sample(lambda x, t: x[:, :1], SDE, KEY, (8, 2), eps=EPS, steps=2)


def test_what_cannot_be_had_is_named():
    noise = DATA.noise(SDE)
    settings = {"eps": EPS, "times": TIMES, "draws": 4}
    for wrong, words in [
        ({"draws": 0}, "draws must be at least 1, not 0"),
        ({"eps": 0.0}, "above 0 and below 1, not 0.0"),
        ({"matching": "score"}, "denoising, sliced, not 'score'"),
    ]:
        with pytest.raises(ValueError, match=words):
            scoremle.likelihood_bound(noise, SDE, X, KEY, **{**settings, **wrong})
    with pytest.raises(ValueError, match=r"above 0 and below 1, not 1\.5"):
        scoremle.ode_log_likelihood(noise, SDE, X, KEY, eps=1.5)
    with pytest.raises(ValueError, match="plain, likelihood, not 'snr'"):
        scoremle.denoising_loss(noise, SDE, X, KEY, times=TIMES, weighting="snr")


def test_truncated_normal_noise_of_256_levels_needs_no_scale():
    given = TruncatedNormal(SDE, EPS, scoremle.Pixels())
    assert TruncatedNormal(SDE, EPS) == given and given.start == EPS
