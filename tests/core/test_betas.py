"""Betas by name, against diffusers' own schedulers; the log-SNR that belongs to them."""

import numpy as np
import pytest

from scoremle.core.betas import NAMES, betas, with_no_signal_at_the_end
from scoremle.core.schedules import Discrete


@pytest.mark.parametrize("name", [*NAMES, "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_log_snr_is_that_of_diffusers(name, zero_snr):
    diffusers = pytest.importorskip("diffusers")
    theirs = {"cosine": "squaredcos_cap_v2"}.get(name, name)
    scheduler = diffusers.DDPMScheduler(
        200, 1e-4, 0.02, beta_schedule=theirs, rescale_betas_zero_snr=zero_snr
    )
    ours = betas(name, 200, 1e-4, 0.02).astype(np.float32)
    if zero_snr:
        ours = with_no_signal_at_the_end(ours)
        assert ours[-1] == 1
    signal = scheduler.alphas_cumprod.numpy().astype(np.float64)
    with np.errstate(divide="ignore"):
        expected = np.maximum(np.log(signal) - np.log1p(-signal), -20)
    error = np.abs(Discrete.of_betas(ours, log_snr_min=-20).log_snrs - expected)
    # Rescaled betas are roundings of roundings, and PyTorch's square root has its own.
    roundings = zero_snr * 2.0**-24 * (16 / (1 - signal) + 100)
    assert (error < 2e-6 + roundings).all(), error.max()


def test_the_defaults_are_ddpms_for_a_thousand_steps():
    np.testing.assert_allclose(betas("linear")[[0, -1]], [1e-4, 0.02])
    assert Discrete.of_betas(betas("linear")).log_snrs[0] == pytest.approx(9.21, abs=0.01)


def test_another_name_is_an_error():
    with pytest.raises(ValueError, match="scaled_linear"):
        betas("quadratic")
