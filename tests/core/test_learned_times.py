"""Times learned from the loss: what is learned, unbiasedness whatever was, and less variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoremle.core.learned_times import EVEN, LossMoments
from scoremle.core.schedules import LinearLogSNR
from scoremle.core.sde import SDE, VP
from scoremle.core.times import BINS, UniformLogSNR

LOG_SNR = SDE("vp", LinearLogSNR(-5.0, 13.3), 1.0)
SDES = {"linear": (LOG_SNR, 0.0), "vp": (VP(), 1e-3)}


def integrand(lam):
    """A loss over the log-SNR that falls by e^6 over its range."""
    return jnp.exp(-lam / 3)


def losses(sde, t, density, noise=0.0):
    return integrand(sde.log_snr(t)) * (1 + noise) * sde.likelihood_weight(t) / density


@pytest.mark.parametrize("name", SDES)
def test_shares_follow_the_root_of_the_second_moment(name):
    """Learned by noisy losses, from draws whose density changes on the way."""
    sde, eps = SDES[name]

    @jax.jit
    def learned(key):
        def step(memory, key):
            key_t, key_z = jax.random.split(key)
            t, density = memory.times(sde, eps, True)(key_t, 64)
            noise = 2 * jax.random.normal(key_z, (64,))
            return memory.updated(sde, eps, losses(sde, t, density, noise), t, density), None

        return jax.lax.scan(step, LossMoments.none(), jax.random.split(key, 2000))[0]

    found = np.asarray(learned(jax.random.key(0)).shares)
    low, high = sde.log_snr(jnp.asarray([1.0, eps]))
    middles = np.linspace(low, high, 2 * BINS + 1)[1::2]
    roots = np.asarray(integrand(middles))
    expected = EVEN / BINS + (1 - EVEN) * roots / roots.sum()
    np.testing.assert_allclose(found, expected, rtol=0.15)
    assert found.sum() == pytest.approx(1, abs=1e-5)


def test_before_the_first_step_all_bins_are_alike_and_an_unmet_one_is_the_mean():
    np.testing.assert_allclose(LossMoments.none().shares, 1 / BINS, rtol=1e-6)
    squares = np.zeros(BINS)
    squares[:2] = 4.0, 36.0
    memory = LossMoments(jnp.asarray(squares), jnp.asarray(1.0 * (squares > 0)))
    shares = (np.asarray(memory.shares) - EVEN / BINS) / (1 - EVEN)
    np.testing.assert_allclose(shares[:3] / shares[0], [1, 3, 2], rtol=1e-5)


def test_the_loss_stays_unbiased_and_varies_less():
    """A z-test of the integral, by shares that suit the integrand and by some that do not."""
    exact = 3 * (np.exp(5 / 3) - np.exp(-13.3 / 3))
    grid = np.linspace(-5, 13.3, 2 * BINS + 1)[1::2]

    def measured(times):
        t, density = times(jax.random.key(1), 20_000)
        values = np.asarray(losses(LOG_SNR, t, density), np.float64)
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - exact) < 4 * error
        return error

    def learned(squares):
        memory = LossMoments(jnp.asarray(squares), jnp.ones(BINS))
        return memory.times(LOG_SNR, 0.0, False)

    uniform = measured(UniformLogSNR(LOG_SNR, 0.0))
    assert measured(learned(np.exp(-2 * grid / 3))) < uniform / 3
    measured(learned(np.exp(2 * grid / 3)))
