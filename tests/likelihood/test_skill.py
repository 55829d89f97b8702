"""Errors and skill of networks whose every number is known: Gaussian data, exact and none."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.oracles import SDES, Gaussian, schedule64
from jax.tree_util import Partial
from scipy import stats

from scoremle.core.prediction import PREDICTIONS
from scoremle.likelihood.skill import Errors, Node, certain, errors_of, without_one

TIMES = np.linspace(0.02, 0.95, 12)
SIGMA_DATA = 0.7


def measured(gaussian, sde, network, shape):
    """Errors of ``network(x, alpha)`` in 300 examples, beside the Gaussian of 4000."""
    alpha, sigma = (jnp.asarray(a, jnp.float32) for a in schedule64(sde, TIMES))
    data = jnp.asarray(gaussian.draw(0, 4300), jnp.float32).reshape(-1, *shape)
    nodes = Node(alpha, sigma, jnp.asarray(TIMES, jnp.float32), jnp.ones_like(alpha))
    return errors_of(Partial(network), data[:300], data[300:], nodes, SIGMA_DATA)


@pytest.mark.parametrize("name", ["vp", "ve"])
@pytest.mark.parametrize("shape", [(3, 2), (2, 2, 1)])
def test_the_gaussians_error_is_that_of_the_exact_noise(name, shape):
    """Points have a full covariance; images have one that no shift changes."""
    if len(shape) == 2:
        gaussian = Gaussian.random(1, 6)
    else:
        covariance = np.array([[4, 2, 1, 0.5], [2, 4, 0.5, 1], [1, 0.5, 4, 2], [0.5, 1, 2, 4]]) / 4
        gaussian = Gaussian.of(np.full(4, 0.3), covariance)
    sde = SDES[name]
    found = measured(gaussian, sde, gaussian.noise(sde), shape)["eps"]
    alpha, sigma = schedule64(sde, TIMES)
    signal = alpha[:, None] ** 2 * gaussian.w
    expected = (signal / (signal + sigma[:, None] ** 2)).mean(axis=1)
    for error in (found.own, found.gaussian):
        spread = error.std(axis=1) / np.sqrt(300)
        assert (np.abs(error.mean(axis=1) - expected) < 4 * spread + 0.01 * expected).all()
    assert found.skill.mean() == pytest.approx(1, abs=0.01) and not found.worse.any()


def test_no_output_has_no_skill_however_it_is_read():
    """Its error is that of zero: in units of each target, all is left."""
    gaussian = Gaussian.random(1, 5)
    found = measured(gaussian, SDES["vp"], lambda x, t: 0 * x, (5,))
    assert set(found) == {*PREDICTIONS, "edm"}
    for errors in found.values():
        np.testing.assert_array_equal(errors.own, errors.zero)
        assert (errors.skill == 0).all()
    alpha, sigma = (a[:, None] for a in schedule64(SDES["vp"], TIMES))
    square = np.mean(np.square(gaussian.draw(0, 300)), axis=1)
    x_0 = (alpha / sigma) ** 2 * square  # the target x_0, in units of the noise
    np.testing.assert_allclose(found["x_0"].zero, x_0, rtol=1e-2, atol=1e-4)


def test_where_all_is_zero_nothing_is_left_to_explain():
    """As of black images, whose x_0 is 0: their log-SNR has no part in the skill."""
    own, zero = np.full((3, 8), 0.25), np.ones((3, 8))
    zero[1] = 0
    assert Errors(own, zero, own).skill == pytest.approx(np.ones(8))
    assert (Errors(own, 0 * zero, own).skill == 0).all()


def test_what_is_no_number_is_worse_and_has_no_skill():
    def network(x, t):
        return jnp.where(t[:, None] > 0.5, jnp.nan, 0) * x

    found = measured(Gaussian.random(1, 5), SDES["vp"], network, (5,))["eps"]
    assert found.worse[TIMES > 0.5].all() and found.skill.mean() < 0


def test_certain_is_the_end_of_students_interval():
    x = np.random.default_rng(0).normal(size=(3, 7))
    mean, error = x.mean(axis=1), x.std(axis=1, ddof=1) / np.sqrt(7)
    expected = mean - stats.t.ppf(0.994, 6) * error
    np.testing.assert_allclose(certain(without_one(x)), expected)
