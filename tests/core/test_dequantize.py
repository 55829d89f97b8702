"""Dequantizers: densities on the bin, and bounds on probabilities of integers that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.flows import tiny
from helpers.marks import some
from helpers.oracles import EPS, SDES, Gaussian, Mixture, schedule64
from scipy.stats import norm

from scoremle.core.dequantize import Flow, TruncatedNormal, Uniform, half_bin, truncation_start
from scoremle.core.divergence import Exact
from scoremle.core.keys import example_keys
from scoremle.core.pixels import Pixels
from scoremle.likelihood.importance import importance_bound
from scoremle.likelihood.ode import ode_log_likelihood
from scoremle.solvers.multistep import Multistep

KEY = jax.random.key(0)
VP = SDES["vp"]
PIXELS = Pixels(8, low=-1.5, high=1.5)
START = truncation_start(VP, EPS["vp"], PIXELS)


# --- each is a density on the bin -------------------------------------------------------------


DEQUANTIZERS = {
    "uniform": Uniform(),
    "truncated normal": TruncatedNormal(VP, START, PIXELS),
    "much truncated": TruncatedNormal(VP, 10 * START, PIXELS),
}


@pytest.mark.parametrize("name", DEQUANTIZERS)
def test_u_lies_inside_and_q_is_its_density(name):
    """E[1 / q] over a part of the bin is the volume of that part."""
    n = 40_000
    x = jnp.tile(jnp.asarray([3, 5]).reshape(1, 1, 2, 1), (n, 1, 1, 1))
    u, log_q = (np.asarray(a, np.float64) for a in DEQUANTIZERS[name](KEY, x))
    assert u.shape == x.shape and log_q.shape == (n,)
    assert u.min() >= 0 and u.max() < 1
    for part, volume in (
        (np.full(n, True), 1.0), (u[:, 0, 0, 0] < 0.4, 0.4), (u[:, 0, 1, 0] > 0.7, 0.3),
    ):  # fmt: skip
        values = np.exp(-log_q) * part
        assert abs(values.mean() - volume) < 4 * values.std() / np.sqrt(n) + 1e-6


def test_a_flow_draws_from_its_density():
    """The density over the square of two pixels, by its inverse, against its draws."""
    flow, variables, *_ = tiny("cifar10", (1, 1, 2, 1))
    variables = jax.tree.map(lambda p: p.astype(np.float32), variables)
    dequantizer = Flow(lambda params, e, x: flow.apply(params, e, x), variables, levels=8)
    side = 60
    x = jnp.tile(jnp.asarray([3, 5]).reshape(1, 1, 2, 1), (side**2, 1, 1, 1))
    middle = (np.arange(side) + 0.5) / side
    grid = np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 1, 2, 1).astype(np.float32)

    @jax.jit
    def run(x, grid):
        u, log_q = dequantizer(KEY, x)
        _, at_u = flow.apply(variables, u, x / 7, inverse=True)
        return u, log_q, at_u, flow.apply(variables, grid, x / 7, inverse=True)[1]

    u, log_q, at_u, on_grid = (np.asarray(a, np.float64) for a in run(x, grid))
    np.testing.assert_allclose(at_u, log_q, atol=0.02)
    density = np.exp(on_grid) / side**2
    assert density.sum() == pytest.approx(1, abs=0.02)
    for axis in (0, 1):
        for edge in (0.2, 0.5, 0.8):
            share = density[grid[:, 0, axis, 0] < edge].sum()
            assert np.mean(u[:, 0, axis, 0] < edge) == pytest.approx(share, abs=0.03)


# --- the truncated normal ---------------------------------------------------------------------


def test_truncated_normal_has_the_published_constants():
    """i-DODE's: at a log-SNR of 13.3, 256 levels on [-1, 1]."""
    t, pixels = float(VP.time_of_log_snr(jnp.float32(13.3))), Pixels()
    alpha, sigma = schedule64(VP, t)
    tau = float(half_bin(VP.log_snr(t), pixels))
    assert tau == pytest.approx(alpha / (256 * sigma), rel=1e-5)
    assert tau == pytest.approx(3.02, abs=2e-3)
    x = jnp.zeros((50_000, 1), int)
    u, log_q = TruncatedNormal(VP, t, pixels)(KEY, x)
    # The entropy of z = alpha y: that of u, and the logarithm of dz/du.
    entropy = (-np.mean(log_q) + pixels.log_det_per_dim + np.log(alpha)) / np.log(2)
    assert entropy == pytest.approx(-7.569, abs=0.01)
    assert np.std(u) == pytest.approx(norm.std() / (2 * tau), rel=0.03)


@pytest.mark.parametrize(("name", "pixels"), [("vp", Pixels()), ("subvp", Pixels(17))])
def test_it_begins_where_half_a_bin_is_three_standard_deviations(name, pixels):
    sde = SDES[name]
    start = truncation_start(sde, 1e-7, pixels)
    assert float(half_bin(sde.log_snr(start), pixels)) == pytest.approx(3.0, rel=1e-4)
    assert truncation_start(sde, 0.2, pixels) == 0.2
    _, log_q = TruncatedNormal(sde, start, pixels)(KEY, jnp.zeros((50_000, 1), int))
    assert np.mean(log_q) / np.log(2) == pytest.approx(0.561, abs=0.01)  # as docs/math.md says


def test_it_begins_at_eps_where_the_noise_is_wider_from_the_start():
    assert truncation_start(SDES["ve"], EPS["ve"], Pixels()) == EPS["ve"]


# --- probabilities that are known -------------------------------------------------------------


def edges(x):
    """Lower edges of bins, and their width."""
    width = (PIXELS.high - PIXELS.low) / PIXELS.levels
    return PIXELS.low + width * x, width


def probability_on_line(data, x, t):
    """P(k) of the model with the exact noise: the prior's mass between the ends of the flow.
    With t, of z / alpha at that time."""
    low, width = edges(x)
    alpha = 1.0 if t is None else schedule64(VP, t)[0]
    ends = [data.flow(VP, alpha * y, t or EPS["vp"]) for y in (low, low + width)]
    return norm.cdf(ends[1])[:, 0] - norm.cdf(ends[0])[:, 0]


def probability_in_plane(data, x, t):
    """The same by quadrature of the model's density over the square."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    low, width = edges(x)
    alpha = 1.0 if t is None else schedule64(VP, t)[0]
    a, b = np.meshgrid((nodes + 1) / 2, (nodes + 1) / 2)
    y = low[:, None] + width * np.stack([a.ravel(), b.ravel()], axis=1)
    log_p = data.log_model(VP, alpha * y.reshape(-1, 2), t or EPS["vp"]).reshape(len(x), -1)
    share = np.outer(weights, weights).ravel() / 4
    return (np.exp(log_p) * (alpha * width) ** 2) @ share


CASES = {
    "line": (Mixture.of([0.4, 0.6], [[-0.4], [0.5]], [0.12, 0.3]), [[2], [4], [6]],
             probability_on_line),
    "plane": (Gaussian.of([0.1, -0.2], [[0.15, 0.08], [0.08, 0.12]]), [[4, 3], [3, 3]],
              probability_in_plane),
}  # fmt: skip


@some("samples", [1, 64], quick=[64])
@pytest.mark.parametrize("name", ["uniform", "truncated normal"])
@some("case", CASES, quick=["plane"])
def test_bounds_lie_above_and_converge(case, name, samples):
    """-log P(x) of the model, which the ODE with the exact noise defines, from above."""
    data, levels, probability = CASES[case]
    x, copies = np.array(levels), 4000 if samples == 1 else 100
    dequantizer = DEQUANTIZERS[name]
    t = dequantizer.start
    truth = -np.log(probability(data, x, t))
    many = jnp.asarray(np.repeat(x, copies, axis=0))
    noise, log_alpha = data.noise(VP), 0.0 if t is None else float(VP.log_alpha(jnp.float32(t)))

    def draw(key):
        u, log_q = dequantizer(key, many)
        y = PIXELS.encode(many, u)
        found = ode_log_likelihood(
            noise, VP, jnp.exp(log_alpha) * y, KEY, eps=t or EPS["vp"], divergence=Exact(),
            solver=Multistep(24),
        )  # fmt: skip
        volume = x.shape[1] * (log_alpha + PIXELS.log_det_per_dim)
        return found, log_q - volume

    bound = jax.jit(lambda key: importance_bound(draw, key, samples))(example_keys(KEY, len(many)))
    values = -np.asarray(bound.log_prob, np.float64).reshape(len(x), copies)
    gap, error = values.mean(axis=1) - truth, values.std(axis=1) / np.sqrt(copies)
    assert (gap > -4 * error - 2e-3).all()
    if samples == 1:
        assert (gap > 2 * error).all() and gap.max() > 0.05  # which more draws close
        return
    # To second order the gap that is left is half the variance of the bound.
    assert (np.abs(gap - values.var(axis=1) / 2) < 4 * error + 5e-3).all()
    stated = np.sqrt(np.mean(np.square(bound.draw_stderr).reshape(len(x), copies), axis=1))
    np.testing.assert_allclose(stated, values.std(axis=1), rtol=0.35)


def test_noise_at_the_edge_of_a_bin_stays_in_it(monkeypatch):
    """The largest e below kappa rounds to u = 1, which is the next level."""

    def largest(key, low, high, shape):
        return jnp.full(shape, jnp.nextafter(high, low))

    monkeypatch.setattr(jax.random, "truncated_normal", largest)
    x = np.zeros((1, 1, 1, 1), np.uint8)
    for levels in (2, 3, 8, 17):
        u, _ = TruncatedNormal(VP, 1e-3, Pixels(levels))(jax.random.key(0), x)
        assert 0.999 < float(u[0, 0, 0, 0]) < 1
