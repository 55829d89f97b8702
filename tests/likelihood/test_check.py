"""What a check says of wrong declarations, planted in a network whose every output is known."""

import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from helpers.places import ROOT
from jax.tree_util import Partial

from scoremle import Affine, Pixels, ScoreModel, UserError
from scoremle.core.betas import betas
from scoremle.core.prediction import BETWEEN_REMEDY, RangedNoise, noise_fn
from scoremle.core.schedules import Discrete, LinearLogSNR
from scoremle.core.sde import SDE, VP
from scoremle.likelihood import check

sys.path.append(str(ROOT / "benchmarks"))

import check as young

STEPS, SIZE, PIXELS = 1000, 8, Pixels.of_points(256, -1, 1)
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


def model_of(network, prediction="eps", time_input="step", pixels=PIXELS):
    noise = noise_fn(network, SDE_, prediction=prediction, time_input=time_input)
    return ScoreModel(noise, SDE_, 1 / STEPS, (SIZE, SIZE, 1), pixels)


@some("kind", KINDS, quick=["eps", "v", "edm"])
def test_it_is_silent_when_all_is_well(kind):
    assert model_of(network(kind), kind).check(IMAGES) == []
    told = model_of(network(kind, "time"), kind, "time")
    assert told.check(IMAGES) == []
    pixels = Pixels.of_points(256, 0, 1)
    assert model_of(network(kind, low=0.0), kind, pixels=pixels).check(IMAGES) == []


long = pytest.mark.long
STEP_LABELS = "labels look like 0..999; declared are 0.001..1: say time_input='step'"


def looks(declared, like):
    return (
        f"the declared prediction is {declared}, but the output looks like {like}: say"
        f" prediction={like!r}"
    )


V = looks("eps", "v")
ZERO_TO_ONE = (
    "grey levels look like 0..1; declared are -1..1: say pixels=Pixels.of_points(256, 0, 1)"
)


@pytest.mark.parametrize(
    ("truth", "declared", "lines"),
    [
        pytest.param({"kind": "v"}, {}, [V], marks=long),
        pytest.param({"kind": "x_0"}, {}, [looks("eps", "x_0")], marks=long),
        pytest.param({"kind": "score"}, {}, [looks("eps", "score")], marks=long),
        pytest.param({"kind": "edm"}, {}, [looks("eps", "edm")], marks=long),
        ({}, {"prediction": "v"}, [looks("v", "eps")]),
        pytest.param({}, {"prediction": "edm"}, [looks("edm", "eps")], marks=long),
        ({"kind": "u"}, {"prediction": "v"}, [looks("v", "u") + " (from_velocity: data_at=0)"]),
        ({}, {"time_input": "time"}, [STEP_LABELS]),
        ({"labels": "time"}, {}, ["labels look like 0.001..1; declared are 0..999: say"
                                  " time_input='time'"]),
        pytest.param({"low": 0.0}, {}, [ZERO_TO_ONE], marks=long),
        ({}, {"pixels": Pixels.of_points(256, 0, 1)},
         ["grey levels look like -1..1; declared are 0..1: say"
          " pixels=Pixels.of_points(256, -1, 1)"]),
        pytest.param({"kind": "v"}, {"time_input": "time"}, [V, STEP_LABELS], marks=long),
        ({"kind": "v", "low": 0.0}, {}, [V, ZERO_TO_ONE]),
    ],
)  # fmt: skip
def test_a_wrong_declaration_is_a_line(truth, declared, lines):
    assert model_of(network(**truth), **declared).check(IMAGES) == lines


@pytest.mark.parametrize(
    ("other", "near"),
    [(Pixels(256, 0, 1.09), True), (Pixels(256, 0.09, 1), True), (Pixels(256, -0.06, 0.94), False),
     (Pixels(256, 0, 1.2), False), (Pixels.of_points(256, 0, 1), True),
     (Pixels(256, -0.5, 0.5), False)],
)  # fmt: skip
def test_ends_that_differ_by_a_tenth_of_the_range_are_near(other, near):
    assert check._are_near(Pixels(256, 0, 1), other) == near


def test_what_makes_no_difference_is_no_mistake():
    """999 t and the number of the step: both are within a step."""
    assert model_of(network(), time_input="time_999").check(IMAGES) == []


@pytest.mark.long
def test_it_says_where_the_network_was_never_trained():
    """Up to log-SNR 3 it was: a Gaussian of smooth images is forgiving for a while."""
    (line,) = model_of(network(most=3.0)).check(IMAGES)
    found = re.fullmatch(
        r"above log-SNR (\S+) worse than a Gaussian of the data, which costs (\S+) bits/dim: train"
        r" longer, or start at eps=(\S+) if it was not trained there", line,
    )  # fmt: skip
    log_snr, cost, eps = map(float, found.groups())
    assert 3 < log_snr < 7 and 0.1 < cost < 1
    assert SDE_.log_snr(jnp.asarray(eps)) == pytest.approx(log_snr, abs=0.06)
    both = model_of(network("v", most=3.0)).check(IMAGES)
    assert both[0] == V
    assert len(both) == 2 and both[1].startswith(f"above log-SNR {log_snr} worse than")


def test_a_network_that_learned_nothing():
    for useless in (
        lambda x, label: 0 * x,
        lambda x, label: jnp.sin(9 * x) + jnp.roll(x, 1, 1),
        lambda x, label: x / 0,
    ):
        (line,) = model_of(useless).check(IMAGES)
        assert line.startswith("trained too little: it has 0% of the skill"), line


@pytest.mark.long
def test_a_noise_prediction_of_ones_own():
    """Its output can be read in other ways; what it does with t can't be known."""
    v, eps, wrong = network("v"), network(), network(labels="time")

    def check(noise):
        return ScoreModel(noise, SDE_, 1 / STEPS, (SIZE, SIZE, 1), PIXELS).check(IMAGES)

    assert check(lambda x, t: eps(x, STEPS * t - 1)) == []
    assert check(lambda x, t: v(x, STEPS * t - 1)) == [V]
    lines = check(lambda x, t: wrong(x, STEPS * t - 1))
    assert lines and all("Gaussian of the data" in line for line in lines)


@pytest.mark.long
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
    declared = noise_fn(shifted, SDE_, time_input="step")
    wide = RangedNoise(noise_fn(ranged, SDE_, time_input="step"))
    for noise in (declared, wide):
        model = ScoreModel(noise, SDE_, 1 / STEPS, (SIZE, SIZE, 1), PIXELS)
        found = model.check(pixels, condition=shifts / 2)
        assert found[:1] == [V], found


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda x, label: x[..., 0], "gives shape"),
        (lambda x, label: x[:, :1, :1], "gives shape"),  # which would be broadcast
        (lambda x, label: jnp.repeat(x, 2, axis=-1), "gives shape"),
        (lambda x, label: (x, x), "a tuple"),
        (lambda x, label: x.astype(int), "gives int32"),
        (lambda x, label, condition: x, "2 arguments"),
    ],
)
def test_what_is_no_noise_prediction_is_named(wrong, words):
    for noise in (wrong, noise_fn(wrong, SDE_, time_input="step")):
        model = ScoreModel(noise, SDE_, 1 / STEPS, (SIZE, SIZE, 1), PIXELS)
        with pytest.raises(UserError, match=words):
            model.check(IMAGES)


def test_a_range_of_variances_that_is_not_there_is_named():
    ranged = RangedNoise(noise_fn(network(), SDE_, time_input="step"))
    with pytest.raises(UserError, match="8, 8, 2"):
        ScoreModel(ranged, SDE_, 1 / STEPS, (SIZE, SIZE, 1), PIXELS).check(IMAGES)


def as_vectors(network, x, label):
    return network(x.reshape(-1, SIZE, SIZE, 1), label).reshape(x.shape)


@pytest.mark.long
def test_reals_are_checked_as_images_are():
    """The same numbers as vectors: nothing of the Fourier transform, and no grid."""
    data = PIXELS.points[IMAGES].reshape(len(IMAGES), -1)

    def found(kind, prediction="eps", time_input="step", **options):
        inside = Partial(as_vectors, network(kind))
        noise = noise_fn(inside, SDE_, prediction=prediction, time_input=time_input)
        return ScoreModel(noise, SDE_, 1 / STEPS, (SIZE**2,), **options).check(data)

    assert found("eps") == found("v", "v") == []
    assert found("v") == [V] and found("eps", time_input="time") == [STEP_LABELS]
    assert found("eps", bijector=Affine(0.5, 0.1)) == [
        "looks trained on the data as they are: give no bijector"
    ]


def velocity(towards_data, x, t):
    """That of N(-1, 4 I), by a t of 1 at the data or of 0."""
    alpha = (t if towards_data else 1 - t)[:, None]
    variance = 4 * alpha**2 + (1 - alpha) ** 2
    u = (1 - 5 * alpha) / variance * (x + alpha) + 1
    return -u if towards_data else u


@pytest.mark.parametrize("data_at", [0, 1])
def test_the_wrong_end_of_a_path_is_named(data_at):
    straight = SDE("straight", LinearLogSNR(-18.0, 13.3), 1.0)
    data = 2 * np.random.default_rng(0).normal(size=(200, 2)) - 1
    for declared in (0, 1):
        noise = noise_fn(
            Partial(partial(velocity, data_at)), straight,
            prediction="-u" if declared else "u", time_input="alpha" if declared else "sigma",
        )  # fmt: skip
        lines = ScoreModel(noise, straight, 1e-5, (2,)).check(data)
        if declared == data_at:
            assert lines == []
        else:
            assert f"data_at={data_at}" in lines[0] and "labels look like" in lines[1], lines


def test_data_of_which_the_network_learned_standardized_ones():
    """Vectors about 5, and a network of N(0, I)."""
    data = 5 + 0.1 * np.random.default_rng(0).normal(size=(200, 2))
    sde = VP()

    def noise(x, t):
        return sde.sigma(t)[:, None] * x

    (line,) = ScoreModel(noise, sde, 1e-3, (2,)).check(data)
    assert "bijector=Affine.standardizing(data)" in line
    whole = ScoreModel(noise, sde, 1e-3, (2,), bijector=Affine.standardizing(data))
    assert whole.check(data) == []
    far = 1e8 + data  # where float32 loses all digits of the data
    moved = ScoreModel(noise, sde, 1e-3, (2,), bijector=Affine.standardizing(far))
    assert moved.check(far) == []


def test_data_that_do_not_vary_in_a_dimension_are_not_standardized():
    data = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    data[:, 1] = 0.1
    sde = VP()
    lines = ScoreModel(lambda x, t: sde.sigma(t)[:, None] * x, sde, 1e-3, (2,)).check(data)
    assert not any("standardizing" in line for line in lines)


def snapped(levels, ends, x, label):
    """The best network for grey levels at points that are equally likely, one pixel at a time."""
    points = jnp.linspace(*ends, levels)
    t = label[:, None, None, None, None]
    alpha, sigma = VP().alpha(t), VP().sigma(t)
    odds = jax.nn.softmax(-jnp.square((x[..., None] - alpha * points) / sigma) / 2)
    data = jnp.sum(odds * points, axis=-1)
    return (x - alpha[..., 0] * data) / sigma[..., 0]


@pytest.mark.parametrize("points", [True, False])
def test_of_two_grids_the_one_that_the_network_sees(points):
    """Half a step apart at the ends, and 12 % at most: at the smallest noise a network knows."""
    true, other = Pixels.of_points(9, -1, 1), Pixels(9, -1, 1)
    if not points:
        true, other = other, true
    sde, ends = VP(), true.points[[0, -1]]
    noise = noise_fn(Partial(partial(snapped, 9, tuple(ends))), sde, time_input="time")
    images = np.random.default_rng(0).integers(0, 9, (40, 8, 8, 1)).astype(np.uint8)
    for pixels in (true, other):
        lines = ScoreModel(noise, sde, 1e-4, (8, 8, 1), pixels).check(images)
        words = "Pixels.of_points(9, -1, 1)" if points else "Pixels(9, -1, 1)"
        assert (lines == []) if pixels == true else (words in lines[0]), lines


def test_a_grid_that_is_not_seen_is_said():
    """The smallest noise hides it, or the network knows none."""
    (line,) = model_of(network(), pixels=Pixels()).check(IMAGES)
    assert "hides the grid" in line and "say pixels=Pixels.of_points(256, -1, 1)" in line

    def blind(x, t):  # in noise of less than a step
        eps = snapped(9, (-1, 1), x, t)
        return jnp.where(VP().sigma(t)[:, None, None, None] > 0.25, eps, 0)

    images = np.random.default_rng(0).integers(0, 9, (40, 8, 8, 1)).astype(np.uint8)
    lines = ScoreModel(blind, VP(), 1e-4, (8, 8, 1), Pixels(9, -1, 1)).check(images)
    assert "does not show the grid" in lines[-1] and "Pixels.of_points(9, -1, 1)" in lines[-1]
    of_range, line = model_of(network(low=0.0), pixels=Pixels()).check(IMAGES)
    assert of_range.endswith("say pixels=Pixels(256, 0, 1)")
    assert "hides the grid" in line and "say pixels=Pixels.of_points(256, 0, 1)" in line


def test_a_table_of_steps_is_named_with_the_remedy():
    def table(read):
        return lambda x, label: network()(x, read(label))

    for read in (jnp.floor, jnp.round):
        lines = model_of(table(read)).check(IMAGES)
        assert lines == [f"its output changes from step to step alone: {BETWEEN_REMEDY}"]
    noise = noise_fn(table(lambda k: k), SDE_, time_input="step", between="interpolate")
    assert ScoreModel(noise, SDE_, 1 / STEPS, (SIZE, SIZE, 1), PIXELS).check(IMAGES) == []


@long
@pytest.mark.parametrize("subject", young.subjects()[:2])
def test_young_networks_of_vectors(subject):
    """300 steps: benchmarks/check.py has twenty. None is declared wrongly, or all is named."""
    trained = young.network_of(subject, 0)
    data = young.data_of(subject.data, 600, 1)
    right, wrong = (
        " ".join(young.model_of(trained, subject, declared).check(data))
        for declared in (subject.truth, subject.wrong)
    )
    assert " say " not in right
    assert all(words in wrong for words in young.remedies(subject.truth, subject.wrong)), wrong


def test_mistakes(unchecked):
    with pytest.raises(UserError, match="4 examples"):
        model_of(network()).check(IMAGES[:3])
    assert isinstance(model_of(network()).check(IMAGES[:4]), list)
    with pytest.raises(UserError, match="uint8"):
        model_of(network()).check(IMAGES / 255)
    reals = ScoreModel(lambda x, t: x, VP(), 1e-3, (2,))
    with pytest.raises(UserError, match="64 examples"):
        reals.check(np.zeros((63, 2)))
    with pytest.raises(UserError, match="not finite"):
        reals.check(np.full((64, 2), np.nan))
