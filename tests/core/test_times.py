"""Times are drawn from the density that is stated with them; strata hold one draw each."""

import jax
import numpy as np
import pytest
from helpers.marks import some
from helpers.oracles import EPS, SDES, drift_and_diffusion64, log_snr64, schedule64
from scipy import stats

from scoremle.core.schedules import LinearLogSNR
from scoremle.core.sde import SDE
from scoremle.core.times import (
    BINS,
    AlphaSquared,
    BinnedLogSNR,
    UniformLogSNR,
    UniformTime,
    unit_draws,
)
from scoremle.errors import UserError

every_sde = some("name", SDES, quick=["vp", "ve_linear"])
either = pytest.mark.parametrize("stratified", [False, True])
KINDS = ("time", "log_snr", "binned", "alpha2")
# A density over the bins that rises fourfold, with a fall in the middle.
SHARES = np.linspace(1, 4, BINS) * (1 + np.arange(BINS) % 3)
SHARES = SHARES / SHARES.sum()


def sampler(kind, name, eps, *stratified):
    if kind == "time":
        return UniformTime(eps, *stratified)
    if kind == "binned":
        return BinnedLogSNR(SDES[name], eps, SHARES, *stratified)
    of_log_snr = AlphaSquared if kind == "alpha2" else UniformLogSNR
    return of_log_snr(SDES[name], eps, *stratified)


def signal_behind(sde, eps, t):
    """The integral of alpha^2 over the log-SNR from eps to t, by a fine grid in float64."""
    grid = np.exp(np.linspace(np.log(eps), 0, 200_001))
    alpha2, lam = schedule64(sde, grid)[0] ** 2, log_snr64(sde, grid)
    steps = (alpha2[1:] + alpha2[:-1]) / 2 * -np.diff(lam)
    return np.interp(t, grid, np.concatenate([[0], np.cumsum(steps)]))


def distribution(kind, name, eps, t):
    """The distribution function and the density of the sampler, in float64."""
    t = np.asarray(t, np.float64)
    if kind == "time":
        return (t - eps) / (1 - eps), np.full_like(t, 1 / (1 - eps))
    sde = SDES[name]
    span = log_snr64(sde, eps) - log_snr64(sde, 1.0)
    rate = drift_and_diffusion64(sde, t)[1] / schedule64(sde, t)[1] ** 2
    if kind == "alpha2":
        share = signal_behind(sde, eps, t) / (whole := signal_behind(sde, eps, 1.0))
        return share, schedule64(sde, t)[0] ** 2 * rate / whole
    if kind == "binned":
        # From the end that the sampler starts at: the lowest log-SNR.
        place = (log_snr64(sde, t) - log_snr64(sde, 1.0)) / span
        knots = np.concatenate([[0], np.cumsum(SHARES)])
        cdf = 1 - np.interp(place, np.linspace(0, 1, BINS + 1), knots)
        bins = np.clip((place * BINS).astype(int), 0, BINS - 1)
        return cdf, SHARES[bins] * BINS * rate / span
    return (log_snr64(sde, eps) - log_snr64(sde, t)) / span, rate / span


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_no_strata_by_default(kind):
    asked = ((), (False,), (True,))
    samplers = [sampler(kind, "vp", EPS["vp"], *each) for each in asked]
    run = jax.jit(lambda key: [draw(key, 8)[0] for draw in samplers])
    usual, without, strata = run(jax.random.key(3))
    np.testing.assert_array_equal(usual, without)
    assert (usual != strata).any()


@every_sde
@either
@pytest.mark.parametrize("kind", KINDS)
def test_draws_follow_the_stated_density(name, stratified, kind):
    eps = EPS[name]
    t, p = sampler(kind, name, eps, stratified)(jax.random.key(3), 2000)
    assert t.shape == p.shape == (2000,)
    assert t.min() >= np.float32(eps) and t.max() <= 1
    cdf, density = distribution(kind, name, eps, t)
    np.testing.assert_allclose(p, density, rtol=2e-5)
    assert stats.kstest(cdf, "uniform").pvalue > 0.01


@every_sde
@pytest.mark.parametrize("kind", KINDS)
def test_density_integrates_to_one(name, kind):
    eps = EPS[name]
    grid = np.exp(np.linspace(np.log(eps), 0, 20001))
    cdf, density = distribution(kind, name, eps, grid)
    # The steps of the binned density fall between the points of the grid.
    precision = 1e-3 if kind == "binned" else 1e-4
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=precision)
    assert (cdf[0], cdf[-1]) == pytest.approx((0, 1), abs=1e-9)


@every_sde
@pytest.mark.parametrize("kind", KINDS)
def test_strata_hold_one_draw_each(name, kind):
    n, eps = 32, EPS[name]
    draw = jax.jit(lambda key: sampler(kind, name, eps, True)(key, n)[0])
    for seed in range(5):
        cdf, _ = distribution(kind, name, eps, draw(jax.random.key(seed)))
        np.testing.assert_allclose(np.diff(np.sort(cdf)), 1 / n, rtol=1e-3)  # one offset for all


@pytest.mark.parametrize("kind", KINDS)
def test_each_stratified_draw_alone_keeps_the_distribution(kind):
    keys = jax.random.split(jax.random.key(5), 1000)
    t = jax.jit(jax.vmap(lambda key: sampler(kind, "vp", 1e-3, True)(key, 8)[0]))(keys)
    cdf, _ = distribution(kind, "vp", 1e-3, t)
    for i in (0, 3, 7):
        assert stats.kstest(cdf[:, i], "uniform").pvalue > 0.005


@every_sde
@either
@pytest.mark.parametrize("kind", KINDS[:3])  # 1 / alpha^2 has no variance where alpha vanishes
def test_weighted_mean_is_the_integral(name, stratified, kind):
    """E[h(t) / p(t)] = int h dt, with h(t) = t."""
    eps, repeats = EPS[name], 500
    keys = jax.random.split(jax.random.key(7), repeats)
    t, p = jax.jit(jax.vmap(lambda key: sampler(kind, name, eps, stratified)(key, 8)))(keys)
    means = np.asarray(t / p, np.float64).mean(axis=1)
    error = means.mean() - (1 - eps**2) / 2
    assert abs(error) < 4 * means.std() / np.sqrt(repeats) + 1e-5


def test_shares_are_one_for_each_bin():
    for other in (BINS // 2, 2 * BINS):
        with pytest.raises(UserError, match="24 numbers"):
            BinnedLogSNR(SDES["vp"], 1e-3, np.full(other, 1 / other))


def test_shares_of_nearly_sum_one_are_normalised():
    samplers = [
        BinnedLogSNR(SDES["vp"], 1e-3, factor * SHARES, stratified=True) for factor in (1, 1.0009)
    ]
    exact, off = jax.jit(lambda key: [draw(key, 99) for draw in samplers])(jax.random.key(3))
    np.testing.assert_allclose(off, exact, rtol=2e-5)


@pytest.mark.parametrize("kind", ["time", "log_snr"])
def test_strata_lower_the_variance(kind):
    keys = jax.random.split(jax.random.key(9), 300)

    def spread(stratified):
        draw = sampler(kind, "vp", 1e-3, stratified)
        t, p = jax.jit(jax.vmap(lambda key: draw(key, 16)))(keys)
        return np.asarray(t / p).mean(axis=1).std()

    assert spread(True) < spread(False) / 3


@pytest.mark.parametrize("path", ["VP", "SP"])
@pytest.mark.parametrize("bits", [32, 64])
def test_golden_times_of_density_alpha_squared(path, bits, golden):
    """The authors' inverse and constant, from t = 0, where the log-SNR is finite."""
    arrays = golden("idode")
    kernel, digits = ("vp" if path == "VP" else "straight"), (2e-5 if bits == 32 else 1e-9)
    with jax.enable_x64(bits == 64):
        sde = SDE(kernel, LinearLogSNR(-5.0, 13.3), 1.0)
        u = np.asarray(arrays[f"{path}/is_u"], f"float{bits}")

        @jax.jit
        def run(u, key):
            times = AlphaSquared(sde, 0.0)
            t, density = times(key, 9)
            return times.log_snr(u), sde.likelihood_weight(t) * sde.alpha(t) ** 2 / density

        found, constant = run(u, jax.random.key(0))
        np.testing.assert_allclose(-found, arrays[f"{path}/is_gamma"], atol=13.3 * digits)
        np.testing.assert_allclose(constant, arrays[f"{path}/is_Z"], rtol=digits)


@pytest.mark.parametrize("n", [4, 7])
@pytest.mark.parametrize("j", range(3))
def test_golden_strata(n, j, golden, monkeypatch):
    """One uniform number for the batch, as the authors of VDM draw them."""
    arrays = golden("vdm_loss")
    u0 = arrays[f"schedules/times/{n}/{j}/u0"]
    monkeypatch.setattr(jax.random, "uniform", lambda key: u0)
    found = np.sort(unit_draws(jax.random.key(0), n, stratified=True))
    np.testing.assert_allclose(found, np.sort(arrays[f"schedules/times/{n}/{j}/t"]), atol=1e-6)


@pytest.mark.parametrize("name", ["vp", "ve_linear"])
def test_of_all_draws_of_t_the_mean_of_what_falls_as_1_over_t_is_its_integral(name, monkeypatch):
    """A mean over the numbers that JAX draws: with their left ends it is too high by 0.006."""
    sde, eps, total = SDES[name], 1e-5, 0.0

    @jax.jit
    def integrands(cells):
        monkeypatch.setattr(jax.random, "uniform", lambda key, shape: cells)
        t, density = UniformTime(eps)(jax.random.key(0), len(cells))
        return sde.likelihood_weight(t) / density

    for cells in np.split(np.arange(2**23, dtype=np.float32) / 2**23, 16):
        total += np.sum(np.asarray(integrands(cells), np.float64))
    integral = log_snr64(sde, eps) - log_snr64(sde, 1.0)
    assert total / 2**23 == pytest.approx(integral, abs=1e-3)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("n", range(1, 8))
def test_no_draw_is_0_or_1(bits, n, monkeypatch):
    """Nor where a stratum ends at 1, up to rounding."""
    with jax.enable_x64(bits == 64):
        eps = np.finfo(f"float{bits}").eps
        for k in range(n + 1):
            near = np.asarray(np.arange(-3, 4) * eps + k / n, f"float{bits}")
            for u in near[(near >= 0) & (near < 1)]:
                monkeypatch.setattr(jax.random, "uniform", lambda key, *shape, u=u: u)
                found = unit_draws(jax.random.key(0), n, stratified=True)
                assert found.dtype == near.dtype and found.min() > 0 and found.max() < 1
                assert 0 < unit_draws(jax.random.key(0), n, stratified=False) < 1


EVEN = np.full(BINS, 1 / BINS)


@pytest.mark.parametrize(
    ("shares", "fine"),
    [
        (EVEN, True), (EVEN * 1.0009, True), (EVEN * 1.0011, False), (EVEN * 0.9991, True),
        (EVEN * 0.9989, False), (EVEN[:-1], False), (np.append(EVEN, 0), False),
        (EVEN + np.append(-EVEN[:1], np.append(EVEN[:1], np.zeros(BINS - 2))), False),
    ],
)  # fmt: skip
def test_shares_are_above_zero_and_their_sum_is_one(shares, fine):
    if fine:
        assert repr(BinnedLogSNR(SDES["vp"], 1e-3, shares)) == "BinnedLogSNR(24 bins)"
        return
    with pytest.raises(UserError, match="shares must"):
        BinnedLogSNR(SDES["vp"], 1e-3, shares)
