"""Bits/dim of images: what is counted, and in which unit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoremle import VP, Exact, Hutchinson, Multistep, Orthogonal, Pixels, ScoreModel
from scoremle.core.dequantize import Uniform
from scoremle.core.keys import example_keys, split
from scoremle.likelihood.images import ByBound, ByOde, OdeDifference

PIXELS, SHAPE = Pixels(17), (2, 2, 1)
X = np.arange(12, dtype=np.uint8).reshape(3, *SHAPE)
KEYS = example_keys(jax.random.key(0), 3)
BITS = 4 * np.log(2)
LOG_Q = 2.5


def noise(x, t):
    return jnp.tanh(x + jnp.roll(x, 1, axis=1)) * (0.5 + t[:, None, None, None])


MODEL = ScoreModel(noise, VP(), 1e-3, SHAPE, PIXELS)


class Costly(Uniform):
    """Uniform noise that says its density is e^LOG_Q."""

    def __call__(self, key, x):
        return super().__call__(key, x)[0], jnp.full(len(x), LOG_Q)


@pytest.mark.parametrize("estimator", [ByOde(), ByOde(samples=3), ByBound(8)])
def test_the_dequantization_is_counted(estimator):
    plain, costly = (estimator(MODEL, how, X, KEYS)["bpd"] for how in (Uniform(), Costly()))
    np.testing.assert_allclose(costly - plain, LOG_Q / BITS, rtol=1e-4)


def test_nats_become_bits_and_errors_too():
    divergence, solver = Hutchinson(2, "gaussian"), Multistep(12)
    found = ByOde(divergence, solver)(MODEL, Uniform(), X, KEYS)
    key_u, key_probe = split(KEYS)
    y = PIXELS.encode(X, Uniform()(key_u, X)[0])
    nats = MODEL.log_prob(y, key_probe, divergence=divergence, solver=solver)
    np.testing.assert_allclose(found["bpd"], np.log2(17 / 2) - nats.log_prob / BITS, rtol=1e-5)
    np.testing.assert_allclose(found["probe_stderr"], nats.probe_stderr / BITS, rtol=1e-4)
    np.testing.assert_allclose(found["solver_error"], nats.solver_error / BITS, rtol=1e-3)
    np.testing.assert_array_equal(found["nfe"], nats.evaluations)


@pytest.mark.parametrize("divergence", [Exact(), Hutchinson(), Orthogonal(2)])
def test_a_difference_of_nodes_is_what_they_change_with_the_same_noise(divergence):
    x, keys = np.repeat(X[:1], 400, axis=0), example_keys(jax.random.key(1), 400)

    def run(estimator):
        return np.asarray(jax.jit(lambda x: estimator(MODEL, Uniform(), x, keys)["bpd"])(x))

    found = run(OdeDifference(ByOde(divergence), 8, 24))
    exact, fresh = (run(ByOde(d, Multistep(24))) - run(ByOde(d, Multistep(8)))
                    for d in (Exact(), Hutchinson()))  # fmt: skip
    if divergence == Exact():
        np.testing.assert_array_equal(found, exact)
        both = OdeDifference(ByOde(divergence), 8, 24, halved=True)(MODEL, Uniform(), X, KEYS)
        half = OdeDifference(ByOde(divergence), 12, 24)(MODEL, Uniform(), X, KEYS)["bpd"]
        np.testing.assert_allclose(both["halving"], half, atol=1e-6)
    gap = found - exact
    assert abs(gap.mean()) < 4 * gap.std() / 20 + 1e-7
    assert found.std() < 0.5 * fresh.std()


def test_the_terms_of_the_bound_add_up():
    estimator = ByBound(8)
    found = estimator(MODEL, Costly(), X, KEYS)
    terms = ("dequantization", "prior", "diffusion", "reconstruction")
    total = sum(found[term] for term in terms) + np.log2(17 / 2)
    np.testing.assert_allclose(found["bpd"], total, rtol=1e-5)
    np.testing.assert_allclose(found["profile"].sum(axis=1), found["diffusion"], rtol=1e-5)
    np.testing.assert_allclose(found["dequantization"], LOG_Q / BITS, rtol=1e-6)
    key_u, key_bound = split(KEYS)
    y = PIXELS.encode(X, Uniform()(key_u, X)[0])
    nats = MODEL.bound(y, key_bound, draws=8)
    np.testing.assert_allclose(found["draw_stderr"], nats.stderr / BITS, rtol=1e-4)
