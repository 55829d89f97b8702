"""The Gaussian's residual is what the oracle says; a control leaves the bound's mean as it is."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from helpers.oracles import EPS, SDES, Gaussian, Mixture, log_snr64
from helpers.schedules import Curved
from scipy.integrate import quad

from scoremle import SDE, ByElbo, Pixels, ScoreModel, UserError
from scoremle.core import times
from scoremle.core.loss import denoising_residual
from scoremle.likelihood.control_variate import (
    MOST_NUMBERS,
    Control,
    FittedGaussian,
    most_examples,
    noise_features,
)
from scoremle.likelihood.control_variate_fit import EVEN, fit_control
from scoremle.likelihood.elbo import ELBO, elbo

DATA = Gaussian.random(11, 4, 0.6)
MIXTURE = Mixture.in_plane()
# The same as the library's.
MODEL = FittedGaussian(*(jnp.asarray(a, jnp.float32) for a in (DATA.mu, DATA.V, DATA.w)))
every_sde = pytest.mark.parametrize("name", SDES)


def bound_of(noise, name, x, *, eps, sampler, draws=64, seed=0, **options) -> ELBO:
    run = jax.jit(
        lambda x, key: elbo(
            noise, SDES[name], x, key, eps=eps, times=sampler, draws=draws, **options
        )
    )
    found = run(jnp.asarray(x, jnp.float32), jax.random.key(seed))
    return jax.tree.map(lambda a: np.asarray(a, np.float64), found)


def uniform(name, eps):
    return times.UniformLogSNR(SDES[name], eps, stratified=True)


def learned(name, eps, fitted):
    return times.BinnedLogSNR(SDES[name], eps, fitted.shares, stratified=True)


@cache
def fit(name, data=DATA, matching="denoising"):
    """A control for the exact noise of the data, fitted on other draws of them."""
    x = jnp.asarray(data.draw(20, 128), jnp.float32)
    gaussian = FittedGaussian.fit(np.concatenate([data.draw(21, 500), data.draw(22, 1500)]))
    return fit_control(
        data.noise(SDES[name]), SDES[name], x, jax.random.key(3),
        eps=1e-3, gaussian=gaussian, matching=matching,
    )  # fmt: skip


# The Gaussian


def test_mean_and_covariance_of_all_batches():
    x = DATA.draw(0, 700)
    found = FittedGaussian.fit(x.reshape(700, 2, 2))
    covariance = (found.axes * found.variances) @ found.axes.T
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(x.T, bias=True), rtol=0.02, atol=1e-4)
    assert found.rest == 0


def few_axes():
    """A Gaussian in 6 dimensions of which 4 share a variance, by 2 axes and by 6."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    mean, variances = np.linspace(-1, 1, 6), np.array([0.7, 0.3, 0.04, 0.04, 0.04, 0.04])
    arrays = [jnp.asarray(a, jnp.float32) for a in (mean, axes, variances)]
    whole = FittedGaussian(*arrays)
    return whole, FittedGaussian(arrays[0], arrays[1][:, :2], arrays[2][:2], jnp.float32(0.04))


def test_directions_of_one_variance_need_no_axes():
    whole, few = few_axes()
    x, z = (jax.random.normal(jax.random.key(i), (9, 2, 3, 1)) for i in (0, 1))
    lam, edges = jnp.linspace(-8, 11, 9), jnp.linspace(-9.0, 11.0, 25)

    @jax.jit
    def run(g):
        away = g.deviations(x)
        mean, noise = g.mean_residual(lam, away), g.residual_noise(lam, away, z)
        return mean, noise, g.integrals(edges, away)

    for found, expected in zip(run(few), run(whole), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [2, 8, 40, 64, 65, 1000])
def test_variances_are_those_of_other_examples(n):
    """Of 64 dimensions, along the axes and across them. Of their own, those along the last axes
    of 65 examples are a thousand times too small."""
    data = Gaussian.random(5, 64)
    found = FittedGaussian.fit(data.draw(0, n))
    away = found.deviations(jnp.asarray(data.draw(1, 4000), jnp.float32))
    last = np.square(away.along[:, -5:]).mean() / found.variances[-5:].mean() if n > 8 else 1
    rest = np.square(away.rest).sum(axis=1).mean() / (64 - found.axes.shape[1] or 1)
    assert 0.5 < last < 2
    np.testing.assert_allclose(rest, found.rest, rtol=0.5 if n == 2 else 0.15, atol=1e-9)
    assert (np.diff(found.variances) <= 0).all()


def test_many_dimensions_take_memory_by_the_examples():
    dims, n = 12_288, 60
    x = 0.1 * np.random.default_rng(0).normal(size=(n, dims)) + np.linspace(-1, 1, n)[:, None]
    found = FittedGaussian.fit(x)
    assert found.axes.shape[0] == dims and 1 < found.axes.shape[1] < n
    assert found.variances[0] == pytest.approx(dims / 3, rel=0.2)  # all pixels together
    assert found.rest == pytest.approx(0.01, rel=0.05)
    assert most_examples(dims) * dims <= MOST_NUMBERS and most_examples(10**9) == 2


def test_one_example_is_no_sample():
    with pytest.raises(ValueError, match="two examples"):
        FittedGaussian.fit(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="row 2"):
        FittedGaussian.fit(np.asarray([[0.0], [1.0], [np.nan]]))


@every_sde
def test_residual_is_that_of_the_optimal_noise_prediction(name):
    sde, rng = SDES[name], np.random.default_rng(1)
    x = np.float32(DATA.draw(1, 50))
    z = np.float32(rng.normal(size=(50, 4)))
    t = np.float32(rng.uniform(EPS[name], 1, 50))

    @jax.jit
    def run(x, t, z):
        lam, deviations = sde.log_snr(t), MODEL.deviations(x)
        mean = MODEL.mean_residual(lam, deviations)
        whole = mean + MODEL.residual_noise(lam, deviations, z)
        features = noise_features(MODEL, lam, x, deviations, z)
        return mean, whole, denoising_residual(DATA.noise(sde), sde, x, t, z), features.T

    mean, whole, expected, (first, *sums) = jax.tree.map(np.asarray, run(x, t, z))
    np.testing.assert_allclose(whole, expected, rtol=2e-4, atol=2e-5)
    exact = [DATA.residual(sde, x[i : i + 1], float(t[i]))[0] / 2 for i in range(50)]
    np.testing.assert_allclose(mean, exact, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(first, whole - mean, rtol=2e-4, atol=2e-5)
    by_hand = [(x**j * (z**2 - 1)).sum(axis=1) / 2 for j in range(3)]
    np.testing.assert_allclose(sums, by_hand, rtol=2e-4, atol=2e-5)


@every_sde
def test_integrals_over_the_bins(name):
    sde, x = SDES[name], DATA.draw(2, 3)
    edges = np.asarray(times.log_snr_edges(sde, EPS[name]))
    found = MODEL.integrals(jnp.asarray(edges), MODEL.deviations(jnp.asarray(x, jnp.float32)))
    np.testing.assert_allclose(found.sum(axis=1), DATA.diffusion(sde, x, EPS[name]), rtol=1e-4)

    def mean(lam):
        r, d = np.exp(lam), ((x - DATA.mu) @ DATA.V)
        return ((r * d**2 + (r * DATA.w) ** 2) / (1 + r * DATA.w) ** 2).sum(axis=1)[0] / 2

    for i in (0, 11, 23):
        expected = quad(mean, edges[i], edges[i + 1])[0]
        assert found[0, i] == pytest.approx(expected, rel=1e-4, abs=1e-6)


# The bound with it


@some(
    "name, matching",
    [("vp", "denoising"), ("ve", "denoising"), ("vp", "sliced")],
    quick=[("ve", "denoising")],
)
def test_where_the_gaussian_is_right_little_is_left_to_chance(name, matching):
    eps, x = 1e-3, DATA.draw(2, 100)
    fitted, noise = fit(name, matching=matching), DATA.noise(SDES[name])
    options = {"eps": eps, "draws": 256, "matching": matching}
    plain = bound_of(noise, name, x, sampler=uniform(name, eps), **options)
    found = bound_of(
        noise, name, x, sampler=learned(name, eps, fitted), control=fitted, **options
    )
    expected = DATA.bound(SDES[name], x, eps)
    # The covariance is estimated; in the sliced form, the probe's noise is not a function of z.
    factor = {"denoising": 0.25, "sliced": 0.9}[matching]
    assert np.mean(found.stderr) < factor * np.mean(plain.stderr)
    error = found.log_prob - expected["log_prob"]
    stated = np.sqrt(np.mean(found.stderr**2))
    assert abs(error.mean()) < 4 * stated / 10 + 1e-4
    # What trend in time is left within a pair makes the stated error cautious.
    assert 0.5 < np.sqrt(np.mean(error**2)) / stated < 1.25


@some("name", ["vp", "subvp"], quick=["subvp"])
def test_wrong_coefficients_leave_the_mean_and_the_error_honest(name):
    """With coefficients out of nowhere the error is larger, and it is known to be."""
    eps, copies = 1e-2, 400
    one = DATA.draw(3, 1)
    rng = np.random.default_rng(4)
    wrong = Control(
        gaussian=FittedGaussian(MODEL.mean + 0.3, MODEL.axes, 2 * MODEL.variances),
        edges=times.log_snr_edges(SDES[name], eps),
        levels=jnp.asarray(rng.normal(size=(times.BINS, 2)), jnp.float32),
        slopes=jnp.asarray(rng.normal(size=(times.BINS + 1, 4)), jnp.float32),
        shares=jnp.full(times.BINS, 1 / times.BINS),
    )
    found = bound_of(
        DATA.noise(SDES[name]), name, np.repeat(one, copies, axis=0), eps=eps,
        sampler=learned(name, eps, wrong), control=wrong,
    )  # fmt: skip
    expected = DATA.bound(SDES[name], one, eps)
    for part in ("log_prob", "diffusion", "reconstruction"):
        values = getattr(found, part)
        assert abs(values.mean() - expected[part]) < 4 * values.std() / np.sqrt(copies) + 1e-3
    assert 0.8 < found.log_prob.std() / np.sqrt(np.mean(found.stderr**2)) < 1.25


@some("draws", [16, 64], quick=[16])
def test_stated_error_covers_on_data_that_are_no_gaussian(draws):
    """A mixture's noise is half explained: unbiased, and 95 % lie within two stated errors."""
    name, eps, images, copies = "vp", 1e-3, 40, 20
    noise, fitted = MIXTURE.noise(SDES[name]), fit(name, MIXTURE)
    x = np.repeat(MIXTURE.draw(5, images), copies, axis=0)
    options = {"eps": eps, "draws": draws}
    found = bound_of(noise, name, x, sampler=learned(name, eps, fitted), control=fitted, **options)
    plain = bound_of(noise, name, x, sampler=uniform(name, eps), **options)
    values = found.log_prob.reshape(images, copies)
    others = plain.log_prob.reshape(images, copies)
    spread, other = (np.sqrt(v.var(axis=1, ddof=1).mean()) for v in (values, others))
    assert spread < 0.8 * other
    assert abs((values - others).mean()) < 4 * np.hypot(spread, other) / np.sqrt(len(x))
    assert 0.75 < spread / np.sqrt(np.mean(found.stderr**2)) < 1.15
    mean = (values.mean(axis=1) / spread**2 + others.mean(axis=1) / other**2) / (
        1 / spread**2 + 1 / other**2
    )
    inside = np.abs(values - mean[:, None]) < 2 * found.stderr.reshape(images, copies)
    assert 0.9 < inside.mean() < 0.995


@pytest.mark.parametrize("controlled", [False, True])
def test_profile_splits_the_diffusion_term(controlled):
    name, eps = "vp", 1e-3
    noise, x = DATA.noise(SDES[name]), DATA.draw(6, 400)
    fitted = fit(name) if controlled else None
    sampler = learned(name, eps, fitted) if controlled else uniform(name, eps)
    found = bound_of(noise, name, x, eps=eps, sampler=sampler, control=fitted)
    np.testing.assert_allclose(found.profile.sum(axis=1), found.diffusion, rtol=1e-5)
    expected = MODEL.integrals(
        times.log_snr_edges(SDES[name], eps), MODEL.deviations(jnp.asarray(x, jnp.float32))
    )
    error = found.profile - np.asarray(expected)
    assert (abs(error.mean(axis=0)) < 4 * error.std(axis=0) / np.sqrt(len(x)) + 1e-4).all()


WIDE = Gaussian.random(11, 64, 0.6)
WIDE_NOISE = jax.tree_util.Partial(WIDE.noise(SDES["vp"]))


@jax.jit
def stated_error(x, key, control):
    """The root mean square of an image's, with the control's times."""
    times_of = uniform("vp", 1e-5) if control is None else learned("vp", 1e-5, control)
    found = elbo(
        WIDE_NOISE, SDES["vp"], x, key, eps=1e-5, times=times_of, draws=16, control=control
    )
    return jnp.sqrt(jnp.mean(jnp.square(found.stderr)))


@pytest.mark.slow
# D = 64, and the most that is left of the error without a control, in the mean over the seeds.
@some(
    "n, left",
    [(2, 1.0), (8, 0.4), (32, 0.3), (64, 0.3), (128, 0.3), (640, 0.2)],
    quick=[(64, 0.3)],
)
def test_no_number_of_examples_makes_it_worse_than_none(n, left):
    """Of 8 fits none states 1.05 times the error without it. With the covariance as it stands, it
    was 193,000 times from 32 examples, and 4 times from 66."""
    x = jnp.asarray(WIDE.draw(1, 64), jnp.float32)
    without, ratios = stated_error(x, jax.random.key(0), None), []
    for seed in range(8):
        given = jnp.asarray(WIDE.draw(100 + seed, n), jnp.float32)
        control = fit_control(WIDE_NOISE, SDES["vp"], given, jax.random.key(seed), eps=1e-5)
        ratios.append(float(stated_error(x, jax.random.key(seed), control) / without))
    assert max(ratios) <= 1.05, ratios
    assert np.mean(ratios) <= left, np.mean(ratios)


def test_a_control_of_another_smallest_time_or_sde_is_refused():
    """Whose integrals run over other bins than the draws. In a compiled program no number is
    known, so that the estimator is asked before."""
    control, sde, x = fit("vp"), SDES["vp"], jnp.asarray(DATA.draw(2, 2), jnp.float32)
    for name, eps in (("vp", 1e-2), ("vp", 1e-5), ("ve", 1e-3)):
        options = {"eps": eps, "sampler": uniform(name, eps), "control": control}
        with pytest.raises(UserError, match="control variate"):
            bound_of(DATA.noise(sde), name, x, **options)
    images, flat = np.zeros((2, 2, 2, 1), np.uint8), DATA.noise(sde)
    model = ScoreModel(
        lambda x, t: flat(x.reshape(-1, 4), t).reshape(x.shape), sde, 1e-3, (2, 2, 1), Pixels(8)
    )
    assert model.score(images, estimator=ByElbo(4, control=control)).bpd.shape == (2,)
    for late, start in ((replace(model, eps=1e-2), None), (model, 1e-2)):
        with pytest.raises(UserError, match="control variate"):
            late.score(images, estimator=ByElbo(4, control=control, start=start))


# The pilot


@pytest.mark.parametrize(("n", "gaussian"), [(7, None), (1, MODEL)])
def test_from_too_few_examples_the_control_changes_nothing(n, gaussian):
    sde, eps, key = SDES["vp"], 1e-3, jax.random.key(0)
    x = jnp.asarray(DATA.draw(0, n), jnp.float32)
    control = fit_control(DATA.noise(sde), sde, x, key, eps=eps, gaussian=gaussian)
    assert not control.levels.any() and not control.slopes[:-1].any()
    samplers = times.BinnedLogSNR(sde, eps, control.shares), times.UniformLogSNR(sde, eps)
    (found, _), (even, _) = jax.jit(lambda key: [draw(key, 9) for draw in samplers])(key)
    np.testing.assert_allclose(found, even, rtol=1e-3)


def test_density_follows_the_spread_that_is_left():
    """Noise that is wrong at one level alone: the draws go there, and the level is learned."""
    name, eps = "vp", 1e-3
    sde, exact = SDES[name], DATA.noise(SDES["vp"])
    low, high = log_snr64(sde, 1.0), log_snr64(sde, eps)
    edges = np.linspace(low, high, times.BINS + 1)

    def noise(x, t):
        there = (sde.log_snr(t) > edges[10]) & (sde.log_snr(t) < edges[11])
        return exact(x, t) + jnp.where(there[:, None], 2 * jnp.sin(9 * x), 0.0)

    fitted = fit_control(
        noise, sde, jnp.asarray(DATA.draw(20, 256), jnp.float32), jax.random.key(3),
        eps=eps, gaussian=MODEL,
    )  # fmt: skip
    shares = np.asarray(fitted.shares, np.float64)
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    assert np.argmax(shares) == 10 and shares[10] > 0.85
    assert shares.min() > 0.09 / times.BINS
    others = np.delete(np.asarray(fitted.slopes), 10, axis=0)[5:]  # where there is noise to tell
    np.testing.assert_allclose(others @ [1, 0, 0, 0], 1, atol=0.05)


def test_the_draws_at_the_data_have_coefficients_of_their_own():
    """A network that is right but at t = eps, where it predicts half of the noise, of images that
    are zero: it leaves a quarter of the noise's square there, and nothing in the bins."""
    sde, eps = SDES["vp"], 1e-3

    def noise(x, t):
        return jnp.where(t > 1.01 * eps, 1.0, 0.5)[:, None] * x / sde.sigma(t)[:, None]

    gaussian = FittedGaussian(jnp.zeros(2), jnp.eye(2), jnp.ones(2))
    x, z = jnp.zeros((256, 2)), jax.random.normal(jax.random.key(1), (256, 2))
    control = fit_control(noise, sde, x, jax.random.key(0), eps=eps, gaussian=gaussian)

    @jax.jit
    def draws(control, z):
        known, before = control.at(x), jnp.full(len(x), control.edges[0])
        return known.draw_at_data(z), known.draw(before, z)

    at_data, in_bin = draws(control, z)
    left = (np.sum(np.square(z), axis=1) - 2) / 8
    np.testing.assert_allclose(at_data, left, atol=0.02)
    np.testing.assert_allclose(in_bin, 0, atol=0.02)


def test_the_same_key_gives_the_same_control():
    jax.tree.map(np.testing.assert_array_equal, fit("vp"), fit.__wrapped__("vp"))


def test_draws_go_to_each_bin_by_the_standard_deviation_that_is_left():
    """Of images that are zero the noise z is known, and a network whose error is r sin(5 z), which
    no control explains, leaves a spread of r^2: three times as much in the upper bins."""
    sde, n = SDES["vp"], 2000

    def noise(x, t):
        z = x / sde.sigma(t)[:, None]
        r2 = jnp.where(sde.log_snr(t) > 0, 3.0, 1.0)[:, None]
        return z + jnp.sqrt(r2) * jnp.sin(5 * z)

    gaussian = FittedGaussian(jnp.zeros(2), jnp.eye(2), jnp.ones(2))
    control = fit_control(
        noise, sde, jnp.zeros((n, 2)), jax.random.key(0), eps=1e-3, gaussian=gaussian
    )
    shares = np.asarray(control.shares)
    assert shares.sum() == pytest.approx(1, rel=1e-5)
    learned = shares - EVEN / len(shares)
    upper, lower = learned[control.edges[:-1] >= 0], learned[control.edges[1:] <= 0]
    assert min(len(upper), len(lower)) > 3
    np.testing.assert_allclose(upper / lower.mean(), 3, rtol=0.15)
    np.testing.assert_allclose(lower / lower.mean(), 1, rtol=0.15)


def test_a_control_needs_one_log_snr():
    sde = SDE("vp", Curved(6.0, jnp.full(4, 14.0), jnp.zeros(4)), 1.0)
    x = jnp.asarray(DATA.draw(0, 2), jnp.float32)
    with pytest.raises(UserError, match="number at each"):
        elbo(
            lambda x, t: x, sde, x, jax.random.key(0),
            eps=1e-3, times=times.UniformTime(1e-3), draws=4, control=fit("vp"),
        )  # fmt: skip
