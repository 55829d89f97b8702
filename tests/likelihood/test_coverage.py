"""Do the intervals cover? By the benchmark's own measurement, with few repeats.

A share that lies between 90 and 99 % is well. Of so few repeats it may lie beyond by chance: the
limits are those that a share of 90 %, or of 99 %, passes once in a thousand times.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.oracles import EPS, SDES, Gaussian, RoughGaussian
from helpers.places import ROOT
from scipy.stats import binom

from scoremle.core.divergence import Exact, Hutchinson
from scoremle.likelihood.ode import ode_log_likelihood
from scoremle.likelihood.pilot import PILOT_IMAGES

sys.path.append(str(ROOT / "benchmarks"))
import coverage

CHANCE = 1e-3
HALF_OF_NORMAL = 0.6745


def limits(n):
    """Of the number of intervals that cover, among ``n`` independent ones."""
    return binom.ppf(CHANCE, n, 0.90), binom.ppf(1 - CHANCE, n, 0.99)


def calibrated(pilots):
    """The least share that is covered, and the most that is stated over the true in the median,
    of normal errors and so many pilots: an error is stated as 2.306 times the root mean square of
    a pilot's, which is known to 8 degrees of freedom alone. Of very many pilots they are 95 % and
    3.3."""
    rng = np.random.default_rng(0)
    widths = 2.306 * np.sqrt(rng.chisquare(PILOT_IMAGES, (4000, pilots)) / PILOT_IMAGES)
    normal = np.sort(np.abs(rng.normal(size=100_000)))
    shares = np.searchsorted(normal, widths) / len(normal)
    ratios = widths.mean(axis=1) / HALF_OF_NORMAL
    return np.quantile(shares.mean(axis=1), CHANCE), np.quantile(ratios, 1 - CHANCE)


def test_limits_by_hand():
    share, ratio = calibrated(200)
    assert 0.93 < share < 0.95 and 3.3 < ratio < 3.6
    assert limits(20) == (13, 20)
    assert binom.cdf(12, 20, 0.9) < CHANCE < binom.cdf(13, 20, 0.9)


def check_stated(found):
    least, most = calibrated(len(found))
    assert np.mean([o["solver"].mean() for o in found]) >= least
    ratio = np.median(np.concatenate([o["stated / true"] for o in found]))
    assert ratio <= most, ratio


def test_the_rough_oracle_is_the_integral_it_says():
    """Without roughness it is the Gaussian's closed form; with, what very many steps give."""
    sde, eps, base = SDES["vp"], EPS["vp"], Gaussian.random(4, 6)
    x = 0.5 * np.random.default_rng(0).normal(size=(5, 6))
    smooth = RoughGaussian(np.zeros(6), base.w, base.V, 0.0)
    plain = Gaussian(np.zeros(6), base.w, base.V)
    np.testing.assert_allclose(
        smooth.log_model(sde, x, eps), plain.log_model(sde, x, eps), rtol=1e-9
    )
    subject = coverage.rough(6)
    y = jnp.asarray(x, jnp.float32)
    found = subject.bpd(y, 0, Exact(), 480)
    np.testing.assert_allclose(found, subject.known(subject, y, 0), atol=3e-3)
    assert np.abs(subject.bpd(y, 0, Exact(), 24) - found).max() > 5e-3


@pytest.mark.long
def test_intervals_cover_on_a_rough_field():
    """Of means, of the set's and of all data; of single images; and of the solver of an image."""
    subject, pilots, sets = coverage.rough(), 3, 10
    found = [
        coverage.of_pilot(subject, pilot, repeats=sets, images=96, sets=sets)[1]
        for pilot in range(pilots)
    ]
    for name in ("mean", "of set"):
        low, high = limits(pilots * sets)
        assert low <= sum(o[name].sum() for o in found) <= high, name
    images = np.mean([o["image"].mean() for o in found])
    low, high = limits(96 * pilots * sets)
    assert low <= images * 96 * pilots * sets <= high, images
    check_stated(found)


@pytest.mark.slow
@pytest.mark.long
def test_the_stated_error_of_a_network_covers_and_is_no_wider_than_need_be():
    """The digits network that ships with the package, beside its own values at ten times the steps
    with the same probes. Eight pilots: the error of one is known to a third."""
    subject = coverage.digits()
    x = subject.draw(50, 32)
    check_stated([coverage.of_solver(subject, subject.choose(pilot), x) for pilot in range(8)])


@pytest.mark.slow
@pytest.mark.long
def test_the_error_that_the_default_call_states_covers_and_is_no_wider_than_need_be():
    """The digits network that ships with the package, with one held probe. All its images meet the
    network's roughness at about the same steps, so that at 32 alone their errors may be small or
    large by luck: hence the steps about it."""
    subject, x = coverage.network(coverage.SHIPPED, ROOT, 32)
    found = coverage.of_default(subject, x, probes=1)
    default = ode_log_likelihood(
        subject.noise, subject.sde, x, jax.random.key(0), eps=subject.eps, divergence=Hutchinson()
    )
    bits = x[0].size * np.log(2)
    np.testing.assert_allclose(
        default.solver_error / bits, found.stated[coverage.DEFAULT], rtol=1e-2, atol=1e-6
    )
    assert found.covered(coverage.DEFAULT) >= 0.9 and found.covered(*coverage.NODES) >= 0.9
    assert found.width(*coverage.NODES) <= 4
