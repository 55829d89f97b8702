"""Divergences: exact ones are traces, Hutchinson's are unbiased with the known variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoremle.core.divergence import Exact, FixedProbe, Hierarchical, Hutchinson, Orthogonal

RNG = np.random.default_rng(0)
A = RNG.normal(size=(4, 4)).astype(np.float32)
X = RNG.normal(size=(3, 4)).astype(np.float32)


def field(x):
    """tanh(x A) + x^2, with an easy Jacobian; works on any data shape of 4 numbers."""
    flat = x.reshape(len(x), -1)
    return (jnp.tanh(flat @ A) + flat**2).reshape(x.shape)


def jacobians(x):
    flat = x.reshape(len(x), -1)
    d = 1 - np.tanh(flat @ A) ** 2
    return d[:, :, None] * A.T + 2 * np.eye(4) * flat[:, None, :]


def divergence(estimator, x):
    @jax.jit
    def run(x, key):
        value, estimates, _ = estimator(field, x, estimator.draw(key, x))
        return value, field(x), estimates, estimator.deviations(estimates)

    value, expected, estimates, deviations = run(x, jax.random.key(0))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert estimates.shape[1:] == (len(x),)
    return np.asarray(estimates), np.sqrt(np.square(deviations).sum(0))


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 2, 1)])
def test_exact_is_the_trace(shape):
    x = X.reshape(shape)
    estimates, stderr = divergence(Exact(), x)
    trace = np.trace(jacobians(x), axis1=1, axis2=2)
    np.testing.assert_allclose(estimates.mean(0), trace, rtol=1e-5)
    np.testing.assert_array_equal(stderr, 0)


@pytest.mark.parametrize(("dims", "block"), [*((5, b) for b in range(1, 7)), (65, 64)])
def test_exact_is_the_trace_by_blocks_that_need_not_divide(dims, block):
    x, matrix = RNG.normal(size=(2, dims)), RNG.normal(size=(dims, dims))
    x, exact = jnp.asarray(x, jnp.float32), Exact(block)
    run = jax.jit(lambda x, key: exact(lambda x: jnp.sin(x @ matrix), x, exact.draw(key, x)))
    value, trace, _ = run(x, jax.random.key(0))
    np.testing.assert_allclose(value, np.sin(x @ matrix), atol=1e-4)
    expected = np.einsum("bi,ii->b", np.cos(x @ matrix), matrix)
    np.testing.assert_allclose(trace, expected[None], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 2, 1)])
def test_hutchinson_is_unbiased_with_the_known_variance(distribution, shape):
    x, n = X.reshape(shape), 4000
    estimates, stderr = divergence(Hutchinson(n, distribution=distribution), x)
    estimates = np.asarray(estimates, np.float64)
    assert estimates.shape == (n, 3)
    J = jacobians(x)
    S = (J + J.transpose(0, 2, 1)) / 2
    if distribution == "rademacher":  # the diagonal costs nothing
        S = S * (1 - np.eye(4))
    variance = 2 * (S**2).sum((1, 2))
    error = estimates.mean(0) - np.trace(J, axis1=1, axis2=2)
    assert (np.abs(error) < 4 * np.sqrt(variance / n)).all()
    np.testing.assert_allclose(estimates.var(0), variance, rtol=0.25)
    np.testing.assert_allclose(stderr, estimates.std(0, ddof=1) / np.sqrt(n), rtol=1e-3)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_probes_are_the_stated_distribution_and_differ_between_examples(distribution):
    draw = Hutchinson(50, distribution=distribution).draw(jax.random.key(1), jnp.zeros((4, 3)))
    assert draw.shape == (50, 4, 3)
    if distribution == "rademacher":
        np.testing.assert_array_equal(np.abs(draw), 1)
    else:
        assert np.std(draw) == pytest.approx(1, abs=0.15)
    assert np.abs(np.asarray(draw).mean()) < 0.2
    flat = np.asarray(draw).transpose(1, 0, 2).reshape(4, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(4)).max() < 0.4


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 2, 1)])
def test_as_many_orthogonal_probes_as_dimensions_give_the_trace(shape):
    estimates, stderr = divergence(Orthogonal(4), X.reshape(shape))
    trace = np.trace(jacobians(X), axis1=1, axis2=2)
    np.testing.assert_allclose(estimates.mean(0), trace, rtol=1e-4)
    np.testing.assert_allclose(stderr, 0, atol=1e-6)


def test_orthogonal_probes_are_unbiased_and_their_error_honest():
    x = np.repeat(X[:1], 4000, axis=0)
    estimates, stderr = divergence(Orthogonal(2), x)
    means = np.asarray(estimates, np.float64).mean(0)
    trace = np.trace(jacobians(X[:1])[0])
    spread = means.std()
    assert abs(means.mean() - trace) < 4 * spread / np.sqrt(len(x))
    assert np.sqrt(np.mean(np.square(stderr))) == pytest.approx(spread, rel=0.05)
    draw = Orthogonal(2).draw(jax.random.key(0), jnp.zeros((3, 4)))
    products = np.einsum("ibd,jbd->bij", draw, draw)
    np.testing.assert_allclose(products, np.tile(4 * np.eye(2), (3, 1, 1)), atol=1e-5)


def test_more_orthogonal_probes_than_dimensions_are_refused():
    with pytest.raises(ValueError, match="orthogonal probes"):
        Orthogonal(5).draw(jax.random.key(0), jnp.zeros((1, 4)))


@pytest.mark.parametrize("shape", [(4,), (2, 2, 1), (3, 1, 5), (5, 3, 3)])
def test_hierarchical_probes_of_as_many_steps_as_places_give_the_trace(shape):
    """The Jacobian is constant: over every so many steps of one parity no product is left."""
    dims, keys = int(np.prod(shape)), jax.random.split(jax.random.key(2), 3)
    steps = 1 << int(np.sum([(size - 1).bit_length() for size in shape]))
    matrix, x = RNG.normal(size=(dims, dims)), jnp.zeros((3, *shape))
    probes = [Hierarchical().draw_at(keys, 2 * n + 1, x) for n in range(steps)]
    v = np.reshape(probes, (steps, 3, dims)).astype(np.float64)
    np.testing.assert_array_equal(np.abs(v), 1)
    found = np.einsum("nbi,ij,nbj->b", v, matrix, v) / steps
    np.testing.assert_allclose(found, np.trace(matrix), rtol=1e-9)
    assert np.ptp(np.einsum("bi,ij,bj->b", v[0], matrix, v[0])) > 0.1  # one step does not


def test_hierarchical_probes_differ_between_neighbours_first():
    x, keys = jnp.zeros((1, 4, 6, 1)), jax.random.split(jax.random.key(0), 1)
    first, other, second = (Hierarchical().draw_at(keys, n, x)[0, 0, :, :, 0] for n in (0, 1, 2))
    rows, columns = np.indices((4, 6))
    np.testing.assert_array_equal(first * second, (-1.0) ** (rows + columns))
    assert 0 < np.sum(first == other) < 24


def test_fixed_probe_is_a_quadratic_form():
    v = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    estimates, _ = divergence(FixedProbe(jnp.asarray(v)), X)
    expected = np.einsum("kbi,bij,kbj->kb", v, jacobians(X), v)
    np.testing.assert_allclose(estimates, expected, rtol=1e-4, atol=1e-5)


def test_one_probe_gives_no_error():
    assert np.isnan(divergence(Hutchinson(1), X)[1]).all()
    two = Hutchinson(2).deviations(jnp.asarray([[1.0, 2.0], [3.0, 2.0]]))
    np.testing.assert_allclose(two, [[-np.sqrt(0.5), 0], [np.sqrt(0.5), 0]])


@pytest.mark.parametrize("dims", [5, 40])
@pytest.mark.parametrize(
    "estimator",
    [
        Hutchinson(),
        Hutchinson(3),
        Hutchinson(distribution="gaussian"),
        Orthogonal(1),
        pytest.param(Orthogonal(4), marks=pytest.mark.long),
        Orthogonal(5),
        Hierarchical(),
    ],
    ids=repr,
)
def test_variances_of_the_parts_add_up_to_that_of_the_estimate(estimator, dims):
    """The Jacobian is symmetric with a large diagonal, so that it has a trace."""
    rng, n = np.random.default_rng(dims), 20_000
    matrix = rng.normal(size=(dims, dims)) + 4 * np.diag(rng.uniform(0, 2, dims))
    matrix = np.asarray(matrix + matrix.T, np.float32)

    @jax.jit
    def run(key):
        x = jnp.zeros((n, dims))
        _, estimates, parts = estimator(lambda x: x @ matrix, x, estimator.draw(key, x))
        return estimates.mean(0), parts.mean(0), parts

    means, of_parts, parts = (np.asarray(a, np.float64) for a in run(jax.random.key(1)))
    of_parts = of_parts.var(axis=0).sum()
    np.testing.assert_allclose(of_parts, means.var(), rtol=0.05, atol=1e-6)
    if len(parts) > 1:
        spread = parts.var(axis=0, ddof=1).sum(axis=-1).mean()
        np.testing.assert_allclose(spread / len(parts), means.var(), rtol=0.05, atol=1e-6)


def test_estimates_that_are_not_random_have_no_parts():
    for estimator in (Exact(), Exact(3), FixedProbe(jnp.ones((2, 3, 4)))):
        *_, parts = jax.eval_shape(
            lambda x, key, estimator=estimator: estimator(field, x, estimator.draw(key, x)),
            jnp.asarray(X), jax.random.key(0),
        )  # fmt: skip
        assert parts.shape[2] == 0
