"""Samplers: the flow run back inverts the likelihood's; samples have the right moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden_networks import golden_noise
from helpers.marks import some
from helpers.oracles import EPS, SDES, Gaussian, Mixture, drift_and_diffusion64, schedule64
from scipy import stats

from scoremle.core.divergence import Exact
from scoremle.core.keys import example_keys, split
from scoremle.errors import UserError
from scoremle.likelihood.ode import ode_log_likelihood
from scoremle.sampling.ode import denoise, euler_sample, interpolate, ode_encode, ode_sample
from scoremle.solvers.doubling import Doubling
from scoremle.solvers.multistep import Multistep

every_sde = some("name", SDES, quick=["vp", "ve"])
DATA = Gaussian.random(20, 2)


@every_sde
def test_flow_from_the_prior_is_the_exact_map(name, x64):
    sde, eps = SDES[name], EPS[name]
    solver = Multistep(512)
    z = np.random.default_rng(0).normal(size=(5, 1, 2, 1)) * sde.prior_std
    run = jax.jit(lambda z: ode_sample(DATA.noise(sde), sde, z, eps=eps, solver=solver))
    x = run(jnp.asarray(z))
    assert x.shape == z.shape and x.dtype == jnp.float64
    back, _ = DATA.flow(sde, np.asarray(x).reshape(5, 2), eps)
    np.testing.assert_allclose(back, z.reshape(5, 2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_round_trip_and_distribution(name):
    """z -> x -> z with the default solver in float32, and x distributed as p_eps, on the line."""
    data, sde, eps = Mixture.on_line(), SDES[name], EPS[name]
    noise = data.noise(sde)
    z = sde.prior_sample(jax.random.key(2), (2000, 1))
    x = jax.jit(lambda z: ode_sample(noise, sde, z, eps=eps))(z)
    back = jax.jit(
        lambda x: (
            ode_log_likelihood(
                noise, sde, x, jax.random.key(0), eps=eps, divergence=Exact()
            ).latent
        )
    )(x)
    # Errors at the data's end grow with the stretch of the map: worst between the components.
    assert np.quantile(np.abs(back - z), 0.9) < 1e-2 * sde.prior_std
    assert np.median(np.abs(back - z)) < 1e-3 * sde.prior_std
    alpha, sigma = schedule64(sde, eps)
    widths = np.sqrt(alpha**2 * data.stds**2 + sigma**2)
    centres = alpha * data.means.T
    cdf = (data.weights * stats.norm.cdf((np.asarray(x, np.float64) - centres) / widths)).sum(1)
    assert stats.kstest(cdf, "uniform").statistic < 0.04


@every_sde
def test_euler_samples_have_the_moments(name):
    sde, n = SDES[name], 4000
    x = jax.jit(
        lambda key: euler_sample(DATA.noise(sde), sde, key, (n, 2), eps=EPS[name], steps=300)
    )(jax.random.key(3))
    assert x.shape == (n, 2) and x.dtype == jnp.float32
    x = np.asarray(x, np.float64)
    alpha, sigma = schedule64(sde, EPS[name])
    np.testing.assert_allclose(x.mean(0), alpha * DATA.mu, atol=0.08)
    expected = alpha**2 * DATA.covariance + sigma**2 * np.eye(2)
    np.testing.assert_allclose(np.cov(x.T), expected, atol=0.12 * expected.max())


def test_euler_samples_images_and_is_a_function_of_its_key():
    sde, data = SDES["vp"], Gaussian.random(21, 8)

    @jax.jit
    def draw(key):
        return euler_sample(data.noise(sde), sde, key, (3, 2, 2, 2), eps=1e-3, steps=20)

    a, b, c = (draw(jax.random.key(seed)) for seed in (0, 0, 1))
    assert a.shape == (3, 2, 2, 2) and jnp.isfinite(a).all()
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.1


def test_the_last_euler_step_adds_noise_only_where_none_is_taken_out(x64):
    """A single step: known from the draw of the prior, or that and the noise of the step."""
    sde, eps, n = SDES["vp"], 0.3, 5000

    @jax.jit
    def run(key):
        ends = [
            euler_sample(DATA.noise(sde), sde, key, (n, 2), eps=eps, steps=1, denoise=denoise)
            for denoise in (True, False)
        ]
        z = sde.prior_sample(split(example_keys(key, n))[0], (n, 2))
        return ends, z, DATA.noise(sde)(z, jnp.ones(n))

    ends, z, prediction = run(jax.random.key(1))
    f, g2 = drift_and_diffusion64(sde, 1.0)
    known = z - (f * z + g2 / schedule64(sde, 1.0)[1] * prediction) * (1 - eps)
    np.testing.assert_allclose(ends[0], known, rtol=1e-6)
    noise = (np.asarray(ends[1]) - known) / np.sqrt(g2 * (1 - eps))
    assert stats.kstest(noise.ravel(), "norm").statistic < 0.02


# The original's numbers


@some("name", ["vp", "subvp"], quick=["vp"])
def test_flow_of_a_network_is_the_originals(name, golden):
    numbers, sde = golden("samplers"), SDES[name]
    noise, eps = golden_noise("ddpmpp", sde), float(numbers[f"{name}/ode_t_eps"])
    run = jax.jit(lambda z: ode_sample(noise, sde, z, eps=eps, solver=Multistep(120)))
    x = (run(jnp.asarray(numbers["z"])) + 1) / 2
    for solver in ("f64_tol1e-10_dop853", "tol1e-8", "tol1e-5"):
        expected = numbers[f"{name}/ode_{solver}/x"]
        assert np.abs(x - expected).max() < 1e-3 * np.abs(expected).max()


# Latents


def test_doubling_takes_the_steps_that_samples_need():
    """They have no log p that would converge: of 32 steps they are off by 1e-3."""
    sde, noise = SDES["vp"], Mixture.in_plane().noise(SDES["vp"])
    z = jax.random.normal(jax.random.key(0), (8, 2))
    by = [
        jax.jit(lambda z, solver=solver: ode_sample(noise, sde, z, eps=1e-4, solver=solver))(z)
        for solver in (Multistep(32), Doubling(2e-5), Multistep(512))
    ]
    coarse, near = (np.abs(x - by[2]).max() for x in by[:2])
    assert near < min(1e-4, coarse / 3), (near, coarse)


@pytest.mark.long
def test_doubling_takes_as_many_steps_in_many_dimensions():
    """The tolerance of a state is of its root mean square."""
    sde = SDES["vp"]

    def noise(x, t):  # of N(0, 0.01 I)
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        return sigma * x / (0.01 * alpha**2 + sigma**2)

    z = jax.random.normal(jax.random.key(0), (3, 1))
    one, many = (
        ode_sample(noise, sde, jnp.tile(z, (1, dims)), eps=1e-4, solver=Doubling(1e-4))
        for dims in (1, 100)
    )
    np.testing.assert_allclose(many, jnp.tile(one, (1, 100)), rtol=1e-5, atol=1e-7)


@every_sde
def test_encoding_is_the_likelihoods_latent_and_is_undone(name, x64):
    sde, eps = SDES[name], EPS[name]
    noise, solver = DATA.noise(sde), Multistep(512)
    x = jnp.asarray(DATA.draw(4, 5))
    z = jax.jit(lambda x: ode_encode(noise, sde, x, eps=eps, solver=solver))(x)
    np.testing.assert_allclose(z, DATA.flow(sde, np.asarray(x), eps)[0], rtol=1e-6, atol=1e-6)
    back = jax.jit(lambda z: ode_sample(noise, sde, z, eps=eps, solver=solver))(z)
    np.testing.assert_allclose(back, x, rtol=1e-6, atol=1e-6)


between = jax.jit(interpolate)


def test_the_way_between_latents_is_an_arc():
    rng = np.random.default_rng(5)
    z0, z1 = rng.normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
    z1[2] -= 3 * z0[2]  # almost opposite
    weights = np.linspace(0, 1, 5, dtype=np.float32)
    path = between(z0, z1, weights)
    np.testing.assert_allclose(path[0], z0, atol=1e-6)
    np.testing.assert_allclose(path[-1], z1, atol=1e-6)
    # Of the same norm: even turns, at that norm.
    norm0, norm1 = (np.linalg.norm(z.reshape(3, -1), axis=1) for z in (z0, z1))
    z1 = z1 * (norm0 / norm1)[:, None, None, None]
    path = np.asarray(between(z0, z1, weights), np.float64).reshape(5, 3, -1)
    norms = np.linalg.norm(path, axis=2)
    np.testing.assert_allclose(norms, np.tile(norm0, (5, 1)), rtol=1e-5)
    turns = (path[1:] * path[:-1]).sum(2)
    np.testing.assert_allclose(turns, np.tile(turns[0], (4, 1)), rtol=1e-5)


def test_the_way_between_like_or_opposite_latents_is_straight():
    z = np.random.default_rng(6).normal(size=(2, 5)).astype(np.float32)
    near = z + np.float32(1e-5)
    np.testing.assert_allclose(between(z, z, jnp.asarray([0.3]))[0], z, rtol=1e-6)
    halfway = between(z, near, jnp.asarray([0.5]))[0]
    np.testing.assert_allclose(halfway, (z + near) / 2, atol=1e-6)
    np.testing.assert_allclose(between(z, 3 * z, jnp.asarray([0.5]))[0], 2 * z, rtol=1e-5)
    numbers = np.float32([[1.0], [-2.0]])
    way = between(numbers, -2 * numbers, jnp.asarray([0.25, 0.5]))
    np.testing.assert_allclose(way, numbers * np.array([0.25, -0.5])[:, None, None], rtol=1e-6)
    # The latent of the mean of Gaussian data is 0.
    for ends in ((0 * z, z), (z, 0 * z)):
        np.testing.assert_allclose(between(*ends, jnp.asarray([0.5]))[0], z / 2, rtol=1e-6)


@jax.jit
def slopes(z0, z1):
    return jax.grad(lambda *z: jnp.sum(interpolate(*z, jnp.asarray([0.25]))), (0, 1))(z0, z1)


@pytest.mark.parametrize("ends", [(1, 1), (0, 1), (1, 0), (0, 0), (1, -1), (1, 3)])
def test_a_straight_way_has_the_derivatives_of_a_line(ends):
    z = np.random.default_rng(6).normal(size=(2, 5)).astype(np.float32)
    found = slopes(ends[0] * z, ends[1] * z)
    np.testing.assert_allclose(found, np.full((2, 2, 5), [[[0.75]], [[0.25]]]), rtol=1e-6)


def test_whole_numbers_are_no_latents_and_no_samples(unchecked):
    """Their type is not that of times: these would be rounded."""
    x = np.ones((1, 2), int)
    for call in (
        lambda: denoise(DATA.noise(SDES["vp"]), SDES["vp"], x, eps=0.5),
        lambda: interpolate(x, x, jnp.asarray([0.5])),
    ):
        with pytest.raises(UserError, match="reals"):
            call()
    with pytest.raises(UserError, match="shape of z0"):
        interpolate(np.ones((1, 2)), np.ones((2, 2)), [0.5])


@every_sde
def test_without_the_noise_is_the_mean_of_the_data_given_the_sample(name, x64):
    """For Gaussian data: mu + alpha C (alpha^2 C + sigma^2)^-1 (x - alpha mu)."""
    sde, eps = SDES[name], 0.1
    x = jnp.asarray(DATA.draw(7, 6))
    alpha, sigma = schedule64(sde, eps)
    gain = alpha * DATA.covariance @ np.linalg.inv(
        alpha**2 * DATA.covariance + sigma**2 * np.eye(2)
    )
    expected = DATA.mu + (np.asarray(x) - alpha * DATA.mu) @ gain.T
    found = jax.jit(lambda x: denoise(DATA.noise(sde), sde, x, eps=eps))(x)
    np.testing.assert_allclose(found, expected, atol=1e-9)
