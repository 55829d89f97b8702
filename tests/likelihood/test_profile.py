"""Profiles over noise levels of Gaussians, whose every number is known in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from helpers.oracles import EPS, SDES, Gaussian, schedule64
from helpers.schedules import Curved

import scoremle
from scoremle.core.divergence import Exact, Hutchinson
from scoremle.errors import UserError
from scoremle.likelihood.profile import Profile, msma_levels, square_and_trace
from scoremle.likelihood.score_images import score_images

every_sde = some("name", SDES, quick=["vp", "ve_linear"])
DATA = Gaussian.of([0.4, -0.2, 0.1, 0.3, -0.5], np.square([0.6, 0.5, 0.3, 0.2, 0.1]))
# In 70 dimensions, of which the data fill three: traces are estimated.
THIN = Gaussian.random(5, 70)
THIN = Gaussian(THIN.mu, np.where(np.arange(70) < 3, 1.0, 0.0), THIN.V)


def model_of(data, name):
    return scoremle.ScoreModel(data.noise(SDES[name]), SDES[name], EPS[name], (data.dims,))


def found_of(data, name, n, **options):
    x = data.draw(0, n).astype(np.float32)
    return model_of(data, name).profile(x, **options), x.astype(np.float64)


def times(name, log_snr):
    return np.asarray(SDES[name].time_of_log_snr(log_snr), np.float64)


def middles(found):
    return (found.log_snr_edges[:-1] + found.log_snr_edges[1:]) / 2


def share(name, data, t):
    """sigma^2 / (alpha^2 w + sigma^2) along each axis of the data."""
    alpha, sigma = schedule64(SDES[name], t)
    return sigma**2 / (alpha**2 * data.w + sigma**2)


def check_honest(error, stderr):
    """In each column the stated variance is that of the errors, and nothing is biased."""
    ratio = np.mean(np.square(error), axis=0) / np.mean(np.square(stderr), axis=0)
    assert ((ratio > 0.6) & (ratio < 1.6)).all(), ratio
    bias = error.mean(axis=0) / np.sqrt(np.mean(np.square(stderr), axis=0) / len(error))
    assert (np.abs(bias) < 4).all(), bias


@every_sde
def test_bits_are_the_integral_over_each_bin_and_lie_where_they_lie(name):
    found, x = found_of(DATA, name, 128, bins=6, draws=16)
    edges = times(name, found.log_snr_edges)
    edges[[0, -1]] = 1.0, EPS[name]
    whole = np.stack([DATA.diffusion(SDES[name], x, t) for t in edges], axis=1) / np.log(2)
    check_honest(found.bits - np.diff(whole), found.bits_stderr)
    axes = [Gaussian.of(DATA.mu[[i]], DATA.w[[i]]) for i in range(DATA.dims)]
    where = [axis.diffusion(SDES[name], x[:, [i]], EPS[name]) for i, axis in enumerate(axes)]
    check_honest(found.where - np.stack(where, axis=1) / np.log(2), found.where_stderr)
    np.testing.assert_allclose(found.where.sum(axis=1), found.bits.sum(axis=1), rtol=1e-5)


@every_sde
def test_without_noise_square_and_trace_are_those_of_the_prediction(name):
    found, x = found_of(DATA, name, 3, bins=4, draws=2)
    for i, t in enumerate(times(name, middles(found))):
        of_noise, (alpha, sigma) = share(name, DATA, t), schedule64(SDES[name], t)
        square = np.square(of_noise * alpha / sigma * (x - DATA.mu)).sum(axis=1)
        np.testing.assert_allclose(found.square[:, i], square, rtol=2e-3)
        np.testing.assert_allclose(found.trace[:, i], of_noise.sum(), rtol=2e-3)
    assert not found.trace_stderr.any()
    for i, level in enumerate(found.levels):
        of_noise, s = share(name, DATA, times(name, level)), np.exp(-level / 2)
        norm = np.linalg.norm(of_noise * (x - DATA.mu), axis=1) / s**2
        np.testing.assert_allclose(found.norms[:, i], norm, rtol=2e-3)
    assert len(found.levels) >= 6


def test_an_estimated_trace_says_its_error():
    found, _ = found_of(THIN, "vp", 64, bins=4, draws=8)
    exact = np.stack([share("vp", THIN, t).sum() for t in times("vp", middles(found))])
    check_honest(found.trace - exact, found.trace_stderr)


def test_the_local_dimension_is_that_of_the_data():
    """Three of twelve dimensions at two noises, exactly; three of 70 within the errors."""
    few = Gaussian(THIN.mu[:12], np.eye(12)[:3].sum(0), np.linalg.qr(THIN.V[:12, :12])[0])
    found, _ = found_of(few, "vp", 8, bins=10, draws=2)
    seen = (middles(found) > 4) & (middles(found) < 8)
    assert seen.sum() >= 2
    np.testing.assert_allclose(found.flipd[:, seen], 3, atol=0.1)
    found, _ = found_of(THIN, "vp", 64, bins=10, draws=4)
    np.testing.assert_allclose(found.flipd[:, seen].mean(axis=0), 3, atol=0.5)


@pytest.mark.parametrize("data", [DATA, THIN], ids=["few", "many"])
def test_by_noise_square_and_trace_give_the_bits_again(data):
    """E ||eps - z||^2 = E[||eps||^2] - 2 sigma E[tr] + D."""
    found, _ = found_of(data, "vp", 128, bins=5, draws=8)
    scale = np.diff(found.log_snr_edges) / np.log(2) / 2
    again = scale * (found.noised_square - 2 * found.noised_trace + data.dims)
    errors = scale * found.noised_square_stderr, 2 * scale * found.noised_trace_stderr
    # The noise of all three is the same: at most, their errors add up.
    error = np.sqrt(np.mean(np.square(sum(errors) + found.bits_stderr), axis=0) / len(found))
    assert (np.abs((again - found.bits).mean(axis=0)) < 3 * error).all()
    assert (error < 0.1 * data.dims).all()


def test_a_profile_depends_on_its_example_alone():
    x = DATA.draw(1, 5).astype(np.float32)
    model = model_of(DATA, "vp")
    whole = model.profile(x, bins=3, draws=2)
    part = model.profile(x[3:], index=[3, 4], bins=3, draws=2, batch_size=1)
    for name in ("bits", "where_stderr", "noised_trace", "norms", "square"):
        np.testing.assert_allclose(getattr(part, name), getattr(whole, name)[3:], rtol=1e-5)
    assert repr(model.profile(x[:0])).startswith("Profile(0 examples")


@pytest.mark.long
def test_of_images_it_is_the_diffusion_term_of_their_bound():
    sde = SDES["vp"]

    def noise(x, t):  # of data N(0.2, 0.3^2)
        a, s = sde.alpha(t)[:, None, None, None], sde.sigma(t)[:, None, None, None]
        return s * (x - 0.2 * a) / (0.09 * a**2 + s**2)

    model = scoremle.ScoreModel(noise, sde, 1e-3, (1, 3, 1), scoremle.Pixels(2, -1, 1))
    images = np.arange(12, dtype=np.uint8).reshape(4, 1, 3, 1) // 2 % 2
    found = model.profile(images, draws=64)
    bits, dims = found.bits.sum(axis=1), 3
    # Dequantization noise is fresh in each draw of a profile, and one for all in a bound.
    bounds = [score_images(model, scoremle.ByElbo(draws=200), images, seed=i) for i in range(40)]
    each = dims * np.stack([of.values["diffusion"][0] for of in bounds])
    error = np.hypot(each.std(axis=0) / 40**0.5, np.sqrt(np.sum(found.bits_stderr**2, axis=1)))
    assert (np.abs(bits - each.mean(axis=0)) < 4 * error).all()
    middle = model.pixels.encode(images, 0.5)
    # The mean over a uniform interval of what is quadratic, by two points.
    ends, plain = 1 / np.sqrt(12) * np.array([-1, 1]), dataclasses.replace(model, pixels=None)
    around = np.mean([plain.profile(middle + end, draws=64).bits for end in ends], axis=(0, 1))
    assert bits.mean() == pytest.approx(around.sum(), rel=0.05)
    t = jnp.full(4, times("vp", middles(found)[3]), jnp.float32)
    square = np.square(noise(sde.alpha(t)[0] * middle, t)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(found.square[:, 3], square, rtol=1e-4)


def test_a_log_snr_of_each_dimension_has_no_profile():
    sde = scoremle.SDE("vp", Curved(10.0, jnp.asarray([20.0, 21.0]), jnp.zeros(2)), 1.0)
    model = scoremle.ScoreModel(lambda x, t: x, sde, 1e-3, (2,))
    with pytest.raises(UserError, match="log-SNR"):
        model.profile(np.zeros((1, 2), np.float32))


def made(n=3):
    """A profile of three examples and two bins whose bits are 1, 2, 3 and 4, 5, 6."""
    rows = np.arange(1.0, n + 1)
    bits = np.stack([rows, rows + 3], axis=1)
    columns = {field.name: bits for field in dataclasses.fields(Profile)}
    edges, levels = np.array([-4.0, 0.0, 6.0]), np.array([1.0, 2.0])
    own = {"log_snr_edges": edges, "levels": levels, "bits_stderr": bits / 10}
    return Profile(**columns | own)


def test_a_plot_has_an_example_among_half_of_all():
    matplotlib = pytest.importorskip("matplotlib.figure")
    axes = matplotlib.Figure().subplots()
    found = made()
    assert found.plot(2, axes) is axes
    half, own = (patch.get_data() for patch in axes.patches)
    np.testing.assert_allclose(half.values, [2.5, 5.5])
    np.testing.assert_allclose(half.baseline, [1.5, 4.5])
    np.testing.assert_allclose(own.values, [3, 6])
    np.testing.assert_allclose(own.edges, found.log_snr_edges)
    _, _, (errors,) = axes.containers[0]
    np.testing.assert_allclose(
        errors.get_segments(), [[[-2, 2.4], [-2, 3.6]], [[3, 4.8], [3, 7.2]]]
    )
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["half of the examples", "example 2"]
    assert axes.get_xlabel().startswith("log-SNR: noise on the left")
    assert axes.get_ylabel() == "bits"


def test_one_of_the_examples_is_a_profile():
    one = made().of(1)
    assert len(one) == 1 and len(made()) == 3
    np.testing.assert_array_equal(one.bits, [[2, 5]])
    np.testing.assert_array_equal(one.log_snr_edges, made().log_snr_edges)
    np.testing.assert_array_equal(one.levels, made().levels)
    np.testing.assert_allclose(made().flipd, 2)  # dimensions, less the trace, and the square


@pytest.mark.parametrize(("dims", "chosen"), [(16, Exact()), (17, Hutchinson(5))])
def test_up_to_sixteen_dimensions_a_trace_is_exact(dims, chosen, monkeypatch):
    def drawn(divergence, *_):
        assert divergence == chosen
        raise InterruptedError

    for kind in (Exact, Hutchinson):
        monkeypatch.setattr(kind, "draw", drawn)
    x, keys = jnp.ones((2, dims)), jax.random.split(jax.random.key(0))
    with pytest.raises(InterruptedError):
        square_and_trace(lambda x, t: x, SDES["vp"], x, keys, jnp.zeros(()), eps=1e-3, probes=5)


def test_noise_levels_of_msma_are_those_that_the_model_has():
    linear = scoremle.SDE("vp", scoremle.LinearLogSNR(0.0, 4.0), 1.0)
    all_ten = -2 * np.log(np.geomspace(1, 0.01, 10))
    for width in (1.0, 2.0):
        wanted = all_ten - 2 * np.log(width)
        inside = wanted[(wanted >= -1e-9) & (wanted <= 4)]
        np.testing.assert_allclose(msma_levels(linear, 0.0, width), inside, atol=1e-6)
