"""ScoreModel: known densities, gradients, values that belong to images, shared programs."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from helpers.oracles import EPS, SDES, Gaussian, Mixture, of_data
from helpers.schedules import Curved
from scipy.stats import norm

import scoremle
from scoremle import (
    SDE,
    Doubling,
    Exact,
    Hutchinson,
    Multistep,
    Pixels,
    ScoreModel,
    UserError,
    devices,
)
from scoremle.core.codes import Coder
from scoremle.core.condition import Conditioned
from scoremle.core.dequantize import TruncatedNormal, truncation_start
from scoremle.core.keys import image_keys
from scoremle.core.polynomial_schedule import CodedPolynomial, first_polynomial
from scoremle.core.pytree import pytree
from scoremle.likelihood.decoders import DiscreteDecoder
from scoremle.likelihood.images import ByElbo, ByOde
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.likelihood.score_images import score_images
from scoremle.sampling.ode import euler_sample, ode_draw, ode_encode, ode_sample
from scoremle.training.checksums import model_hash

KEY = jax.random.key(0)
VP = SDES["vp"]


def reals(data, name="vp", **options):
    return ScoreModel(data.noise(SDES[name]), SDES[name], EPS[name], (data.dims,), **options)


# Reals


@some("name", SDES, quick=["vp", "ve"])
def test_log_prob_is_the_density_within_its_stated_error(name):
    data = Mixture.in_plane()
    x = data.draw(1, 40).astype(np.float32)
    found = reals(data, name, solver=Multistep(64)).log_prob(jnp.asarray(x), KEY)
    # Of a mixture in the plane p_eps is known up to the prior: at t = 1 nothing of it is left.
    exact = of_data(data.log_density, SDES[name], x.astype(np.float64), EPS[name])
    error = np.abs(found.log_prob - exact)
    assert np.mean(error < found.solver_error + 5e-3) > 0.9, np.c_[error, found.solver_error]
    np.testing.assert_array_equal(found.probe_stderr, 0)  # the exact trace, in few dimensions


@pytest.mark.long
def test_log_prob_is_differentiable_in_x(x64):
    """Against finite differences on a network, and against the score that a mixture has."""
    data = Mixture.in_plane()
    x = jnp.asarray(data.draw(1, 6))
    model = reals(data, solver=Multistep(128))
    gradient = jax.jit(jax.grad(lambda x: model.log_prob(x, KEY).log_prob.sum()))(x)
    sigma = VP.sigma(jnp.asarray(EPS["vp"]))
    score = -model.noise(x, jnp.full(len(x), EPS["vp"])) / sigma
    np.testing.assert_allclose(gradient, score, rtol=2e-3, atol=2e-3)

    weights = jax.random.normal(KEY, (3, 2, 2), jnp.float64)

    def noise(x, t):
        return jnp.tanh(jnp.tanh(x @ weights[0] + t[:, None]) @ weights[1]) @ weights[2] + x / 2

    model = ScoreModel(noise, VP, 1e-3, (2,), solver=Multistep(16))
    value = jax.jit(lambda x: model.log_prob(x, KEY, divergence=Hutchinson(2)).log_prob.sum())
    gradient, h = jax.grad(value)(x), 1e-5
    for i in range(2):
        step = jnp.zeros_like(x).at[0, i].set(h)
        slope = float(value(x + step) - value(x - step)) / (2 * h)
        assert float(gradient[0, i]) == pytest.approx(slope, rel=1e-6)


@pytest.mark.long
def test_doubling_refuses_a_gradient_in_reverse():
    model = reals(Mixture.in_plane(), solver=Doubling(fewest=4, most=8))
    x = jnp.zeros((1, 2))

    def value(x):
        return model.log_prob(x, KEY).log_prob.sum()

    assert jnp.isfinite(jax.jvp(value, (x,), (x + 1,))[1])
    with pytest.raises(ValueError, match="reverse mode"):
        jax.grad(value)(x)


def test_a_condition_reaches_the_noise_prediction():
    """A mean that is the condition: log p(x | c) = log p(x - c)."""
    data = Gaussian.random(3, 2)
    plain = data.noise(VP)

    def noise(x, t, condition):
        return plain(x - VP.alpha(t)[:, None] * condition, t)

    fine = Multistep(128)
    model = ScoreModel(noise, VP, 1e-5, (2,), solver=fine)
    x = jnp.asarray(data.draw(1, 5), jnp.float32)
    shifts = jax.random.normal(KEY, (5, 2))
    there = reals(data, solver=fine).log_prob(x, KEY).log_prob
    for condition in (shifts, shifts[:1]):
        found = model.log_prob(x + condition, KEY, condition=condition)
        # The prior does not move with the condition: alpha is 0.0066 at t = 1.
        np.testing.assert_allclose(found.log_prob, there, atol=0.02)
        bound = model.elbo(x + condition, KEY, condition=condition, draws=64)
        assert (np.abs(bound.log_prob - there) < 4 * bound.stderr + 0.02).all()


# (model, x, condition or None) -> what a method gives
WITH_CONDITION = {
    "log_prob": lambda model, x, c: model.log_prob(x, KEY, condition=c).log_prob,
    "elbo": lambda model, x, c: model.elbo(x, KEY, condition=c, draws=4).log_prob,
    "encode": lambda model, x, c: model.encode(x, condition=c),
    "decode": lambda model, x, c: model.decode(x, condition=c),
    "sample": lambda model, x, c: model.sample(len(x), KEY, condition=c),
}


@pytest.mark.parametrize("method", WITH_CONDITION)
def test_a_condition_may_be_bound_or_given(method):
    use, plain = WITH_CONDITION[method], Gaussian.random(3, 2).noise(VP)
    model = ScoreModel(lambda x, t, c: plain(x - c, t), VP, 1e-2, (2,), solver=Multistep(4))
    x, condition = jax.random.normal(KEY, (2, 3, 2))
    found = use(model.condition_on(condition), x, None)
    np.testing.assert_array_equal(found, use(model, x, condition))
    assert (np.abs(found - use(model, x, 0 * condition)) > 1e-3).any()


@pytest.mark.parametrize("how", [{}, {"tolerance": 0.05}])
def test_scores_are_under_a_condition_that_is_bound(how):
    def noise(x, t, c):
        x, t, c = x.reshape(len(x), -1), t[:, None], c[:, None]
        eps = VP.sigma(t) * (x - VP.alpha(t) * c) / (0.1 * VP.alpha(t) ** 2 + VP.sigma(t) ** 2)
        return (eps + 0.1 * jnp.sin(9 * c * x) * VP.sigma(t)).reshape(-1, 1, 3, 1)

    model = ScoreModel(noise, VP, 1e-3, (1, 3, 1), Pixels(8))
    images = np.random.default_rng(0).integers(0, 8, (5, 1, 3, 1), np.uint8)
    c = np.linspace(-0.9, 0.8, 5, dtype=np.float32)
    bound = model.condition_on(c).score(images, **how)
    given = model.score(images, condition=c, **how)
    np.testing.assert_array_equal(bound.bpd, given.bpd)
    assert bound.mean == given.mean
    assert (np.abs(bound.bpd - model.score(images, condition=0 * c).bpd) > 1e-3).all()


def test_a_condition_that_a_network_does_not_take_is_refused():
    """It would be taken for something else."""
    with pytest.raises(UserError, match="3 arguments"):
        scoremle.load("digits").score(np.zeros((1, 8, 8, 1), np.uint8), condition=np.ones((1, 1)))


@pytree
@dataclass(frozen=True)
class NoiseByCode:
    """A network that needs more steps where the first two bits of a code are not the last two."""

    sde: scoremle.SDE

    def __call__(self, x, t, code):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        apart = x - 30 * alpha * (code[:, :2] - code[:, 2:])
        return sigma * apart / (0.05**2 * alpha**2 + sigma**2) * (1 + alpha[:, ::-1] * sigma / 2)


@pytest.mark.long
def test_rows_that_are_solved_again_keep_their_codes():
    """Each has a schedule of its own by it: so they are the same as alone. Of the last row 320
    steps leave 8 nats and state 0.0006; what 640 change shows it, and 1,024 end in a warning."""
    schedule = CodedPolynomial(first_polynomial(4, 2, jax.random.key(1)), -8.0, 10.0, (2,))
    sde = scoremle.SDE("vp", jax.tree.map(lambda leaf: 3 * leaf, schedule), 1.0)
    model = ScoreModel(NoiseByCode(sde), sde, 1e-5, (2,))
    codes = jnp.asarray([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0.0]])
    x, keys = 30 * (codes[:, :2] - codes[:, 2:]), jax.random.split(KEY, 3)
    truth = model.under(codes).log_prob(x, keys, solver=Multistep(4096)).log_prob
    with pytest.warns(UserWarning, match="1 of 3"):
        found = model.under(codes).log_prob(x, keys)
    assert found.evaluations[2] > found.evaluations[:2].max()
    assert (np.abs(found.log_prob - truth) < found.solver_error + 1e-4).all()
    with pytest.warns(UserWarning, match="1 of 1"):
        for row in (slice(i, i + 1) for i in range(3)):
            alone = model.under(codes[row]).log_prob(x[row], keys[row])
            np.testing.assert_allclose(found.log_prob[row], alone.log_prob, atol=1e-3)


def noise_of_a_normal(sde, x, t, code):
    """The noise prediction of data N(0.3, 0.4^2 I), which no code changes."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return sigma * (x - 0.3 * alpha) / (0.16 * alpha**2 + sigma**2)


def by_codes(shape, pixels=None):
    """A model whose network reads the noise from the schedule of each example's code, and 40."""
    sde = SDE("vp", CodedPolynomial(first_polynomial(4, 2, KEY), -9.0, 11.0, shape), 1.0)
    noise = jax.tree_util.Partial(noise_of_a_normal, sde)
    coder = Coder(lambda y: jnp.sin(y.reshape(len(y), 2) @ jnp.arange(8.0).reshape(2, 4)), 4, 2)
    model = ScoreModel(noise, sde, 0.0, shape, pixels, coder=coder)
    return model, coder.drawn(jax.random.split(KEY, 40))


def test_an_encoder_may_be_a_function():
    model, _ = by_codes((2,))
    assert model.sample(3, KEY).shape == (3, 2)


def test_a_pilot_and_batches_take_the_codes_of_their_examples():
    model, codes = by_codes((2,))
    under, x = model.under(codes), jnp.asarray(np.random.default_rng(0).normal(0.3, 0.4, (40, 2)))
    found = under.log_prob(x, KEY, tolerance=0.01)
    truth = norm.logpdf(np.asarray(x), 0.3, np.hypot(0.4, np.exp(-5.5))).sum(axis=1)
    np.testing.assert_allclose(found.log_prob, truth, atol=0.05)  # of the prior at log-SNR -9
    assert under.within(0.01, x)[1].met
    whole, parts = (under.sample(40, KEY, log_prob=True, batch_size=n) for n in (40, 16))
    np.testing.assert_allclose(parts.x, whole.x, atol=1e-5)
    np.testing.assert_allclose(parts.log_prob, whole.log_prob, atol=1e-3)


def test_a_profile_of_an_snr_for_each_dimension_names_what_there_is_instead():
    model, codes = by_codes((2,))
    with pytest.raises(UserError, match="log_prob, elbo"):
        model.under(codes).profile(np.zeros((40, 2), np.float32))


def test_a_representation_is_short_and_counts_the_network_alone():
    model, codes = by_codes((2,))
    assert "schedule=Polynomial(-9.0, 11.0)" in repr(model.under(codes))  # without its 240 numbers
    network = replace(model, noise=lambda x, t, given: x)
    assert repr(network.condition_on(np.ones((3, 2)))) == repr(network)


def test_scores_of_a_model_with_codes_say_that_they_are_a_bound():
    model, _ = by_codes((1, 2, 1), Pixels(8))
    found = model.score(np.full((3, 1, 2, 1), 5, np.uint8), estimator=ByElbo(2))
    assert ", bound by a code of 2 of 4 bits, uniform dequantization)" in repr(found)


@pytest.mark.long
def test_images_in_batches_have_their_own_codes():
    """So have those of a pilot, and of the differences by which a mean is corrected."""
    model, codes = by_codes((1, 2, 1), Pixels(8))
    under, images = model.under(codes), np.full((40, 1, 2, 1), 5, np.uint8)
    found = under.score(images, batch_size=16)
    alone = model.under(codes[33:34]).score(images[:1], index=[33])
    np.testing.assert_allclose(found.bpd[33], alone.bpd[0], atol=1e-5)
    assert under.score(images, tolerance=0.01).choice.met
    apart = replace(under, noise=under.noise.noise)
    changes = score_images(apart, ByOde(), images, condition=codes).differences(8, 16, False, 5)
    assert np.isfinite(changes["bpd"]).all() and changes["bpd"].shape == (1, 5)


def test_latents_and_back():
    data = Gaussian.random(3, 2)
    model, x = reals(data), jnp.asarray(data.draw(1, 5), jnp.float32)
    z = model.encode(x)
    np.testing.assert_allclose(z, data.flow(VP, np.asarray(x, np.float64), 1e-5)[0], atol=1e-2)
    np.testing.assert_allclose(model.decode(z), x, atol=1e-2)


def test_a_map_of_data_has_all_their_digits():
    """Those that float32 loses beside an offset."""
    data = Gaussian.random(3, 2)
    model, x = reals(data), data.draw(1, 5)
    moved = replace(model, bijector=scoremle.Affine(1e6, 1.0))

    def log_prob(model, x):
        return model.log_prob(x, KEY).log_prob

    def of_constants(model, x):
        return jax.jit(lambda k: k * log_prob(model, x))(1.0)

    def in_float32(model, x):
        return model.log_prob(x, KEY, dtype="float32").log_prob

    for use in (log_prob, of_constants, in_float32, ScoreModel.encode):
        np.testing.assert_allclose(use(moved, 1e6 + x), use(model, x), atol=1e-4)


@pytest.mark.parametrize("name", ["sde", "pixels", "bijector", "solver", "divergence"])
def test_what_is_of_another_kind_is_refused(name, unchecked):
    model = reals(Gaussian.random(3, 2))
    for other in ("vp", Exact):
        with pytest.raises(UserError, match=f"{name} must"):
            replace(model, **{name: other})
        if name in ("solver", "divergence"):
            with pytest.raises(UserError, match=f"{name} must"):
                model.log_prob(np.ones((1, 2), np.float32), KEY, **{name: other})


def test_latents_and_samples_are_by_the_solver_of_the_model():
    data, few = Mixture.in_plane(), Multistep(3)
    model, x = reals(data, solver=few), data.draw(1, 4).astype(np.float32)
    alpha, eps = np.float32(VP.alpha(EPS["vp"])), EPS["vp"]
    z = ode_encode(model.noise, VP, alpha * x, eps=eps, solver=few)
    np.testing.assert_allclose(model.encode(x), z, rtol=1e-4, atol=1e-4)
    z = VP.prior_sample(image_keys(KEY, np.arange(4)), (4, 2))
    drawn = ode_sample(model.noise, VP, z, eps=eps, solver=few) / alpha
    for found in (model.decode(z), model.sample(4, KEY)):
        np.testing.assert_allclose(found, drawn, rtol=1e-4, atol=1e-4)
    by_default = reals(data)
    assert np.abs(by_default.decode(z) - drawn).max() > 0.01
    published = reals(data, solver=PublishedRK45())
    np.testing.assert_array_equal(published.decode(z), by_default.decode(z))
    np.testing.assert_array_equal(published.sample(4, KEY), by_default.sample(4, KEY))


def test_samples_have_the_moments_and_keys_of_their_own():
    data = Gaussian.of([0.5, -1.0], [[0.3, 0.1], [0.1, 0.2]])
    for sampler in (None, partial(euler_sample, steps=200)):
        options = {} if sampler is None else {"sampler": sampler}
        x = reals(data).sample(2000, KEY, batch_size=1000, **options)
        np.testing.assert_allclose(x.mean(axis=0), data.mu, atol=0.05)
        np.testing.assert_allclose(np.cov(x.T), data.covariance, atol=0.05)
    few = reals(data).sample(7, KEY, batch_size=3)
    np.testing.assert_allclose(few, reals(data).sample(2000, KEY)[:7], atol=1e-5)


@dataclass
class Doubled:
    """A bijector that is not a pytree, and has no hash."""

    offset: float = 0.0

    def forward(self, x):
        return x / 2, jnp.full(len(x), -x.shape[1] * np.log(2))

    def inverse(self, z):
        return 2 * z


def test_a_part_of_a_model_need_not_be_a_pytree():
    data = Gaussian.random(3, 2)
    own, ours = (
        reals(data, solver=Multistep(4), bijector=bijector).sample(2, KEY)
        for bijector in (scoremle.Chain((Doubled(),)), scoremle.Affine(0.0, 2.0))
    )
    np.testing.assert_allclose(own, ours, rtol=1e-6)
    hashes = {model_hash(Doubled(offset)) for offset in (0.0, 0.0, 1.0)}
    assert len(hashes) == 2  # a detector belongs to a model


@pytest.mark.parametrize("bound", [lambda of: of, lambda of: partial(ode_draw, transport=of)])
def test_a_sampler_that_takes_other_arguments_is_named(bound):
    with pytest.raises(UserError, match="is called with"):
        reals(Gaussian.of([0.5], [[0.3]])).sample(2, KEY, sampler=bound(scoremle.ddim_sample))


# Integer images

# Pixels of 8 levels, each N(0.1, 0.3^2) on its own: the probability of a bin is known.
PIXELS, SHAPE = Pixels(8), (2, 3, 1)
PIXEL = Gaussian.of([0.1], [0.3**2])
EDGES = np.linspace(-1, 1, 9)
LOG_MASS = np.log(np.diff(norm.cdf(EDGES, 0.1, 0.3)))
MASS = np.exp(LOG_MASS)
IMAGES = np.random.default_rng(0).choice(8, (24, *SHAPE), p=MASS / MASS.sum()).astype(np.uint8)


def pixel_noise(x, t):
    return PIXEL.noise(VP)(x.reshape(-1, 1), jnp.repeat(t, x[0].size)).reshape(x.shape)


def images(**options):
    return ScoreModel(pixel_noise, VP, 1e-5, SHAPE, PIXELS, **options)


def test_scores_are_the_dequantization_bound_and_close_on_the_probability():
    """Uniform noise: -E log p(y), known. Many draws in one bound: nearly -log P(k)."""
    model, bits = images(solver=Multistep(48)), np.log(2)
    u = (np.arange(1000) + 0.5) / 1000
    y = -1 + 2 * (np.arange(8)[:, None] + u) / 8
    per_level = -(norm.logpdf(y, 0.1, 0.3).mean(axis=1) + np.log(2 / 8)) / bits
    scores = model.score(IMAGES, passes=16, estimator=ByOde(Exact(), Multistep(48)))
    expected = per_level[IMAGES].mean(axis=(1, 2, 3))
    gap = scores.bpd - expected
    assert abs(gap.mean()) < 4 * np.sqrt(np.mean(scores.stderr**2) / len(gap)) + 2e-3
    assert 0.7 < gap.std() / np.sqrt(np.mean(scores.stderr**2)) < 1.3
    np.testing.assert_allclose(scores.log_prob, -scores.bpd * 6 * bits)
    exact = -LOG_MASS[IMAGES].mean(axis=(1, 2, 3)) / bits
    many = model.score(IMAGES, estimator=ByOde(Exact(), Multistep(48), samples=64))
    assert np.mean(many.bpd - exact) < 0.2 * np.mean(expected - exact)
    assert np.mean(many.bpd - exact) > -0.01


def test_scores_by_a_bound_lie_above_and_say_their_error():
    truth = -LOG_MASS[IMAGES].mean(axis=(1, 2, 3)) / np.log(2)
    points = np.asarray(PIXELS.encode(jnp.arange(8), jnp.full(8, 0.5)))
    start = truncation_start(VP, 1e-5, PIXELS)
    decoder = ByElbo(64, decoder=DiscreteDecoder(points), start=start)
    for estimator, words in ((ByElbo(64), ", uniform dequantization"), (decoder, "")):
        found = images().score(IMAGES, passes=4, estimator=estimator)
        assert repr(found).endswith(f"; {estimator.title}{words})")
        assert np.mean(found.bpd - truth) > 0
        assert (found.solver_error == 0).all() and (found.probe_stderr > 0).all()


@pytest.mark.long
def test_other_dequantizers_and_solvers():
    start = truncation_start(VP, 1e-5, PIXELS)
    normal = images().score(IMAGES, dequantizer=TruncatedNormal(VP, start, PIXELS))
    assert np.isfinite(normal.bpd).all()
    # (Of independent pixels a probe of signs gives the exact trace.)
    published = images().score(IMAGES[:4], estimator=ByOde(Hutchinson(), PublishedRK45()))
    ours = images().score(IMAGES[:4], estimator=ByOde(Exact(), Multistep(64)))
    np.testing.assert_allclose(published.bpd, ours.bpd, atol=2e-3)


@pytest.mark.long
def test_what_does_not_fit_memory_is_done_in_halves(monkeypatch, caplog):
    """On a CPU, by what XLA says that a program needs."""
    whole = images().score(IMAGES).bpd, images().sample(20, KEY)
    free = chain([0], repeat(2**40))
    monkeypatch.setattr(devices, "memory", lambda: devices.Memory(2**40, next(free)))
    np.testing.assert_allclose(images().score(IMAGES).bpd, whole[0], atol=1e-5)
    free = chain([0, 0], repeat(2**40))
    np.testing.assert_array_equal(images().sample(20, KEY), whole[1])
    told = [re.search(r"continuing with (\d+)", message)[1] for message in caplog.messages]
    assert told == ["16", "10", "5"]


def test_a_value_belongs_to_its_image():
    """Not to the batch size, its place, or the other images."""
    whole = images().score(IMAGES, passes=2)
    for batch_size in (5, 64):
        again = images().score(IMAGES, passes=2, batch_size=batch_size)
        np.testing.assert_allclose(again.bpd, whole.bpd, atol=1e-5)
    some = np.array([17, 3, 11])
    part = images().score(IMAGES[some], index=some, passes=2)
    np.testing.assert_allclose(part.bpd, whole.bpd[some], atol=1e-5)
    elsewhere = images().score(IMAGES[some], passes=2)
    assert not np.allclose(elsewhere.bpd, part.bpd, atol=1e-4)
    far = images().score(IMAGES[some], index=some + 2**40)
    assert not np.allclose(far.bpd, images().score(IMAGES[some], index=some).bpd, atol=1e-4)


DEVICES = """
import sys; sys.path.insert(0, {tests!r})
import jax, numpy as np, test_model as t
assert len(jax.devices()) == 3
one = t.images().score(t.IMAGES).bpd
np.testing.assert_allclose(t.images().score(t.IMAGES, devices=jax.devices()).bpd, one, atol=1e-5)
"""


@pytest.mark.long
def test_devices_share_the_work(monkeypatch):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=3"
    monkeypatch.setenv("XLA_FLAGS", flags)
    code = DEVICES.format(tests=str(__file__).rpartition("/")[0])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_models_of_one_architecture_are_one_program():
    traced = []

    def network(width, x, t):
        traced.append(x.shape)
        return width * x

    first, second = (
        ScoreModel(jax.tree_util.Partial(network, jnp.asarray(w)), sde, 1e-4, SHAPE, PIXELS)
        for w, sde in ((0.3, VP), (0.5, type(VP)(0.2, 15.0)))
    )
    a = first.score(IMAGES)
    count = len(traced)
    assert count > 0
    b = second.score(IMAGES)
    assert len(traced) == count and not np.allclose(a.bpd, b.bpd)


def test_calibration_gives_another_model_and_changes_none():
    model = images()
    before = model.score(IMAGES)
    calibrated, choice = model.calibrated(IMAGES)
    assert calibrated.solver == choice.solver
    np.testing.assert_array_equal(model.score(IMAGES).bpd, before.bpd)


def test_scores_by_a_pilot_state_their_solvers_error_whatever_was_scored_before(unchecked):
    """Beside those at eight times the steps, with the same noise: of independent pixels each probe
    of signs gives the exact trace. The pilot's images are not those that are scored."""
    model, choice = images().calibrated(IMAGES[:8], seed=np.int32(0))
    others = np.arange(8, 24)
    found = model.score(IMAGES[others], index=others)
    finer = replace(model, solver=Multistep(8 * choice.solver.steps))
    error = np.abs(found.bpd - finer.score(IMAGES[others], index=others).bpd)
    assert np.mean(error <= found.solver_error) >= 0.9
    assert np.median(found.solver_error / error) <= 4
    model.score(IMAGES[::-1], passes=2, seed=1)
    again = model.score(IMAGES[others], index=others)
    np.testing.assert_array_equal(again.bpd, found.bpd)
    np.testing.assert_array_equal(again.solver_error, found.solver_error)


@pytest.mark.long
def test_a_tolerance_corrects_the_mean_and_says_by_what(capsys):
    """Beside many steps with the same noise: each probe of signs gives the exact trace here."""
    model, many = images(), np.concatenate([IMAGES] * 20)
    found = model.score(many, tolerance=1e-4, label="scores")
    mean = found.mean
    assert capsys.readouterr().out.count(f"scores  image {len(many)}/{len(many)}") == 1
    finer = replace(model, solver=Multistep(512)).score(many)
    left = abs(mean.mean - finer.bpd.mean())
    assert left <= 3 * mean.errors.solver + mean.errors.finest_bias
    assert left < abs(found.bpd.mean() - finer.bpd.mean()) / 10
    assert found.choice.solver.steps == mean.level_nodes[0] < mean.level_nodes[1]
    assert f"{mean.mean:.3f} +- {mean.stderr:.3f}" in repr(found)
    assert f"{mean.level_nodes[0]} steps, chosen on 8 images" in repr(found)
    with pytest.raises(UserError, match="tolerance"):
        model.score(IMAGES, tolerance=1e-3, estimator=model.default_estimator)


def test_the_pilot_and_few_scores_are_one_program():
    """Of any number of steps: the network is read once."""
    read, base = [], images()

    def noise(x, t):
        read.append(x.shape)
        return base.noise(x, t)

    model = replace(base, noise=noise)
    found = model.score(IMAGES, tolerance=1.0)
    count = len(read)
    for steps in (5, found.choice.solver.steps):
        replace(model, solver=Multistep(steps)).score(IMAGES, passes=2)
    assert len(read) == count


def test_a_pilot_takes_the_conditions_of_its_images():
    """A row for each of them, of which it takes a few."""
    ones = np.ones((len(IMAGES), 1, 1, 1), np.float32)
    model = replace(images(), noise=lambda x, t, factor: factor * pixel_noise(x, t))
    found = model.score(IMAGES, tolerance=1.0, condition=ones)
    plain = images().score(IMAGES, tolerance=1.0)
    assert found.choice.solver.steps == plain.choice.solver.steps
    np.testing.assert_allclose(found.bpd, plain.bpd, atol=1e-4)


# How many examples there are, and how many of them are used; and (model of reals, model of images
# whose levels the noise hides) -> what a method gives.
BY_A_FEW = {
    "within": (40, 32, lambda reals, _: repr(reals.within(0.05, np.zeros((40, *SHAPE)))[1])),
    "check": (24, 24, lambda reals, images: images.check(IMAGES)),
    "calibrated": (24, 8, lambda _, images: repr(images.calibrated(IMAGES)[1])),
    "fit_decoder": (24, 8, lambda _, images: images.fit_decoder(IMAGES).decoder_scale),
}


@pytest.mark.parametrize("method", BY_A_FEW)
def test_a_few_examples_have_their_rows_of_a_condition_that_is_bound(method):
    """A row for each gives what one for all does, where those of the used ones are equal to it."""
    n, used, use = BY_A_FEW[method]
    of_each = np.where(np.arange(n) < used, 0.9, 3.0).astype(np.float32).reshape(n, 1, 1, 1)
    models = [
        ScoreModel(lambda x, t, factor: factor * pixel_noise(x, t), VP, eps, SHAPE, pixels)
        for eps, pixels in ((1e-5, None), (0.05, Pixels(256)))
    ]
    one, each = (
        use(*(model.condition_on(rows) for model in models)) for rows in (of_each[:1], of_each)
    )
    assert one == each and one is not None


def test_a_large_error_of_the_solver_is_printed():
    rough = replace(images(), solver=Multistep(4)).score(IMAGES)
    assert (rough.solver_error > 0.01).all()
    assert f"that of {len(IMAGES)} above 0.01" in repr(rough)
    fine = replace(images(), solver=Multistep(256)).score(IMAGES)
    assert "above" not in repr(fine)


def test_samples_are_integers():
    drawn = images().sample(400, KEY)
    assert drawn.dtype == np.uint8 and drawn.shape == (400, *SHAPE)
    share = np.bincount(drawn.ravel(), minlength=8) / drawn.size
    np.testing.assert_allclose(share, MASS, atol=0.03)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: reals(PIXEL).score(IMAGES), "use log_prob"),
        (lambda: images().score(IMAGES / 7), r"\(7 \* images\)"),
        (lambda: images().score(IMAGES + 8), "0..7"),
        (lambda: images().score(IMAGES, index=[1, 2]), "index"),
        (lambda: images().score(IMAGES, condition=np.zeros(3)), "condition must"),
    ],
)
def test_mistakes_are_one_line(call, words, unchecked):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_what_it_is_in_a_line():
    assert repr(images()) == "ScoreModel(2x3x1, VP(beta_min=0.1, beta_max=20.0), 8 levels)"
    table = images()._repr_html_()
    assert "<caption>ScoreModel</caption>" in table and "<td>grey levels</td>" in table
    assert "<td>SDE</td><td>VP(beta_min=0.1, beta_max=20.0)</td>" in table
    assert "<td>solver</td><td>Multistep(steps=40)</td>" in table


# What is passed on


class Called(Exception):
    """What a function was called with, in the place of its work."""


@pytest.fixture
def seen(monkeypatch):
    """Calls a method whose work by a function is not done; gives the options of that call."""

    def of(function, call):
        def called(*_, **options):
            raise Called(options)

        with monkeypatch.context() as patch, pytest.raises(Called) as found:
            patch.setattr(f"scoremle.model.{function}", called)
            call()
        (options,) = found.value.args
        return options

    return of


def of_images():
    data = Gaussian.random(3, 4, 0.6)

    def noise(x, t):
        return data.noise(VP)(x.reshape(len(x), 4), t).reshape(x.shape)

    return ScoreModel(noise, VP, EPS["vp"], (2, 2, 1), Pixels(8))


def test_a_score_passes_on_what_it_is_given(seen):
    model, images = of_images(), np.zeros((3, 2, 2, 1), np.uint8)
    noise, device = TruncatedNormal(VP, EPS["vp"], Pixels(8)), jax.devices()[0]
    options = {"passes": 3, "seed": 5, "batch_size": 7, "devices": [device], "label": "words"}
    found = seen("score_images", lambda: model.score(images, dequantizer=noise, **options))
    assert found.pop("dequantizer") is noise and found.pop("condition") is None
    assert found == options
    found = seen("score_images", lambda: model.score(images))
    assert found.pop("dequantizer") == model.default_dequantizer
    assert found == {"condition": None, "passes": 1, "seed": 0, "batch_size": None,
                     "devices": [device], "label": ""}  # fmt: skip
    found = seen("choose_for_images", lambda: model.score(images, tolerance=0.01, **options))
    assert found == {"condition": None, "mean_over": 3, "passes": 3, "tolerance": 0.01,
                     "devices": [device], "seed": 5}  # fmt: skip
    trace = Hutchinson(7)
    found = seen("choose_for_images", lambda: model.calibrated(images, divergence=trace, seed=5))
    assert found == {"condition": None, "divergence": trace, "seed": 5}


@pytest.mark.parametrize(
    ("n", "batch_size", "size"), [(3, 256, 4), (3, 2, 2), (4, 256, 4), (5, 256, 8), (1, 9, 1)]
)
def test_work_in_batches_has_its_size_and_its_label(n, batch_size, size, seen):
    data = Gaussian.random(3, 2)
    model, x = reals(data), data.draw(0, n).astype(np.float32)
    options = {"batch_size": batch_size, "label": "words"}
    found = seen("resumable_map", lambda: model.profile(x, **options))
    assert found == {"size": size, "label": "words", "unit": "profile"}
    found = seen("resumable_map", lambda: model.sample(n, KEY, parts=Path("parts"), **options))
    shown = {"label": "words", "unit": "sample", "folder": Path("parts")}
    assert found == {"size": min(n, batch_size), "least": 1, **shown}


@pytest.mark.parametrize("devices", ["cpu", [3], [], jax.devices()[0]])
def test_what_are_no_devices_is_refused(devices, unchecked):
    with pytest.raises(UserError, match="devices"):
        images().score(IMAGES, devices=devices)
    with pytest.raises(UserError, match="devices"):
        images().sample(2, jax.random.key(0), devices=devices)


def test_a_network_for_another_sde_is_refused():
    """The wrong log p of such a pair would look right: its solver states little error."""
    noise = scoremle.noise_fn(lambda x, label: 0 * x, scoremle.VP(), prediction="v")
    given = {"eps": 1e-3, "shape": (2,)}
    for sde in (scoremle.VP(), scoremle.VP(0.1, 20.001)):
        ScoreModel(noise, sde, **given)
    straight = SDE("straight", scoremle.LinearBeta(), 1.0)  # by the same log-SNR
    for sde in (scoremle.SubVP(), scoremle.VP(0.1, 5.0), straight):
        for of_it in (noise, Conditioned(noise, jnp.zeros(1))):
            with pytest.raises(UserError, match="is made for"):
                ScoreModel(of_it, sde, **given)


@pytest.mark.parametrize("fall", [(3,), (3, 1), (3, 2, 1), ()], ids=str)
def test_a_schedule_of_other_dimensions_is_refused(fall):
    """That of three rows would else be taken for one of three colours."""
    sde = SDE("vp", Curved(8.0, jnp.full(fall, 16.0), jnp.asarray(0.1)), 1.0)
    with pytest.raises(UserError, match="log-SNRs of shape"):
        ScoreModel(lambda x, t: 0 * x, sde, 1e-3, (3, 3, 3))


def test_a_network_for_other_schedules_of_dimensions_is_refused():
    """Where it is the same along an axis, a schedule may have one number there, or all."""

    def of(*fall):
        return SDE("vp", Curved(8.0, jnp.asarray(fall), jnp.asarray(0.1)), 1.0)

    line = SDE("vp", scoremle.LinearLogSNR(-5.0, 13.3), 1.0)
    noise = scoremle.noise_fn(lambda x, label: 0 * x, of(16.0, 16.0))
    for sde in (of(16.0, 16.0), of(16.0)):
        ScoreModel(noise, sde, 1e-3, (2,))
    for sde in (of(16.0, 17.0), of(16.0, 16.0, 16.0), line):
        with pytest.raises(UserError, match="is made for"):
            ScoreModel(noise, sde, 1e-3, (2,))
