"""The importance-weighted bound: its value, its errors, and how optimistic noise makes it."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoremle.core.keys import split
from scoremle.errors import UserError
from scoremle.likelihood.importance import importance_bound, jackknife
from scoremle.likelihood.ode import Likelihood

KEY = jax.random.key(0)
IMAGES, PROBES, SPREAD = 4000, 4, 0.7


def found(log_prob, deviations, error=0.0):
    """A likelihood of these values, whose probes deviate by so much."""
    stderr = jnp.sqrt(jnp.sum(deviations**2, axis=0))
    zero = jnp.zeros_like(log_prob)
    return Likelihood(
        log_prob=log_prob, latent=zero, evaluations=jnp.full(log_prob.shape, 7),
        probe_stderr=stderr, probe_deviations=deviations, solver_error=zero + error,
        ok=jnp.isfinite(log_prob),
    )  # fmt: skip


def noisy(key, shared):
    """The mean over probes of independent noise, of which a part is the same for all draws."""
    own = jax.random.normal(key, (PROBES, IMAGES)) * (1 - shared)
    common = jax.random.normal(jax.random.key(9), (PROBES, IMAGES)) * shared
    return own + common


@functools.partial(jax.jit, static_argnums=0)
def run(samples, scale, shared, top):
    def draw(key):
        key_w, key_n = jax.random.split(key)
        log_weight = top + SPREAD * jax.random.normal(key_w, (IMAGES,))
        noise = scale * noisy(key_n, shared)
        mean = noise.mean(axis=0)
        deviations = (noise - mean) / np.sqrt(PROBES * (PROBES - 1))
        error = jnp.square(log_weight - top)
        return found(log_weight + mean + 1.0, deviations, error), jnp.ones(IMAGES)

    return importance_bound(draw, KEY, samples)


def weighted(samples, noise_scale=0.0, shared=0.0, top=0.0):
    """The bound of IMAGES images whose log-weights are normal with the standard deviation SPREAD,
    and of the same weights without noise."""
    return [
        jax.tree.map(np.asarray, run(samples, scale, shared, top)) for scale in (noise_scale, 0.0)
    ]


def test_it_is_the_logarithm_of_the_mean_weight():
    keys = jax.random.split(KEY, 8)
    weights = np.asarray(jax.jit(jax.vmap(
        lambda key: SPREAD * jax.random.normal(jax.random.split(key)[0], (IMAGES,))
    ))(keys))  # fmt: skip
    _, bound = weighted(8)
    expected = np.log(np.mean(np.exp(np.array(weights, np.float64)), axis=0))
    np.testing.assert_allclose(bound.log_prob, expected, atol=1e-5)
    shares = np.exp(np.array(weights)) / np.exp(np.array(weights)).sum(axis=0)
    np.testing.assert_allclose(bound.effective_draws, 1 / (shares**2).sum(axis=0), rtol=1e-5)
    error = (shares * np.square(weights)).sum(axis=0)  # of draws of unlike errors and shares
    np.testing.assert_allclose(bound.solver_error, error, rtol=1e-4)
    assert (bound.evaluations == 56).all()


@pytest.mark.parametrize("top", [-5000.0, 5000.0])
def test_weights_beyond_the_range_of_floats(top):
    difference = weighted(8, top=top)[1].log_prob - weighted(8)[1].log_prob
    np.testing.assert_allclose(difference, top, atol=2e-3)


@pytest.mark.long
def test_it_grows_with_the_draws_and_states_its_spread():
    """Of weights exp(s N): log E w = s^2/2, and each bound lies below it."""
    bounds = {k: weighted(k)[1] for k in (1, 8, 64)}
    means = [b.log_prob.mean() for b in bounds.values()]
    error = bounds[64].log_prob.std() / np.sqrt(IMAGES)
    assert means[0] + 0.1 < means[1] < means[2] - 0.02
    gap = (np.exp(SPREAD**2) - 1) / (2 * 64)  # to first order in 1/K
    assert means[2] == pytest.approx(SPREAD**2 / 2 - gap, abs=4 * error + 1e-3)
    stated = np.sqrt(np.mean(bounds[64].draw_stderr ** 2))
    assert 0.9 < stated / bounds[64].log_prob.std() < 1.1
    assert np.isnan(bounds[1].draw_stderr).all()


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_the_spread_is_stated_where_few_draws_carry_the_mean(spread):
    def draw(key):
        log_weight = spread * jax.random.normal(key, (IMAGES,))
        return found(log_weight, jnp.zeros((1, IMAGES))), jnp.zeros(IMAGES)

    bound = jax.jit(lambda key: importance_bound(draw, key, 10))(KEY)
    stated = np.sqrt(np.mean(np.square(bound.draw_stderr)))
    assert stated == pytest.approx(float(np.std(bound.log_prob)), rel=0.15)


@pytest.mark.parametrize(("samples", "shared"), [(1, 0.0), (8, 0.0), (8, 0.7), (8, 1.0)])
def test_the_optimism_of_noisy_traces_is_what_is_stated(samples, shared):
    bound, clean = weighted(samples, noise_scale=0.6, shared=shared)
    raised = bound.log_prob - clean.log_prob
    error = raised.std() / np.sqrt(IMAGES)
    assert abs(raised.mean() - bound.probe_bias.mean()) < 4 * error + 2e-3
    assert np.sqrt(np.mean(bound.probe_stderr**2)) == pytest.approx(raised.std(), rel=0.1)
    if samples == 8 and shared == 0:  # the test can see it, and it is about v (1 - 1/K) / 2
        assert bound.probe_bias.mean() > 5 * error
        variance = 0.6**2 / PROBES
        assert 0.6 < bound.probe_bias.mean() / (variance * (1 - 1 / 8) / 2) < 1
    else:
        independent = weighted(8, noise_scale=0.6)[0].probe_bias.mean()
        assert bound.probe_bias.mean() < 0.3 * independent


def test_an_exact_trace_is_not_optimistic_and_a_single_probe_gives_no_bias():
    @jax.jit
    def bound(deviation):
        def draw(key):
            return found(jax.random.normal(key, (3,)), jnp.full((1, 3), deviation)), jnp.zeros(3)

        return importance_bound(draw, KEY, 4)

    exact, single = bound(0.0), bound(jnp.nan)
    assert (exact.probe_bias == 0).all() and (exact.probe_stderr == 0).all()
    assert np.isnan(single.probe_bias).all() and np.isnan(single.probe_stderr).all()
    np.testing.assert_array_equal(single.log_prob, exact.log_prob)


def test_what_the_scatter_along_the_steps_says_is_no_optimism():
    """A constant Jacobian: all draws of an image have the same noise, whatever it seems to be."""

    def draw(key):
        likelihood = found(jax.random.normal(key, (3,)), jnp.full((2, 3), 0.4))
        return replace(likelihood, probe_stderr=jnp.full(3, 9.0)), jnp.zeros(3)

    bound = jax.jit(lambda key: importance_bound(draw, key, 4))(KEY)
    np.testing.assert_allclose(bound.probe_bias, 0, atol=1e-6)


def test_memory_does_not_grow_with_the_draws():
    images, dims = 10, 10_000

    def size(samples):
        def draw(key):
            x = jax.random.normal(key, (images, dims))
            return found(jnp.sum(jnp.sin(x), axis=1), jnp.zeros((2, images))), jnp.zeros(images)

        run = jax.jit(lambda key: importance_bound(draw, key, samples))
        return run.lower(KEY).compile().memory_analysis().temp_size_in_bytes

    # A few numbers of each draw are kept, no images.
    assert size(1000) < size(10) + 1000 * images * 64


def test_the_error_of_the_draws_is_a_jackknifes():
    """Three draws, each left out in turn: what is left varies less than draws by (k - 1)."""
    log_weights = jnp.asarray([[0.0, 1.0], [0.5, -2.0], [1.5, 0.3]])
    keys = jax.random.key_data(split(KEY, 3))

    def draw(key):
        this = jnp.argmax(jnp.all(keys == jax.random.key_data(key), axis=-1))
        return found(log_weights[this], jnp.zeros((1, 2))), jnp.zeros(2)

    stated = jax.jit(lambda key: importance_bound(draw, key, 3).draw_stderr)(KEY)
    left = np.stack([np.log(np.mean(np.exp(np.delete(log_weights, i, 0)), 0)) for i in range(3)])
    expected = np.sqrt(2 / 3 * np.sum((left - left.mean(0)) ** 2, 0))
    np.testing.assert_allclose(stated, expected, rtol=1e-5)


def test_the_error_of_the_draws_is_none_of_rounding():
    """In float32, where all log-weights are large and their differences are small."""
    small = np.random.default_rng(0).normal(size=(1000, 2)) * 0.1
    large = np.float32(-8000 + small)
    error = jax.jit(jackknife)
    np.testing.assert_allclose(error(large), error(large + 8000), rtol=1e-4)


def of_each_dimension(keys):
    return found(jnp.zeros(2), jnp.zeros((1, 2))), jnp.zeros((2, 5))


@pytest.mark.parametrize("draw", [3, lambda keys: 3, lambda keys: (3, 4), of_each_dimension])
def test_a_draw_that_gives_no_likelihood_is_refused(draw, unchecked):
    with pytest.raises(UserError, match="draw"):
        importance_bound(draw, jax.random.key(0), samples=2)
