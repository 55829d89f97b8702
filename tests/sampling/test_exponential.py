"""The exponential integrators converge to the exact flow, at their orders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from helpers.oracles import EPS, SDES, Gaussian, Mixture, prior_std, schedule64

from scoremle.sampling.exponential import ddim_sample, dpm_solver_sample

every_sde = some("name", SDES, quick=["vp", "ve_linear"])
every_sampler = pytest.mark.parametrize(
    ("sample", "order"), [(ddim_sample, 1), (dpm_solver_sample, 2)]
)
GAUSSIAN, MIXTURE = Gaussian.random(20, 2), Mixture.on_line()
STEPS = (40, 80, 160)


def orders(errors):
    return np.log2(np.divide(errors[:-1], errors[1:]))


def by_steps(sample, noise, sde, z, eps):
    """The samples by each number of steps."""
    run = jax.jit(lambda z: [sample(noise, sde, z, eps=eps, steps=n) for n in STEPS])
    return np.asarray(run(z))


@every_sampler
@every_sde
def test_order_on_a_gaussian(name, sample, order, x64):
    sde, eps = SDES[name], EPS[name]
    x = GAUSSIAN.draw(1, 30)
    z = jnp.asarray(GAUSSIAN.flow(sde, x, eps)[0])
    found = by_steps(sample, GAUSSIAN.noise(sde), sde, z, eps)
    errors = np.sqrt(np.mean((found - x) ** 2, axis=(1, 2)))
    np.testing.assert_allclose(orders(errors), order, atol=0.2)
    assert errors[-1] < (2e-2 if order == 1 else 3e-4)


@every_sampler
@every_sde
def test_order_on_a_mixture(name, sample, order, x64):
    """A field that is not linear: between three components on the line."""
    sde, eps = SDES[name], EPS[name]
    alpha, sigma = schedule64(sde, eps)
    x = alpha * MIXTURE.draw(2, 15) + sigma * np.random.default_rng(3).normal(size=(15, 1))
    z = jnp.asarray(MIXTURE.flow(sde, x, eps))
    found = by_steps(sample, MIXTURE.noise(sde), sde, z, eps)
    errors = np.median(np.abs(found - x), axis=(1, 2))
    np.testing.assert_allclose(orders(errors), order, atol=0.6)
    assert errors[-1] < (1e-2 if order == 1 else 3e-4)


@every_sampler
@every_sde
def test_in_float32_from_the_prior(name, sample, order):
    """The moments of the exact push-forward of the prior, also at few steps and for images."""
    sde, eps, n = SDES[name], EPS[name], 4000

    @jax.jit
    def run(key):
        z = sde.prior_sample(key, (n, 1, 2, 1))
        return z, sample(GAUSSIAN.noise(sde), sde, z, eps=eps, steps=200)

    z, x = run(jax.random.key(1))
    assert x.shape == z.shape and x.dtype == jnp.float32
    back, _ = GAUSSIAN.flow(sde, np.asarray(x, np.float64).reshape(n, 2), eps)
    scale = 4e-2 if order == 1 else 2e-3
    error = np.abs(back - np.asarray(z).reshape(n, 2)) / prior_std(sde)
    assert np.quantile(error, 0.9) < scale


@every_sampler
def test_one_step_is_a_step_of_ddim(sample, order):
    """To the mean given the noise, for any order: x = (sigma'/sigma) z + alpha' (1 - e^-h) x_0."""
    sde, eps = SDES["vp"], 1e-3
    z = jnp.asarray(np.random.default_rng(4).normal(size=(5, 2)), jnp.float32)
    x = jax.jit(lambda z: sample(GAUSSIAN.noise(sde), sde, z, eps=eps, steps=1))(z)
    (a1, s1), (a0, s0) = schedule64(sde, 1.0), schedule64(sde, eps)
    noise = jax.jit(GAUSSIAN.noise(sde))(z, jnp.ones(5))
    expected = (a0 / a1) * z + (s0 - a0 * s1 / a1) * noise
    np.testing.assert_allclose(x, expected, rtol=1e-3, atol=1e-4)


@every_sampler
def test_a_step_is_an_evaluation(sample, order):
    calls, sde = [], SDES["ve"]

    def noise(x, t):
        jax.debug.callback(calls.append, t)  # when it is evaluated, not when it is compiled
        return GAUSSIAN.noise(sde)(x, t)

    jax.jit(lambda z: sample(noise, sde, z, eps=1e-3, steps=5))(jnp.zeros((2, 2)))
    jax.effects_barrier()
    assert len(calls) == 5
