"""Bounds of chains of steps: against DDPM's formulas in a plain loop, and in closed form."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ddpm_chain import normal_cdf, published_terms
from helpers.oracles import Gaussian
from helpers.schedules import Curved
from scipy.stats import norm

from scoremle import ByElbo, Pixels, ScoreModel, UserError
from scoremle.anomaly.detector import _identity
from scoremle.anomaly.statistics import _points
from scoremle.core import schedules
from scoremle.core.betas import betas
from scoremle.core.keys import example_keys, fold_in, normal, split
from scoremle.core.polynomial_schedule import CodedPolynomial, first_polynomial
from scoremle.core.prediction import RangedNoise, noise_fn
from scoremle.core.sde import SDE, VE, VP, SubVP
from scoremle.likelihood.decoders import (
    DiscreteDecoder,
    InformedDecoder,
    decoding_cost,
    log_normal_mass,
)
from scoremle.likelihood.steps import BySteps, chain_of, published_log_mass, step_bound
from scoremle.model import Origin

KEY, BITS = jax.random.key(0), np.log(2)
PIXELS = Pixels(8, -1 - 1 / 7, 1 + 1 / 7)  # levels at 2k/7 - 1, as DDPM's are at 2k/255 - 1
SHAPE, IMAGES = (2, 2, 3), 4
STEPS = 20
INTEGERS = np.random.default_rng(0).integers(0, 8, (IMAGES, *SHAPE)).astype(np.uint8)
RNG = np.random.default_rng(1)
WEIGHTS = [RNG.normal(size=(12, 16)) / 3, RNG.normal(size=(16, 24)) / 3]


def network(x, label, xp=jnp):
    """A random network of x and the step's number: eps, and v in as many channels behind."""
    hidden = xp.tanh(x.reshape(len(x), -1) @ WEIGHTS[0] + label[:, None] / STEPS)
    eps, v = xp.split((hidden @ WEIGHTS[1]).reshape(len(x), *SHAPE[:2], 6), 2, axis=-1)
    return xp.concatenate([0.7 * x + 0.3 * eps, v], axis=-1)


def sde_of(name="cosine"):
    return SDE("vp", schedules.Discrete.of_betas(betas(name, STEPS)), 1.0)


def noise_of(variance, sde):
    if variance == "learned":
        return RangedNoise(noise_fn(network, sde, time_input="step"))
    return noise_fn(lambda x, label: network(x, label)[..., :3], sde, time_input="step")


# --- against DDPM's formulas, in float64 -------------------------------------------------------


def expected_terms(labels, noises, variance, clip):
    def outputs(x, label):
        return network(x, label, np)

    return published_terms(
        outputs, INTEGERS, 8, labels, noises, variance, clip, betas("cosine", STEPS)
    )


@pytest.mark.parametrize(
    ("variance", "clip", "labels"),
    [
        pytest.param("small", True, range(STEPS), marks=pytest.mark.long),
        ("small", False, range(STEPS)),
        pytest.param("large", True, range(STEPS), marks=pytest.mark.long),
        ("large", False, [0, 3, 4, 9, 19]),
        ("learned", True, range(STEPS)),
        pytest.param("learned", False, [2, 11, 15], marks=pytest.mark.long),
    ],
)
def test_it_is_the_published_bound_term_by_term(x64, variance, clip, labels):
    sde, labels = sde_of(), np.array(labels)
    noise, times = noise_of(variance, sde), (labels + 1) / STEPS

    @jax.jit
    def run(times):
        return step_bound(
            noise, sde, jnp.asarray(INTEGERS), KEY,
            points=PIXELS.points, times=times, variance=variance, clip=clip,
        )  # fmt: skip

    count = len(labels) - 1 + 4
    _, keys = split(example_keys(KEY, IMAGES))
    like = jnp.zeros((IMAGES, *SHAPE))
    noises = [np.asarray(normal(fold_in(keys, n), like)) for n in range(count)]
    prior, terms, last = expected_terms(labels, noises, variance, clip)
    found = run(times)
    np.testing.assert_allclose(found.prior, prior, rtol=1e-9)
    np.testing.assert_allclose(found.diffusion, terms.sum(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.reconstruction, last.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.profile.sum(axis=1), found.diffusion, rtol=1e-12)
    assert (found.evaluations == count).all() and found.bounds == "probability"
    if len(labels) == STEPS:  # each by itself, with the noise of its place
        for i in range(1, STEPS, 6):
            pair = labels[i - 1 : i + 1]
            expected = expected_terms(pair, noises[:1], variance, clip)
            found = run((pair + 1) / STEPS)
            np.testing.assert_allclose(found.diffusion, expected[1][0], rtol=1e-9)


def test_the_published_probabilities_are_nearly_normal():
    x = np.linspace(-4, 4, 33)
    np.testing.assert_allclose(normal_cdf(x), norm.cdf(x), atol=2e-4)
    published, exact = published_log_mass(x, x + 0.5), log_normal_mass(x, x + 0.5)
    np.testing.assert_allclose(published, np.log(normal_cdf(x + 0.5) - normal_cdf(x)), rtol=2e-3)
    assert (np.abs(published - exact) < 0.02)[np.abs(x) < 2].all()
    far = jnp.asarray([30.0, -30.0])
    np.testing.assert_allclose(published_log_mass(far, far + 1), np.log(1e-12), rtol=1e-6)


# --- closed forms -----------------------------------------------------------------------------

# Many images of a Gaussian's pixels, each alone.
WIDTH, MANY = 0.4, 400
DATA = Gaussian.of([0.1], [WIDTH**2])
GAUSSIAN_INTEGERS = np.asarray(
    Pixels(32).decode(jnp.asarray(DATA.draw(0, MANY * 8)).reshape(MANY, 4, 2, 1))
)


def gaussian_noise(sde):
    def noise(x, t):
        alpha, sigma = (c[:, None, None, None] for c in (sde.alpha(t), sde.sigma(t)))
        return sigma * (x - alpha * 0.1) / (alpha**2 * WIDTH**2 + sigma**2)

    return noise


def expected_diffusion(sde, times, variance):
    """sum of 1/2 [rho gain E (eps - z)^2 + rho - 1 - log rho], in nats."""
    lam = np.asarray(sde.log_snr(jnp.asarray(times)), np.float64)
    log_sigma2 = -np.logaddexp(0, lam)
    gain, ratio = np.expm1(lam[:-1] - lam[1:]), np.exp(log_sigma2[:-1] - log_sigma2[1:])
    rho = ratio if variance == "large" else np.ones_like(ratio)
    y, r = Pixels(32).points[GAUSSIAN_INTEGERS][..., None], np.exp(lam[1:])
    u = 1 + r * WIDTH**2
    residual = r * (y - 0.1) ** 2 / u**2 + (r * WIDTH**2 / u) ** 2
    return (rho * gain * residual + rho - 1 - np.log(rho)).sum(axis=-1).sum(axis=(1, 2, 3)) / 2


@pytest.mark.parametrize("variance", ["small", pytest.param("large", marks=pytest.mark.long)])
@pytest.mark.parametrize("draws", [None, 16])
def test_a_gaussian_has_its_analytic_terms_and_an_honest_error(variance, draws):
    sde = SDE("vp", schedules.Discrete.of_betas(betas("linear", 200)), 1.0)
    decoder = DiscreteDecoder(Pixels(32).points)  # without random error: the error is the steps'
    times = np.arange(1, 201) / 200
    run = jax.jit(
        lambda x: step_bound(
            gaussian_noise(sde), sde, x, KEY,
            points=Pixels(32).points, times=times, variance=variance, clip=False, draws=draws,
            decoder=decoder,
        )
    )  # fmt: skip
    found = run(GAUSSIAN_INTEGERS)
    expected = expected_diffusion(sde, times, variance)
    error, stated = np.asarray(found.diffusion - expected), np.sqrt(np.mean(found.stderr**2))
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(MANY) + 1e-3
    # With large variances the first terms rise steeply, and the stated error, which takes half of
    # that for noise, is up to three times too wide: never too narrow.
    assert (0.8 if variance == "small" else 0.3) < error.std() / stated < 1.25
    costs = decoding_cost(jnp.asarray(Pixels(32).points), sde.log_snr(jnp.asarray(1 / 200)))
    np.testing.assert_allclose(
        found.reconstruction, costs[GAUSSIAN_INTEGERS].sum(axis=(1, 2, 3)), rtol=1e-4
    )
    assert (found.evaluations == (draws or 199)).all()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_few_steps_have_an_error_that_is_no_smaller_than_it_is(steps):
    sde, times = SDE("vp", schedules.LinearLogSNR(-8.0, 6.0), 1.0), np.arange(steps + 1) / steps
    decoder = DiscreteDecoder(Pixels(32).points)
    found = jax.jit(
        lambda x: step_bound(
            gaussian_noise(sde), sde, x, KEY,
            points=decoder.points, times=times, decoder=decoder,
        )
    )(GAUSSIAN_INTEGERS)  # fmt: skip
    error = np.asarray(found.diffusion) - expected_diffusion(sde, times, "small")
    stated = np.sqrt(np.mean(found.stderr**2))
    assert np.isnan(stated) if steps == 1 else stated > 0.9 * error.std()


@pytest.mark.long
def test_what_is_drawn_for_the_decoder_is_in_the_error():
    """Nearly all of it is, from a noisy first layer to the integers."""
    data, sde = Gaussian.of(np.full(6, 0.1), np.full(6, 0.09)), VP()
    integers = np.repeat([[4, 4, 5, 4, 3, 4]], 512, axis=0)
    decoder = InformedDecoder(np.asarray(PIXELS.points), 0.2)
    found = step_bound(
        data.noise(sde), sde, integers, KEY,
        points=PIXELS.points, times=np.linspace(0.3, 1, 8), decoder=decoder,
    )  # fmt: skip
    assert 0.9 < np.std(found.log_prob) / np.sqrt(np.mean(found.stderr**2)) < 1.1
    assert np.std(found.diffusion) < 0.1 * np.std(found.reconstruction)


def test_vdm_of_t_steps_and_its_limit_in_continuous_time():
    """Its published loss is T/2 expm1(gamma_t - gamma_s) ||eps - z||^2 at a random step t."""
    sde, points = SDE("vp", schedules.LinearLogSNR(-8.0, 6.0), 1.0), Pixels(32).points
    model = ScoreModel(gaussian_noise(sde), sde, 1e-6, (4, 2, 1), Pixels(32))
    times, y = np.arange(51) / 50, points[GAUSSIAN_INTEGERS]
    chain = chain_of(50, sde, 1e-6, Pixels(32))
    np.testing.assert_allclose(chain.times, times, atol=2e-6)
    estimator = replace(chain, draws=10, decoder=DiscreteDecoder(points))
    scores = model.score(GAUSSIAN_INTEGERS, estimator=estimator)
    variance = 1 / (1 + np.exp(-8.0))
    prior = ((1 - variance) * y**2 + variance - 1 - np.log(variance)).sum(axis=(1, 2, 3)) / 2
    cost = np.asarray(decoding_cost(jnp.asarray(points), jnp.asarray(6.0)))[GAUSSIAN_INTEGERS]
    expected = expected_diffusion(sde, times, "small") + prior + cost.sum(axis=(1, 2, 3))
    error = scores.bpd - expected / 8 / BITS
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(MANY) + 1e-3
    assert 0.8 < error.std() / np.sqrt(np.mean(scores.probe_stderr**2)) < 1.25
    limit = model.elbo(jnp.asarray(y, jnp.float32), KEY, draws=64).diffusion
    gap = expected_diffusion(sde, np.arange(3001) / 3000, "small") - np.asarray(limit)
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(MANY) + 0.05


@pytest.mark.parametrize(("middles", "least", "most"), [(False, -0.04, 0.08), (True, 0.5, 0.7)])
def test_a_chain_is_near_log_p_where_the_network_was_trained_on_its_noise(middles, least, most):
    """One that was trained on dequantized data mistakes a grid under little noise for data."""
    sde, pixels = SDE("vp", schedules.LinearLogSNR(-8.0, 14.0), 1.0), Pixels(16)
    origin = Origin(middles=middles)
    model = ScoreModel(gaussian_noise(sde), sde, 0.0, (4, 2, 1), pixels, origin=origin)
    points = np.asarray(pixels.points)
    nearest = np.abs(np.asarray(DATA.draw(1, 800))[..., None] - points).argmin(axis=-1)
    images = nearest.reshape(100, 4, 2, 1).astype(np.uint8)
    inner = np.concatenate([[-np.inf], (points[1:] + points[:-1]) / 2, [np.inf]])
    exact = -np.log2(np.diff(norm.cdf((inner - 0.1) / WIDTH)))[images].mean()
    scores = model.score(images, estimator=replace(model.chain(1000), draws=100))
    assert least < scores.bpd.mean() - exact < most


@pytest.mark.parametrize("origin", [Origin(grid=True), Origin(middles=True)])
def test_a_chain_is_near_the_entropy_of_the_integers_that_a_network_knows(origin):
    """Independent pixels of given frequencies, and the exact network of them without noise."""
    sde, pixels = SDE("vp", schedules.LinearLogSNR(-8.0, 14.0), 1.0), Pixels(5)
    frequencies = np.random.default_rng(2).dirichlet(np.full(5, 0.2), 6).T.reshape(5, 3, 2, 1)
    frequencies = (frequencies + 1e-3) / (frequencies + 1e-3).sum(axis=0)
    model = ScoreModel(lambda x, t: x, sde, 0.0, (3, 2, 1), pixels, origin=origin)
    points = jnp.asarray(model.points, jnp.float32)[:, None, None, None]

    def noise(x, t):
        alpha, sigma = (f(t)[:, None, None, None] for f in (sde.alpha, sde.sigma))
        distance = jnp.square(x[:, None] - alpha[:, None] * points)
        logits = jnp.log(frequencies) - distance / (2 * sigma[:, None] ** 2)
        shares = jax.nn.softmax(logits, axis=1)
        return (x - alpha * (shares * points).sum(axis=1)) / sigma

    drawn = np.random.default_rng(3).random((200, 1, 3, 2, 1)) > np.cumsum(frequencies, axis=0)
    images = drawn.sum(axis=1).clip(max=4).astype(np.uint8)
    exact = -np.log2(np.take_along_axis(frequencies, images, axis=0)).mean()
    model = replace(model, noise=noise)
    scores = model.score(images, estimator=replace(model.chain(1000), draws=100))
    assert -0.03 < scores.bpd.mean() - exact < 0.06


def test_the_integers_of_a_network_are_on_the_grid_of_its_training():
    """Measures without noise what pixels with bins around that grid give."""
    sde = SDE("vp", schedules.LinearLogSNR(-6.0, 2.0), 1.0)
    origin = Origin(grid=True)
    of_grid = ScoreModel(gaussian_noise(sde), sde, 0.0, (4, 2, 1), Pixels(5), origin=origin)
    around = replace(of_grid, pixels=Pixels.of_points(5, -1, 1), origin=Origin())
    np.testing.assert_allclose(of_grid.points, around.points, atol=1e-6)
    images = np.random.default_rng(4).integers(0, 5, (12, 4, 2, 1), np.uint8)
    chain = BySteps(np.arange(31) / 30, clip=False)
    found, expected = (model.score(images, estimator=chain).bpd for model in (of_grid, around))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    found, expected = (model.fit_decoder(images).decoder_scale for model in (of_grid, around))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    found, expected = (model.profile(images, bins=2, draws=2).bits for model in (of_grid, around))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    found, expected = (_points(model, images) for model in (of_grid, around))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert _identity(of_grid) != _identity(replace(of_grid, origin=Origin()))
    many = np.random.default_rng(5).integers(0, 5, (80, 4, 2, 1), np.uint8)
    assert of_grid.check(many) == around.check(many)


def test_the_bound_of_a_network_of_middles_begins_where_its_noise_does():
    """Begins with truncated normal noise, which a bound of a density does not take."""
    sde, pixels = SDE("vp", schedules.LinearLogSNR(-8.0, 14.0), 1.0), Pixels(16)
    model = ScoreModel(
        gaussian_noise(sde), sde, 0.0, (4, 2, 1), pixels, origin=Origin(middles=True)
    )
    bound = model.default_bound
    assert bound.start == model.default_dequantizer.start > 0
    np.testing.assert_array_equal(bound.decoder.points, pixels.points)
    assert replace(model, origin=Origin()).default_bound == ByElbo()
    with pytest.raises(UserError, match="default_bound"):
        model.score(np.zeros((1, 4, 2, 1), np.uint8), estimator=ByElbo(draws=2))


# --- as an estimator --------------------------------------------------------------------------


def model_of(variance="small", noise=None):
    sde = sde_of()
    return ScoreModel(noise or noise_of(variance, sde), sde, 1 / STEPS, SHAPE, PIXELS)


@pytest.mark.long
def test_the_estimator_takes_the_steps_of_the_model():
    all_steps = BySteps(np.arange(1, STEPS + 1) / STEPS, variance="learned")
    found, same = (
        model_of("learned").score(INTEGERS, estimator=estimator)
        for estimator in (BySteps(variance="learned"), all_steps)
    )
    np.testing.assert_allclose(found.bpd, same.bpd, rtol=1e-6)
    np.testing.assert_allclose(found.log_prob, -found.bpd * 12 * BITS)
    of_noise_alone = model_of("learned").score(INTEGERS, estimator=BySteps())
    small = model_of().score(INTEGERS, estimator=BySteps())
    np.testing.assert_allclose(of_noise_alone.bpd, small.bpd, rtol=1e-6)
    informed = BySteps(decoder=InformedDecoder(PIXELS.points, 1e-3))
    assert (model_of().score(INTEGERS, estimator=informed).bpd > small.bpd + 1).all()
    assert BySteps(np.array([0.2, 0.4, 1.0])).first(sde_of()) == 0.2


@pytest.mark.parametrize("steps", [2, 7, STEPS])
def test_some_steps_of_a_chain_are_those_of_improved_diffusion(steps):
    """Its ``space_timesteps``: from the first to the last in even strides, rounded."""
    own = BySteps(variance="large", clip=False)
    found = chain_of(steps, sde_of(), 1 / STEPS, PIXELS, own)
    labels = [round(i * (STEPS - 1) / (steps - 1)) for i in range(steps)]
    np.testing.assert_allclose(found.times, (np.array(labels) + 1) / STEPS)
    assert found.title == f"variational bound of a chain of {steps} steps, fixed large variance"


@pytest.mark.parametrize(("sde", "eps"), [(VP(), 1e-5), (SubVP(), 1e-2), (VE(), 1e-5)])
def test_fifty_steps_of_any_schedule_are_not_far_from_continuous_time(sde, eps):
    """They begin where half a bin, 1/32, is the noise, and are even in log-SNR: of a width h they
    cost (e^h - 1) / h times as much, at most."""
    few, many = (chain_of(steps, sde, eps, Pixels(32)).times for steps in (50, 2000))
    assert sde.log_snr(few[0]) == pytest.approx(2 * np.log(32), abs=1e-3) and few[-1] == 1
    widths = -np.diff(sde.log_snr(jnp.asarray(few)))
    np.testing.assert_allclose(widths, widths.mean(), rtol=1e-3)
    costs = [expected_diffusion(sde, times, "small").mean() / 8 / BITS for times in (few, many)]
    assert 1 < costs[0] / costs[1] < np.expm1(widths[0]) / widths[0], costs


# The noise where it begins, in units of half a bin; at most e^-3 of the least log-SNR, 6.
@pytest.mark.parametrize(
    ("levels", "middles", "kind", "noise"),
    [(16, True, DiscreteDecoder, 16 / np.exp(3)), (4, True, DiscreteDecoder, 1 / 3),
     (16, False, InformedDecoder, 1), (32, False, InformedDecoder, 32 / np.exp(3))],
)  # fmt: skip
def test_a_chain_ends_by_the_decoder_of_its_network(levels, middles, kind, noise):
    sde = SDE("vp", schedules.LinearLogSNR(-8.0, 6.0), 1.0)
    points = Pixels(levels).points if middles else None
    chain = chain_of(10, sde, 0.0, Pixels(levels), points=points)
    assert isinstance(chain.decoder, kind) and not chain.clip
    begin = float(jnp.exp(-sde.log_snr(jnp.asarray(chain.times[0])) / 2)) * levels
    assert begin == pytest.approx(noise, rel=1e-4)
    if not middles:
        assert chain.decoder.scale == pytest.approx(0.8 * begin / levels, rel=1e-4)
        assert "informed" in chain.title and "decoder_scale" in chain.describe()


@pytest.mark.parametrize(("steps", "words"), [(1, "two steps"), (21, "20 steps")])
def test_a_number_of_steps_that_can_not_be_had(steps, words):
    with pytest.raises(UserError, match=words):
        chain_of(steps, sde_of(), 1 / STEPS, PIXELS)


def test_a_condition_reaches_the_variance():
    def shifted(x, label, condition):
        return network(x - condition[:, None, None, None], label)

    ranged = RangedNoise(noise_fn(shifted, sde_of(), time_input="step"))
    conditions, by_steps = np.float32([0, 0.3, 0, -0.2]), BySteps(variance="learned")
    found = model_of(noise=ranged).score(INTEGERS, condition=conditions, estimator=by_steps)
    plain = model_of("learned").score(INTEGERS, estimator=by_steps)
    same = conditions == 0
    np.testing.assert_allclose(found.bpd[same], plain.bpd[same], rtol=1e-5)
    assert (np.abs(found.bpd - plain.bpd)[~same] > 1e-3).all()


def test_a_network_that_predicts_no_variance_has_no_learned_one():
    with pytest.raises(UserError, match="has no variance"):
        model_of().score(INTEGERS, estimator=BySteps(variance="learned"))


def test_a_schedule_without_steps_is_a_line():
    continuous = ScoreModel(lambda x, t: 0 * x, VP(), 1e-3, SHAPE, PIXELS)
    with pytest.raises(UserError, match="no steps"):
        continuous.score(INTEGERS, estimator=BySteps())


def test_steps_have_one_log_snr():
    course = Curved(6.0, jnp.full((4, 2, 1), 14.0), jnp.zeros((4, 2, 1)))
    with pytest.raises(UserError, match="continuous time"):
        step_bound(
            lambda x, t: x, SDE("vp", course, 1.0), GAUSSIAN_INTEGERS, KEY,
            points=Pixels(32).points, times=np.linspace(0, 1, 4),
        )  # fmt: skip


def test_a_chain_has_one_log_snr_for_all_dimensions():
    coded = CodedPolynomial(first_polynomial(4, 2, jax.random.key(1)), -5.0, 8.0, (2,))
    with pytest.raises(UserError, match="one log-SNR"):
        chain_of(10, SDE("vp", coded, 1.0), 0.0, Pixels())
