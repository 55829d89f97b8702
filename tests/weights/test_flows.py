"""Maps with an exact log-determinant: bits/dim that are known, their errors, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from scipy.stats import norm

from scoremle import VP, Pixels, TruncatedNormal, UserError
from scoremle.core.keys import example_keys
from scoremle.likelihood.score_images import score_images
from scoremle.weights import from_flow
from scoremle.weights.flows import ByLogProb

# Independent pixels N(0.1, 0.3^2) of 8 levels: the probability of each level is known.
PIXELS, SHAPE = Pixels(8), (2, 3, 1)
LOG_MASS = np.log(np.diff(norm.cdf(np.linspace(-1, 1, 9), 0.1, 0.3)))
MASS = np.exp(LOG_MASS)
IMAGES = np.random.default_rng(0).choice(8, (24, *SHAPE), p=MASS / MASS.sum()).astype(np.uint8)
EXACT = -LOG_MASS[IMAGES].mean(axis=(1, 2, 3)) / np.log(2)


def log_prob(x):
    return norm.logpdf(x, 0.1, 0.3).sum(axis=(1, 2, 3))


def flow(**options):
    return from_flow(log_prob, shape=SHAPE, pixels=PIXELS, **options)


def test_one_draw_is_the_bound_that_is_known():
    middle = (np.arange(1000) + 0.5) / 1000
    y = -1 + 2 * (np.arange(8)[:, None] + middle) / 8
    per_level = -(norm.logpdf(y, 0.1, 0.3).mean(axis=1) + np.log(2 / 8)) / np.log(2)
    one = flow().score(IMAGES, passes=16)
    gap = one.bpd - per_level[IMAGES].mean(axis=(1, 2, 3))
    error = np.sqrt(np.mean(one.stderr**2))
    assert abs(gap.mean()) < 4 * error / np.sqrt(len(gap)) and 0.7 < gap.std() / error < 1.3


@pytest.mark.parametrize("draws", [1, 3])
def test_the_density_of_the_noise_is_taken_off(draws, unchecked):
    """Noise in the middle of each bin has a stated log-density of 0.7 nats an image here."""

    def middles(keys, x):
        return np.full(x.shape, 0.5), np.full(len(x), 0.7)

    found = ByLogProb(draws)(flow(), middles, IMAGES, example_keys(jax.random.key(0), len(IMAGES)))
    plain = log_prob(PIXELS.encode(IMAGES, 0.5)) + 6 * np.log(2 / 8)
    np.testing.assert_allclose(found["bpd"], (0.7 - plain) / 6 / np.log(2), rtol=1e-6)


START = float(VP().time_of_log_snr(jnp.asarray(2 * np.log(10))))


@some("dequantizer", [None, TruncatedNormal(VP(), START, PIXELS)], quick=[None])
def test_many_draws_close_on_the_probability(dequantizer):
    """The bias at K draws is half the variance of the mean weight, to first order."""
    many = flow().score(IMAGES, draws=32, passes=6, dequantizer=dequantizer)
    gap, error = many.bpd - EXACT, np.sqrt(np.mean(many.stderr**2))
    assert abs(gap.mean()) < 4 * error / np.sqrt(len(gap)) + 2e-3
    assert np.sqrt(np.mean(many.probe_stderr**2)) == pytest.approx(error, rel=0.3)
    assert (many.solver_error == 0).all()


def test_values_belong_to_an_image():
    whole = flow().score(IMAGES, draws=3)
    some = np.asarray([17, 3])
    part = flow().score(IMAGES[some], draws=3, index=some, batch_size=1)
    np.testing.assert_allclose(part.bpd, whole.bpd[some], rtol=1e-6)
    assert len(flow().score(IMAGES[:0])) == 0
    assert whole.estimator == f"{ByLogProb(3).title}, uniform dequantization"


def test_score_images_takes_it_with_its_mean():
    found = score_images(flow(), ByLogProb(4), IMAGES, passes=2)
    assert found.mean.mean == found.values["bpd"].mean()
    stated = found.mean.to_json()
    assert stated["mean_effective_draws"] <= 4 and "draw_stderr_of_mean" in stated
    assert ByLogProb(4).describe()["estimator"] == ByLogProb(4).title
    assert "4 draws" in ByLogProb(4).title and "draws" not in ByLogProb().title


@pytest.mark.parametrize("off", [0.0, 1e-4])
def test_the_residual_is_the_gradient_times_the_way(off):
    def inverse(x):
        x -= 0.1  # in place, as a tensor of the array's memory may be written to
        return x / 0.3

    model = flow(inverse=inverse, forward=lambda z: 0.1 + 0.3 * z + off)
    y = np.asarray(PIXELS.encode(IMAGES, 0.5))
    expected = np.abs(off * ((y - 0.1) / 0.3**2).sum(axis=(1, 2, 3)))
    np.testing.assert_allclose(model.residual(y), expected, rtol=2e-2, atol=1e-5)
    stated = model.score(IMAGES, draws=2).solver_error * 6 * np.log(2)
    assert stated.mean() == pytest.approx(expected.mean(), rel=0.2, abs=1e-5)


def test_flows_of_zuko_are_models():
    torch, zuko = pytest.importorskip("torch"), pytest.importorskip("zuko")
    torch.manual_seed(0)
    spline = zuko.flows.NSF(3, transforms=2, hidden_features=[8])

    def to_latents(x):
        return spline().transform(torch.as_tensor(x))

    model = from_flow(
        lambda x: spline().log_prob(torch.as_tensor(x)),
        shape=(3,), inverse=to_latents, forward=lambda z: spline().transform.inv(z),
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    exact = spline().log_prob(torch.as_tensor(x)).detach()
    np.testing.assert_allclose(model.log_prob(x), exact, rtol=1e-6)
    assert (model.residual(jnp.asarray(x)) < 1e-3).all()


def test_functions_of_jax_are_models():
    model = from_flow(lambda x: jax.scipy.stats.norm.logpdf(x).sum(axis=1), shape=(2,))
    np.testing.assert_allclose(model.log_prob(np.zeros((3, 2))), -np.log(2 * np.pi), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: from_flow(None, shape=(2,)), "log_prob must"),
        (lambda: from_flow(log_prob, shape=(2,), inverse=3), "inverse must"),
        (lambda: from_flow(log_prob, shape=SHAPE).score(IMAGES), "pixels"),
        (lambda: flow().score(IMAGES[:, :1]), "shape"),
        (lambda: flow().score(IMAGES, index=[1]), "index"),
        (lambda: flow().score(IMAGES, draws=0), "draws"),
        (lambda: flow().score(IMAGES, batch_size=0), "batch_size"),
        (lambda: from_flow(log_prob, shape=SHAPE, pixels=8), "pixels must"),
        (lambda: flow().residual(np.zeros((2, *SHAPE))), "both directions"),
        (lambda: flow().log_prob(np.zeros((2, 3))), r"2, 3, 1\)"),
        (lambda: from_flow(lambda x: x, shape=(2,)).log_prob(np.zeros((3, 2))), "3 numbers"),
        (lambda: flow(inverse=np.sum, forward=np.abs).residual(np.zeros((2, *SHAPE))), "forward"),
        (lambda: from_flow(lambda x: "no", shape=(2,)).log_prob(np.zeros((3, 2))), "log_prob"),
    ],
)
def test_what_is_no_flow_is_refused_in_a_line(call, words, unchecked):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_value_that_is_not_finite_names_its_image():
    model = from_flow(lambda x: np.full(len(x), np.nan), shape=SHAPE, pixels=PIXELS)
    with pytest.raises(UserError, match="image 0"):
        model.score(IMAGES)
