"""Bits/dim of images: what is counted, and in which unit."""

import json
from dataclasses import fields, replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from helpers.oracles import Mixture, schedule64

from scoremle import (
    VE,
    VP,
    Exact,
    Hutchinson,
    Multistep,
    Orthogonal,
    Pixels,
    ScoreModel,
    UniformLogSNR,
    UniformTime,
    UserError,
)
from scoremle.core.codes import Coder
from scoremle.core.dequantize import Uniform
from scoremle.core.keys import example_keys, split
from scoremle.core.polynomial_schedule import CodedPolynomial, first_polynomial
from scoremle.core.sde import SDE
from scoremle.likelihood.by_loss import ByLoss, ByVDMLoss
from scoremle.likelihood.control_variate import Control, FittedGaussian
from scoremle.likelihood.decoders import DiscreteDecoder, InformedDecoder
from scoremle.likelihood.images import ByElbo, ByOde, OdeDifference, measure
from scoremle.likelihood.labels import ByLabels
from scoremle.likelihood.ode import ode_log_likelihood
from scoremle.likelihood.scales import LearnedScale, ScaleOfOthers
from scoremle.likelihood.steps import BySteps
from scoremle.weights.flows import ByLogProb

PIXELS, SHAPE = Pixels(17), (2, 2, 1)
X = np.arange(12, dtype=np.uint8).reshape(3, *SHAPE)
KEYS = example_keys(jax.random.key(0), 3)
BITS = 4 * np.log(2)
LOG_Q, START = 2.5, 0.3


def noise(x, t):
    return jnp.tanh(x + jnp.roll(x, 1, axis=1)) * (0.5 + t[:, None, None, None])


MODEL = ScoreModel(noise, VP(), 1e-3, SHAPE, PIXELS)


def run(estimator, model, dequantizer, x, keys=KEYS):
    return jax.jit(lambda x: estimator(model, dequantizer, x, keys))(x)


@partial(jax.jit, static_argnums=0)
def dequantized(pixels, x, keys=KEYS):
    """Images with the noise of an estimator, and the keys that it has for the rest."""
    key_u, key = split(keys)
    return pixels.encode(x, Uniform()(key_u, x)[0]), key


class Costly(Uniform):
    """Uniform noise that says its density is e^LOG_Q."""

    def __call__(self, key, x):
        return super().__call__(key, x)[0], jnp.full(len(x), LOG_Q)


@pytest.mark.parametrize("estimator", [ByOde(), ByOde(samples=3), ByElbo(8)])
def test_the_dequantization_is_counted(estimator):
    plain, costly = (
        jax.jit(lambda x, how=how: estimator(MODEL, how, x, KEYS)["bpd"])(X)
        for how in (Uniform(), Costly())
    )
    np.testing.assert_allclose(costly - plain, LOG_Q / BITS, rtol=1e-4)


def test_nats_become_bits_and_errors_too():
    divergence, solver = Hutchinson(2, "gaussian"), Multistep(12)
    found = run(ByOde(divergence, solver), MODEL, Uniform(), X)
    y, key_probe = dequantized(PIXELS, X)
    nats = MODEL.log_prob(y, key_probe, divergence=divergence, solver=solver)
    np.testing.assert_allclose(found["bpd"], np.log2(17 / 2) - nats.log_prob / BITS, rtol=1e-5)
    np.testing.assert_allclose(found["probe_stderr"], nats.probe_stderr / BITS, rtol=1e-4)
    np.testing.assert_allclose(found["solver_error"], nats.solver_error / BITS, rtol=1e-3)
    np.testing.assert_array_equal(found["nfe"], nats.evaluations)


def test_noise_of_a_time_needs_the_density_of_that_time():
    """y = z / alpha for a z of that time: log p(y) is log p(z), and the scale of each pixel. So it
    is of a model that begins there."""
    how = Exact(), Multistep(12)

    class Late:
        """Uniform noise, as if it were that of the time."""

        start = START

        def __call__(self, key, x):
            return Uniform()(key, x)

    found = run(ByOde(*how), MODEL, Late(), X)
    (y, key_probe), alpha = dequantized(PIXELS, X), schedule64(VP(), START)[0]
    likelihood = jax.jit(lambda z: ode_log_likelihood(
        noise, VP(), z, key_probe, eps=START, divergence=how[0], solver=how[1]
    ))  # fmt: skip
    log_p = likelihood(np.float32(alpha * y)).log_prob + 4 * np.log(alpha)
    np.testing.assert_allclose(found["bpd"], np.log2(17 / 2) - log_p / BITS, rtol=1e-5)
    late = ScoreModel(noise, VP(), START, SHAPE, PIXELS)
    same = run(ByOde(*how), late, Uniform(), X)
    np.testing.assert_array_equal(same["bpd"], found["bpd"])


@pytest.mark.parametrize("sde", [VP(), VE(0.01, 20.0)])
def test_whiteness_of_latents(sde):
    """Of data N(0, 4), each value is stretched to the prior's; so the data tell what is found."""
    def gaussian(x, t):
        alpha, sigma = (f(t)[:, None, None, None] for f in (sde.alpha, sde.sigma))
        return sigma * x / (4 * alpha**2 + sigma**2)

    shape, pixels = (3, 5, 2), Pixels(256, -6.0, 6.0)
    model = ScoreModel(gaussian, sde, 1e-3, shape, pixels)
    x = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
    keys = example_keys(jax.random.key(0), 4)
    found = run(ByOde(Exact(), Multistep(64)), model, Uniform(), x, keys)
    y = np.asarray(dequantized(pixels, x, keys)[0], np.float64)
    alpha, sigma = schedule64(sde, [1e-3, 1.0])
    variances = 4 * alpha**2 + sigma**2
    z = y * np.sqrt(variances[1] / variances[0]) / sde.prior_std
    np.testing.assert_allclose(found["latent_square"], (z**2).mean(axis=(1, 2, 3)), rtol=2e-3)
    pairs = [z[:, i, j] * z[:, k, m] for i in range(3) for j in range(5)
             for k, m in ((i + 1, j), (i, j + 1)) if k < 3 and m < 5]  # fmt: skip
    expected = np.mean(pairs, axis=(0, 2))
    np.testing.assert_allclose(found["latent_neighbours"], expected, rtol=2e-3, atol=1e-4)


def alike(estimator):
    """Values of 400 images that are alike, each with noise of its own."""
    x, keys = np.repeat(X[:1], 400, axis=0), example_keys(jax.random.key(1), 400)
    return np.asarray(jax.jit(lambda x: estimator(MODEL, Uniform(), x, keys)["bpd"])(x))


@cache
def change(divergence):
    """By 24 steps in place of 8, each with probes of its own."""
    fine, coarse = (alike(ByOde(divergence, Multistep(steps))) for steps in (24, 8))
    return fine - coarse


@some("divergence", [Exact(), Hutchinson(), Orthogonal(2)], quick=[Hutchinson(), Orthogonal(2)])
def test_a_difference_of_steps_is_what_they_change_with_the_same_noise(divergence):
    found = alike(OdeDifference(ByOde(divergence), 8, 24))
    exact, fresh = change(Exact()), change(Hutchinson())
    if divergence == Exact():
        np.testing.assert_allclose(found, exact, rtol=0, atol=3e-6)  # three roundings of 12.6
        both = run(OdeDifference(ByOde(divergence), 8, 24, halved=True), MODEL, Uniform(), X)
        half = run(OdeDifference(ByOde(divergence), 12, 24), MODEL, Uniform(), X)["bpd"]
        np.testing.assert_allclose(both["halving"], half, atol=1e-6)
    gap = found - exact
    assert abs(gap.mean()) < 4 * gap.std() / 20 + 1e-7
    assert found.std() < 0.5 * fresh.std()


@pytest.mark.long
def test_a_difference_of_steps_has_no_cost_of_a_code():
    schedule = CodedPolynomial(first_polynomial(6, 4, jax.random.key(1)), -5.0, 8.0, SHAPE)
    coder = Coder(lambda y: jnp.sin(y.reshape(len(y), 4) @ jnp.arange(24.0).reshape(4, 6)), 6, 3)
    model = ScoreModel(
        lambda x, t, code: noise(x, t), SDE("vp", schedule, 1.0), 0.0, SHAPE, PIXELS, coder=coder
    )
    coarse, fine, found = (
        measure(estimator, model, Uniform(), X, KEYS)["bpd"]
        for estimator in (
            ByOde(Exact(), Multistep(8)),
            ByOde(Exact(), Multistep(24)),
            OdeDifference(ByOde(Exact()), 8, 24),
        )
    )
    assert coder.nats / BITS > 1
    np.testing.assert_allclose(found, fine - coarse, rtol=0, atol=2e-5)


@pytest.mark.long
def test_a_mean_of_several_draws_is_corrected_for_its_solver():
    """By held probes, against the exact trace at the finer steps; a bin of 4 levels is wide, so
    that the draws of one image differ in their Jacobians. The optimism of probes stays stated."""
    means = np.random.default_rng(0).choice([-0.6, 0.6], size=(4, 8))
    oracle, pixels, shape = Mixture.of([0.25] * 4, means, [0.25] * 4), Pixels(4), (2, 4, 1)
    flat = oracle.noise(VP())
    model = ScoreModel(
        lambda x, t: flat(x.reshape(len(x), -1), t).reshape(x.shape), VP(), 1e-3, shape, pixels
    )
    x = np.clip(2 * (oracle.draw(1, 1024) + 1), 0, 3).astype(np.uint8).reshape(-1, *shape)
    keys = example_keys(jax.random.key(3), len(x))

    def found(estimator):
        return jax.device_get(run(estimator, model, Uniform(), x, keys))

    by_ode = ByOde(Hutchinson(4), Multistep(5), samples=8)
    coarse, correction = found(by_ode), found(OdeDifference(by_ode, 5, 48))["bpd"]
    truth = found(ByOde(Exact(), Multistep(48), samples=8))["bpd"]
    without = found(ByOde(Exact(), Multistep(5), samples=8))["bpd"] - truth

    def off(values):
        return abs(values.mean()), values.std() / 32

    assert off(without)[0] > 5 * off(without)[1]
    gap, stderr = off(correction + without)
    assert gap < 4 * stderr and stderr < off(without)[0] / 8
    left, stderr = off(coarse["bpd"] - coarse["probe_bias"] + correction - truth)
    assert left < 4 * stderr and left < off(without)[0] / 3


def test_the_terms_of_the_bound_add_up():
    found = run(ByElbo(8), MODEL, Costly(), X)
    terms = ("dequantization", "prior", "diffusion", "reconstruction")
    total = sum(found[term] for term in terms) + np.log2(17 / 2)
    np.testing.assert_allclose(found["bpd"], total, rtol=1e-5)
    np.testing.assert_allclose(found["profile"].sum(axis=1), found["diffusion"], rtol=1e-5)
    np.testing.assert_allclose(found["dequantization"], LOG_Q / BITS, rtol=1e-6)
    y, key_bound = dequantized(PIXELS, X)
    nats = MODEL.elbo(y, key_bound, draws=8)
    np.testing.assert_allclose(found["draw_stderr"], nats.stderr / BITS, rtol=1e-4)


@pytest.mark.parametrize("times", [UniformLogSNR(VP(), 0.1), UniformTime(1e-3)])
def test_times_from_another_smallest_time_are_refused(times):
    """The bound and its mean over labels refuse them; a bound that begins there takes them."""
    start = float(times.eps)
    late = ByElbo(4, times=times, start=0.1 if start == 1e-3 else None)
    for wrong in (late, ByLabels(late, 2)):
        with pytest.raises(UserError, match="begin at eps"):
            MODEL.score(X, estimator=wrong)
    assert MODEL.score(X, estimator=ByElbo(4, times=times, start=start)).bpd.shape == (3,)


# Of each field of an estimator, another value than it has.
DECODER = DiscreteDecoder(PIXELS.points)
GAUSSIAN = FittedGaussian(*map(jnp.zeros, (4, (4, 2), 2)))
CONTROL = Control(GAUSSIAN, *map(jnp.zeros, (3, (2, 2), (3, 4), 2)))
OF_LOSS = {"times": UniformTime(0.1), "scale": 2.0, "weighting": "plain", "dequantized": False}
OTHERS = [
    (ByOde(), {"divergence": Exact(), "solver": Multistep(9), "samples": 2,
               "decoder": InformedDecoder(PIXELS.points, 0.1)}),
    (ByElbo(), {"draws": 9, "matching": "sliced", "times": UniformTime(1e-3), "decoder": DECODER,
                "control": CONTROL, "start": 0.1}),
    (BySteps(), {"times": np.arange(1, 5) / 4, "variance": "large", "clip": False, "draws": 9,
                 "decoder": DECODER}),
    (ByLogProb(), {"draws": 9}),
    (ByLabels(ByElbo(), 2), {"of_one": ByElbo(9), "labels": 3}),
    (OdeDifference(ByOde(), 8, 16), {"of": ByOde(Exact()), "coarse": 4, "fine": 24,
                                     "halved": True}),
    (ByLoss(UniformTime(1e-3), 1.0, "likelihood", True), OF_LOSS),
    (ByVDMLoss(UniformTime(1e-3), 1.0, "likelihood", True), OF_LOSS | {"eps": 0.1}),
]  # fmt: skip


@pytest.mark.parametrize(("estimator", "others"), OTHERS, ids=lambda a: type(a).__name__)
def test_each_field_of_an_estimator_changes_its_description(estimator, others):
    assert set(others) == {each.name for each in fields(estimator)}
    for name, value in others.items():
        assert replace(estimator, **{name: value}).describe() != estimator.describe(), name


def test_each_scale_of_a_decoder_has_a_description_of_its_own():
    array, images = jnp.full((2, 2, 1), 0.1), X
    scales = [
        0.1, 0.2, array, 2 * array, LearnedScale(-1.0, 1.0), ScaleOfOthers(images, 0.1, 0.2),
        ScaleOfOthers(images, 0.1, 0.3), ScaleOfOthers(images[:1], 0.1, 0.2),
    ]  # fmt: skip
    found = [InformedDecoder(PIXELS.points, s).describe()["decoder_scale"] for s in scales]
    assert found[:2] == [0.1, 0.2] and found[4] == "learned"
    assert len({*map(json.dumps, found)}) == len(scales)
