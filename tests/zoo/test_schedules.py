"""The schedules of diffusers, in the digits that its schedulers have."""

import jax.numpy as jnp
import numpy as np
import pytest

from scoremle.zoo import diffusers

SCHEDULERS = (
    {}, {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"}, {"beta_schedule": "sigmoid"},
    {"rescale_betas_zero_snr": True},
    {"trained_betas": np.linspace(1e-4, 0.02, 300).tolist(), "num_train_timesteps": 300},
)  # fmt: skip
FIELDS = {"trained_betas": None, "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000,
          "beta_start": 1e-4, "beta_end": 0.02, "rescale_betas_zero_snr": False}  # fmt: skip


def test_betas_are_numbers_of_float32():
    """At the end 1 - beta is 0.001, of which float32 changes the fifth digit."""
    signal = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    exact = np.minimum(1 - signal[1:] / signal[:-1], 0.999)

    def log_snr(betas):
        log_signal = np.log1p(-betas.astype(np.float64)).sum()
        return log_signal - np.log(-np.expm1(log_signal))

    found = float(diffusers.schedule_of(diffusers.Scheduler(**FIELDS)).log_snr(jnp.float32(1)))
    assert found == pytest.approx(log_snr(exact.astype(np.float32)), abs=4e-6)
    assert found != pytest.approx(log_snr(exact), abs=8e-6)


@pytest.mark.parametrize("fields", SCHEDULERS)
def test_the_log_snr_is_that_of_the_scheduler_s_own_table(fields):
    """In float64 the products of 1 - beta are others: by 1e-4 in log-SNR at the first step."""
    theirs = pytest.importorskip("diffusers").DDPMScheduler(**fields).alphas_cumprod.numpy()
    signal = np.maximum(theirs.astype(np.float64), 1e-300)
    expected = np.maximum(np.log(signal) - np.log1p(-signal), diffusers.LEAST_LOG_SNR)
    found = diffusers.schedule_of(diffusers.Scheduler(**fields)).log_snrs
    # Rescaled betas are found by roots and quotients of float32.
    atol = 3e-4 if "rescale_betas_zero_snr" in fields else 2e-6
    np.testing.assert_allclose(found, expected, atol=atol)
