"""What a check says of wrong declarations, planted in a network whose every output is known."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from scoremle import Pixels, ScoreModel, UserError
from scoremle.core.betas import betas
from scoremle.core.prediction import noise_fn
from scoremle.core.schedules import Discrete
from scoremle.core.sde import SDE
from scoremle.likelihood.steps import RangedNoise

STEPS, SIZE, PIXELS = 1000, 8, Pixels()
SDE_ = SDE("vp", Discrete.of_betas(betas("linear", STEPS)), 1.0)
KINDS = ("eps", "x_0", "v", "u", "score", "edm")
# How a label becomes t.
LABELS = {"step": (1 / STEPS, 1 / STEPS), "time": (1.0, 0.0), "time_999": (1 / 999, 0.0)}

# Smooth images: a Gaussian whose correlation falls with the distance.
place = np.stack(np.meshgrid(*[np.arange(SIZE)] * 2), axis=-1).reshape(-1, 2)
distance = np.linalg.norm(place[:, None] - place, axis=-1)
covariance = 0.09 * np.exp(-distance / 4) + 1e-4 * np.eye(SIZE**2)
VARIANCES, AXES = np.linalg.eigh(covariance)
MEAN = -0.1
normal = np.random.default_rng(0).normal(size=(40, SIZE**2))
# By Cholesky's factor, which is the same on all machines: the axes are not.
IMAGES = Pixels().decode(jnp.asarray(MEAN + normal @ np.linalg.cholesky(covariance).T))
IMAGES = np.asarray(IMAGES).reshape(40, SIZE, SIZE, 1)


def output(kind, label, low, high, most, x, told):
    """The best network for these images, with data in [low, high]; ``most`` log-SNR it knows.

    All its facts are arrays, so that every test runs the same compiled program.
    """
    lam = jnp.minimum(SDE_.log_snr(told * label[0] + label[1]), most)[:, None]
    alpha, sigma = (jnp.exp(-jax.nn.softplus(sign * lam) / 2) for sign in (-1, 1))
    scale = jnp.hypot(sigma, 0.5 * alpha)
    half, axes = (high - low) / 2, jnp.asarray(AXES, x.dtype)
    x_t = x.reshape(len(x), -1) * jnp.where(kind == KINDS.index("edm"), scale, 1.0)
    mean, variances = MEAN * half + (low + high) / 2, half**2 * jnp.asarray(VARIANCES, x.dtype)
    eps = ((x_t - alpha * mean) @ axes / (alpha**2 * variances + sigma**2)) @ axes.T * sigma
    data = (x_t - sigma * eps) / alpha
    edm = (sigma * x_t / scale - eps * scale) / (0.5 * alpha)
    outputs = (eps, data, alpha * eps - sigma * data, eps - data, -eps / sigma, edm)
    return jnp.stack(outputs)[kind].reshape(x.shape)


def network(kind="eps", labels="step", low=-1.0, high=1.0, most=np.inf):
    facts = (KINDS.index(kind), LABELS[labels], low, high, most)
    return Partial(output, *jax.tree.map(jnp.asarray, facts))


def model_of(network, prediction="eps", conditioning="step", pixels=PIXELS):
    noise = noise_fn(network, SDE_, prediction=prediction, conditioning=conditioning)
    return ScoreModel(noise, SDE_, 1 / STEPS, (SIZE, SIZE, 1), pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_silent_when_all_is_well(kind):
    assert model_of(network(kind), kind).check(IMAGES) == []
    told = model_of(network(kind, "time"), kind, "time")
    assert told.check(IMAGES) == []
    assert model_of(network(kind, low=0.0), kind, pixels=Pixels(256, 0, 1)).check(IMAGES) == []


STEP_LABELS = "labels look like 0..999 (conditioning='step'); declared are 0.001..1"


@pytest.mark.parametrize(
    ("truth", "declared", "lines"),
    [
        ({"kind": "v"}, {}, ["declared eps; behaves like v"]),
        ({"kind": "x_0"}, {}, ["declared eps; behaves like x_0"]),
        ({"kind": "score"}, {}, ["declared eps; behaves like score"]),
        ({"kind": "edm"}, {}, ["declared eps; behaves like edm"]),
        ({}, {"prediction": "v"}, ["declared v; behaves like eps"]),
        ({}, {"prediction": "edm"}, ["declared edm; behaves like eps"]),
        ({"kind": "u"}, {"prediction": "v"}, ["declared v; behaves like u"]),
        ({}, {"conditioning": "time"}, [STEP_LABELS]),
        ({"labels": "time"}, {}, ["labels look like 0.001..1 (conditioning='time'); declared"
                                  " are 0..999"]),
        ({"low": 0.0}, {}, ["looks trained on [0, 1]; declared are pixels from -1 to 1"]),
        ({}, {"pixels": Pixels(256, 0, 1)},
         ["looks trained on [-1, 1]; declared are pixels from 0 to 1"]),
        ({"kind": "v"}, {"conditioning": "time"}, ["declared eps; behaves like v", STEP_LABELS]),
        ({"kind": "v", "low": 0.0}, {}, ["declared eps; behaves like v",
                                         "looks trained on [0, 1]; declared are pixels from -1"
                                         " to 1"]),
    ],
)  # fmt: skip
def test_a_wrong_declaration_is_a_line(truth, declared, lines):
    assert model_of(network(**truth), **declared).check(IMAGES) == lines


def test_what_makes_no_difference_is_no_mistake():
    """999 t and the number of the step: both are within a step."""
    assert model_of(network(), conditioning="time_999").check(IMAGES) == []
    offset = Pixels(256, -1 - 1 / 255, 1 + 1 / 255)
    assert model_of(network(), pixels=offset).check(IMAGES) == []


def test_it_says_where_the_network_was_never_trained():
    """Up to log-SNR 3 it was: a Gaussian of smooth images is forgiving for a while."""
    (line,) = model_of(network(most=3.0)).check(IMAGES)
    found = re.fullmatch(
        r"above log-SNR (\S+) worse than a Gaussian of the images, which costs (\S+) bits/dim: if"
        r" it was not trained there, start at eps=(\S+)", line,
    )  # fmt: skip
    log_snr, cost, eps = map(float, found.groups())
    assert 3 < log_snr < 7 and 0.1 < cost < 1
    assert SDE_.log_snr(jnp.asarray(eps)) == pytest.approx(log_snr, abs=0.06)
    both = model_of(network("v", most=3.0)).check(IMAGES)
    assert both[0] == "declared eps; behaves like v"
    assert len(both) == 2 and both[1].startswith(f"above log-SNR {log_snr} worse than")


def test_a_network_that_knows_nothing():
    (line,) = model_of(lambda x, label: 0 * x).check(IMAGES)
    assert line.startswith("below log-SNR") and line.endswith("was it trained there?")
    for useless in (lambda x, label: jnp.sin(9 * x) + jnp.roll(x, 1, 1), lambda x, label: x / 0):
        (line,) = model_of(useless).check(IMAGES)
        assert line.startswith("at no log-SNR does it predict the noise as well as a Gaussian")


def test_a_noise_prediction_of_ones_own():
    """Its output can be read in other ways; what it does with t can't be known."""
    v, eps, wrong = network("v"), network(), network(labels="time")

    def check(noise):
        return ScoreModel(noise, SDE_, 1 / STEPS, (SIZE, SIZE, 1), PIXELS).check(IMAGES)

    assert check(lambda x, t: eps(x, STEPS * t - 1)) == []
    assert check(lambda x, t: v(x, STEPS * t - 1)) == ["declared eps; behaves like v"]
    lines = check(lambda x, t: wrong(x, STEPS * t - 1))
    assert lines and all("than a Gaussian of the images" in line for line in lines)


def test_conditions_and_variances_are_seen_through():
    inner = network("v")

    def shifted(x, label, shift):  # eps of images that are shifted by the condition
        alpha = SDE_.alpha((label + 1) / STEPS)[:, None, None, None]
        shift = shift[:, None, None, None]
        return inner(x - alpha * shift, label)

    def ranged(x, label, shift):
        return jnp.repeat(shifted(x, label, shift), 2, axis=-1)

    shifts = np.float32(np.linspace(-0.5, 0.5, len(IMAGES)))
    pixels = np.clip(IMAGES + 64 * shifts[:, None, None, None], 0, 255).astype(np.uint8)
    declared = noise_fn(shifted, SDE_, conditioning="step")
    wide = RangedNoise(noise_fn(ranged, SDE_, conditioning="step"))
    for noise in (declared, wide):
        model = ScoreModel(noise, SDE_, 1 / STEPS, (SIZE, SIZE, 1), PIXELS)
        found = model.check(pixels, condition=shifts / 2)
        assert found[:1] == ["declared eps; behaves like v"], found


def test_mistakes(unchecked):
    with pytest.raises(UserError, match="4 images or more, not 3"):
        model_of(network()).check(IMAGES[:3])
    with pytest.raises(UserError, match="images must be uint8"):
        model_of(network()).check(IMAGES / 255)
