"""Samplers: the flow run back inverts the likelihood's; samples have the right moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import EPS, SDES, Gaussian, Mixture, schedule64
from scipy import stats

from scoremle.divergence import Exact
from scoremle.likelihood import ode_log_likelihood
from scoremle.ode import Adaptive
from scoremle.sample import euler_sample, ode_sample

every_sde = pytest.mark.parametrize("name", SDES)
DATA = Gaussian.random(20, 2)


@every_sde
def test_flow_from_the_prior_is_the_exact_map(name, x64):
    sde, eps = SDES[name], EPS[name]
    solver = Adaptive(rtol=1e-9, atol=1e-9)
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

    def draw(seed):
        key = jax.random.key(seed)
        return euler_sample(data.noise(sde), sde, key, (3, 2, 2, 2), eps=1e-3, steps=20)

    a, b, c = draw(0), draw(0), draw(1)
    assert a.shape == (3, 2, 2, 2) and jnp.isfinite(a).all()
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.1
