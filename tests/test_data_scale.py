"""The scale of the data: densities, latents and samples are of x, not of the alpha x of t = eps.

Their data are N(5, 0.1^2): the mean is so many deviations from 0 that a factor of 0.999 is seen.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from scipy.stats import norm

import scoremle
from scoremle import Affine, Discrete, Exact, LinearLogSNR, Multistep, Pixels, ScoreModel
from scoremle.core.betas import betas
from scoremle.core.pytree import pytree
from scoremle.core.schedules import PerDimension
from scoremle.core.sde import SDE, VE, VP, SubVP
from scoremle.numerics import expand
from scoremle.sampling.conditional import inpaint
from scoremle.sampling.ends import end_of
from scoremle.sampling.exponential import ddim_sample, dpm_solver_sample
from scoremle.sampling.ode import euler_sample, ode_draw
from scoremle.sampling.predictor_corrector import (
    PredictorCorrector,
    ald,
    ancestral_sampling,
    euler_maruyama,
    langevin,
    pc_sample,
    reverse_diffusion,
)

KEY = jax.random.key(0)
MEAN, STD = 5.0, 0.1


@pytree
@dataclass(frozen=True)
class Slopes(PerDimension):
    def log_snr(self, t):
        return 12 * (1 - 2 * jnp.asarray(t)[..., None]) * jnp.asarray([0.5, 0.6])


# Each ends where its alpha is off 1 by so much that the mean tells: but for VE, whose alpha is 1.
MODELS = {
    "vp": (VP(), 1e-2),
    "subvp": (SubVP(), 1e-2),
    "ve": (VE(), 1e-3),
    "straight": (SDE("straight", LinearLogSNR(-18.0, 13.3), 1 / (1 + np.exp(-9.0))), 1e-5),
    "a table": (SDE("vp", Discrete.of_betas(betas("linear", 100)), 1.0), 1e-2),
    "of each dimension": (SDE("vp", Slopes(), 1.0), 1e-5),
}
long = pytest.mark.long
every_model = some("name", MODELS, quick=["straight", "of each dimension"])


def model_of(name, dims=2, table=MODELS, **options):
    sde, eps = table[name]

    def noise(x, t):
        alpha, sigma = (expand(scale(t), x) for scale in (sde.alpha, sde.sigma))
        return sigma * (x - alpha * MEAN) / (jnp.square(alpha * STD) + jnp.square(sigma))

    return ScoreModel(noise, sde, eps, (dims,), **options)


def ends(model):
    """alpha and the variance of x_t, at t = eps and at t = 1."""
    sde, t = model.sde, jnp.asarray([model.eps, 1.0])
    alpha, sigma = (np.asarray(scale(t), np.float64) for scale in (sde.alpha, sde.sigma))
    return [*zip(alpha, np.square(alpha * STD) + np.square(sigma), strict=True)]


def latent(model, x):
    (alpha, variance), (last_alpha, last_variance) = ends(model)
    return last_alpha * MEAN + alpha * (x - MEAN) * np.sqrt(last_variance / variance)


def log_density(model, x):
    """log p(x), and its gradient: of the prior, carried along the flow to t = eps, and scaled."""
    (alpha, variance), (_, last_variance) = ends(model)
    z, std, stretch = latent(model, x), float(model.sde.prior_std), alpha * np.sqrt(
        last_variance / variance
    )
    logs = -0.5 * (z / std) ** 2 - np.log(std) - np.log(2 * np.pi) / 2 + np.log(stretch)
    return logs.sum(axis=1), -z / std**2 * stretch


def data(model, n=64):
    """In the whole of the density, to its tails."""
    (alpha, variance), _ = ends(model)
    x = MEAN + np.sqrt(variance) / alpha * np.random.default_rng(0).normal(size=(n, 2))
    return x.astype(np.float32)


# Densities and latents


@every_model
def test_the_density_is_that_of_the_data_with_the_noise_of_eps(name):
    """By the default call, within its stated error; and its gradient."""
    model = model_of(name)
    x = data(model)
    found = jax.jit(lambda x: model.log_prob(x, KEY))(x)
    truth, slope = log_density(model, x.astype(np.float64))
    error = np.abs(found.log_prob - truth)
    assert (error < found.solver_error + 2e-3).all(), (error, found.solver_error)
    gradient = jax.jit(jax.grad(lambda x: model.log_prob(x, KEY).log_prob.sum()))(x)
    size = np.sqrt(np.mean(np.square(slope)))
    assert np.sqrt(np.mean(np.square(gradient - slope))) < 0.02 * size


@every_model
def test_latents_are_those_of_the_data_and_lead_back(name):
    model = model_of(name)
    x = data(model)
    z = model.encode(x)
    size = float(model.sde.prior_std)
    np.testing.assert_allclose(z, latent(model, x.astype(np.float64)), atol=0.02 * size)
    np.testing.assert_allclose(model.decode(z), x, atol=0.03 * STD)


def test_a_bound_goes_by_t_where_each_dimension_has_its_log_snr():
    model = model_of("of each dimension")
    x = data(model)
    bound = model.elbo(x, KEY, draws=32)
    loose = log_density(model, x.astype(np.float64))[0] - bound.log_prob
    assert -0.3 < loose.mean() < 0.5 and bound.profile is None


def test_a_bijector_comes_before_it():
    """A network that sees N(5, 0.1^2) of data N(-90, 2^2)."""
    plain, moved = model_of("straight"), model_of("straight", bijector=Affine(-190.0, 20.0))
    y, solver = data(plain), Multistep(64)
    x = 20 * y - 190
    inner, found = (
        jax.jit(lambda x, model=model: model.log_prob(x, KEY, solver=solver).log_prob)(of)
        for model, of in ((plain, y), (moved, x))
    )
    np.testing.assert_allclose(found, inner - 2 * np.log(20), atol=0.02)
    np.testing.assert_allclose(moved.decode(moved.encode(x)), x, atol=0.6 * STD)
    drawn = moved.sample(1000, KEY)
    np.testing.assert_allclose(drawn.mean(axis=0), -90, atol=0.3)


@pytest.mark.parametrize("traced", ["data", "scale"])
def test_a_bijector_takes_all_digits_of_the_data_within_a_program(traced, x64):
    plain, offset, scale = model_of("vp"), 59000.5, 0.1
    x = offset + scale * np.asarray(data(plain, 4), np.float64)

    def log_prob(x, scale):
        model = replace(plain, bijector=Affine(offset, scale))
        return model.log_prob(x, KEY, solver=Multistep(64), dtype="float32").log_prob

    if traced == "data":
        found = jax.jit(lambda x: log_prob(x, scale))(x)
    else:
        found = jax.jit(lambda scale: log_prob(x, scale))(scale)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, log_prob(x, scale), atol=0.01)


def test_a_pilot_measures_what_is_required():
    """Its points lie where the model's data do at t = eps, and so are not harder than others."""
    model = model_of("straight")
    chosen, accuracy = model.within(0.02, data(model))
    assert accuracy.met
    error = np.abs(chosen.log_prob(data(model), KEY).log_prob - log_density(model, data(model))[0])
    assert np.sqrt(np.mean(np.square(error))) < 0.02


PIXELS, SHAPE = Pixels(32, 4.5, 5.5), (2, 2, 1)
IMAGES = np.asarray(
    PIXELS.decode(jnp.asarray(np.random.default_rng(1).normal(MEAN, STD, (16, *SHAPE))))
)


@some("name", [name for name in MODELS if name != "of each dimension"], quick=["a table"])
def test_integers_have_the_probability_of_the_data(name):
    """Many draws of uniform noise in one bound: nearly log P of each pixel's bin."""
    model = replace(model_of(name), shape=SHAPE, pixels=PIXELS)
    by = scoremle.ByOde(Exact(), Multistep(48), samples=64)
    found = model.score(IMAGES, estimator=by).log_prob
    (alpha, variance), _ = ends(model)
    edges = (PIXELS.low + np.arange(33) / 32 - MEAN) / (np.sqrt(variance) / alpha)
    truth = np.log(np.diff(norm.cdf(edges)))[IMAGES].sum(axis=(1, 2, 3))
    assert abs(np.mean(found - truth)) < 0.01, found - truth


# Samples

# Each ends where alpha is about 0.98: but for VE, whose alpha is 1.
SAMPLED = {
    "vp": (VP(), 0.05),
    "subvp": (SubVP(), 0.06),
    "ve": (VE(), 0.1),
    "straight": (SDE("straight", LinearLogSNR(-18.0, 7.8), 1 / (1 + np.exp(-9.0))), 1e-5),
}


def by_steps(predictor, corrector=None, steps=200, **options):
    return partial(pc_sample, method=PredictorCorrector(steps, predictor, corrector, **options))


SAMPLERS = {
    "ode": ode_draw,
    "ode, denoised": partial(ode_draw, denoised=True),
    "ddim": partial(ode_draw, transport=partial(ddim_sample, steps=100)),
    "dpm, denoised": partial(
        ode_draw, transport=partial(dpm_solver_sample, steps=30), denoised=True
    ),
    "euler": partial(euler_sample, steps=200),
    "euler, noisy": partial(euler_sample, steps=200, denoise=False),
    "euler_maruyama": by_steps(euler_maruyama),
    "euler_maruyama, noisy": by_steps(euler_maruyama, denoise=False),
    "euler_maruyama, flow": by_steps(euler_maruyama, steps=2000, probability_flow=True),
    "reverse_diffusion, langevin": by_steps(reverse_diffusion, langevin),
    "ancestral_sampling": by_steps(ancestral_sampling),
    "ald alone": by_steps(None, ald, steps=400, snr=0.35, corrector_steps=6),
}
SELDOM = {(kernel, name) for kernel in ("vp", "subvp", "ve") for name in SAMPLERS}
SLOW = (
    "reverse_diffusion, langevin", "euler, noisy", "euler_maruyama, noisy",
    "euler_maruyama, flow", "ald alone",
)  # fmt: skip
PAIRS = [
    pytest.param(name, kernel, marks=long if name in SLOW or (kernel, name) in SELDOM else [])
    for kernel, (sde, _) in SAMPLED.items()
    for name in SAMPLERS
    if name != "ancestral_sampling" or sde.chain
]


@pytest.mark.parametrize(("name", "kernel"), PAIRS)
def test_samples_have_the_mean_and_the_deviation_of_the_data(name, kernel):
    """20,000 of N(5, 0.1^2). Not brought to its scale, they would have a mean that is off by
    ``shift``. (First order steps are off by up to half of it.)"""
    model = model_of(kernel, 200, table=SAMPLED)
    x = model.sample(100, KEY, sampler=SAMPLERS[name]).astype(np.float64)
    alpha = float(model.sde.alpha(model.eps))
    size, shift = float(model.sde.sigma(model.eps)) / alpha, max(MEAN * (1 - alpha), 0.2)
    noisy = np.hypot(STD, size)
    exact = name.split(",")[0] in ("ode", "ddim", "dpm")
    assert abs(x.mean() - MEAN) < (0.1 if exact else 0.5) * shift
    least, most = 0.9 * STD**2 / noisy, 1.1 * noisy  # without the last noise, and with it
    if exact:
        size = STD**2 / noisy if "denoised" in name else noisy
        least, most = 0.95 * size, 1.05 * size
    assert least < x.std() < most


@pytest.mark.parametrize(
    ("sampler", "end"),
    [
        (SAMPLERS["ode"], 0.01),
        (SAMPLERS["ode, denoised"], None),
        (partial(SAMPLERS["ode, denoised"], denoised=False), 0.01),
        (SAMPLERS["euler"], 0.01),
        (SAMPLERS["euler_maruyama"], 0.005),
        (by_steps(euler_maruyama, steps=50), 0.0),
        (SAMPLERS["euler_maruyama, flow"], 0.01),
        (SAMPLERS["ald alone"], 0.01),
        (lambda noise, sde, key, shape, *, eps: None, 0.01),
    ],
)
def test_each_sampler_states_where_it_ends(sampler, end):
    assert end_of(sampler, 0.01) == (end if end is None else pytest.approx(end))


def test_what_is_filled_in_has_the_scale_of_what_is_known():
    model = model_of("straight", table=SAMPLED)
    x, known = jnp.full((500, 2), MEAN + STD), np.asarray([True, False])
    method = PredictorCorrector(400)
    found = jax.jit(
        lambda x: inpaint(model.noise, model.sde, KEY, x, known, eps=model.eps, method=method)
    )(x)
    np.testing.assert_array_equal(found[:, 0], x[:, 0])
    assert abs(found[:, 1].mean() - MEAN) < 0.03 and 0.08 < found[:, 1].std() < 0.12


def test_a_pilot_takes_data_in_the_scale_of_the_model(monkeypatch):
    taken, model = [], model_of("vp", bijector=Affine(1.0, 2.0))

    class Called(Exception):
        pass

    def choose(noise, sde, z, **_):
        taken.append(z)
        raise Called

    monkeypatch.setattr(scoremle.model, "choose_within", choose)
    with pytest.raises(Called):
        model.within(0.1, data(model))
    alpha = float(model.sde.alpha(jnp.asarray([model.eps]))[0])
    np.testing.assert_allclose(taken[0], alpha * (data(model) - 1) / 2, rtol=1e-6)
