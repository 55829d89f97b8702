"""Schedules whose course is learned by the variance of the loss, where the least is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.oracles import Gaussian

from scoremle.core.learned_schedules import first_schedule, learned_schedule
from scoremle.core.prediction import NetworkNoise
from scoremle.core.schedules import LinearLogSNR
from scoremle.core.sde import SDE
from scoremle.core.times import UniformTime
from scoremle.likelihood.by_loss import ByVDMLoss

# -lambda from -6 to 5, of data N(0, VARIANCE I).
ENDS, VARIANCE, DIMS = (-6.0, 5.0), 0.25, 8
STEPS = 1200
BY_LOSS = ByVDMLoss(UniformTime(0.0, True), 1.0, "likelihood", False)


def shrunk(x, log_snr):
    """The exact noise prediction by the log-SNR: sigma x / (alpha^2 v + sigma^2)."""
    alpha2, sigma2 = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)
    return (jnp.sqrt(sigma2) / (alpha2 * VARIANCE + sigma2))[:, None] * x


def losses(params, x, key):
    sde = SDE("vp", learned_schedule(params), 1.0)
    noise = NetworkNoise(jax.tree_util.Partial(shrunk), sde, "eps", "log_snr", 0.5)
    return BY_LOSS._denoising(noise, sde, x, key)[0]


@jax.jit
def log_snr(params, t):
    return learned_schedule(params).log_snr(t)


def mean_square(params, points=4001):
    """E[L^2] by the trapezoidal rule: 1/4 int (gamma' w)^2 (D^2 + 2 D), w = v / (v + e^gamma)."""
    t = np.linspace(0, 1, points)
    gamma = -np.asarray(log_snr(params, t), np.float64)
    slope = np.gradient(gamma, t)
    return np.trapezoid(np.square(slope * VARIANCE / (VARIANCE + np.exp(gamma))), t) * SCALE


SCALE = (DIMS**2 + 2 * DIMS) / 4
# Where gamma' w is the same at all t: the square of int w d gamma.
LEAST = SCALE * np.square(ENDS[1] - ENDS[0] - np.log1p(np.exp(ENDS[1]) / VARIANCE)
                          + np.log1p(np.exp(ENDS[0]) / VARIANCE))  # fmt: skip


def parameters(dtype=jnp.float32, units=32):
    """As at first, with fewer hidden units."""
    first = jax.jit(first_schedule, static_argnums=0)
    params = first("least_variance", -ENDS[1], -ENDS[0], jax.random.key(0))
    params = jax.tree.map(np.asarray, params)
    few = {
        "l2": {name: each[..., :units] for name, each in params["l2"].items()},
        "l3": {"kernel": params["l3"]["kernel"][:units]},
    }
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), params | few)


def test_the_gradient_is_that_of_the_mean_square(x64):
    """By the course: of many draws, against differences of the integral."""
    params, n = parameters(jnp.float64), 40_000
    params["l2"]["kernel"] = np.linspace(0.5, 4, 32)[None]
    params["l3"]["kernel"] = np.linspace(-5, 40, 32)[:, None]

    def mean(params):
        x = jnp.sqrt(VARIANCE) * jax.random.normal(jax.random.key(1), (n, DIMS))
        return jnp.mean(losses(params, x, jax.random.key(2)))

    found = jax.jit(jax.grad(mean))(params)
    for name, kind in (("l1", "kernel"), ("l2", "bias"), ("l3", "kernel")):
        ends = (
            mean_square(params | {name: params[name] | {kind: params[name][kind] + s}})
            for s in (1e-3, -1e-3)
        )
        difference = np.subtract(*ends) / 2e-3
        assert np.sum(found[name][kind]) == pytest.approx(difference, rel=0.05), name
    # The bound depends on the ends alone: their gradient is that of int w d gamma D / 2.
    weights = VARIANCE / (VARIANCE + np.exp(np.array(ENDS))) * DIMS / 2
    np.testing.assert_allclose(found["ends"]["bias"], weights * [-1, 1], rtol=0.05, atol=0.02)


@pytest.mark.long
def test_the_learned_course_has_nearly_the_least_variance():
    """Within 5 % of the least, from nearly twice as much; the ends stay where they are held."""
    params = parameters()
    optimizer = optax.adam(optax.cosine_decay_schedule(0.2, STEPS))

    def step(carry, key):
        params, state = carry
        key_x, key_loss = jax.random.split(key)
        x = jnp.sqrt(VARIANCE) * jax.random.normal(key_x, (128, DIMS))
        grads = jax.grad(lambda p: jnp.mean(losses(p, x, key_loss)))(params)
        grads["ends"] = jax.tree.map(jnp.zeros_like, grads["ends"])
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda p, keys: jax.lax.scan(step, (p, optimizer.init(p)), keys)[0][0])
    learned = run(params, jax.random.split(jax.random.key(3), STEPS))
    first, last = mean_square(params), mean_square(learned)
    assert first > 1.8 * LEAST and LEAST < last < 1.05 * LEAST, (first / LEAST, last / LEAST)
    found = -learned_schedule(learned).log_snr(jnp.asarray([0.0, 1.0]))
    np.testing.assert_allclose(found, ENDS, atol=1e-5)


def test_data_and_prediction_are_those_of_the_formula():
    """The shrunken noise is the exact prediction of this Gaussian."""
    sde, x = SDE("vp", LinearLogSNR(-ENDS[1], -ENDS[0]), 1.0), jnp.ones((3, DIMS))
    t = jnp.asarray([0.1, 0.5, 0.9])
    exact = jax.jit(Gaussian.of([0.0] * DIMS, [VARIANCE] * DIMS).noise(sde))(x, t)
    found = jax.jit(lambda x, t: shrunk(x, sde.log_snr(t)))(x, t)
    np.testing.assert_allclose(found, exact, rtol=1e-4)
