"""The losses of VDM and i-DODE: the authors' numbers, and their networks on the same draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.vdm_networks import golden_vdm

from scoremle.core import loss
from scoremle.core.pixels import Pixels
from scoremle.core.prediction import conditioned, noise_fn
from scoremle.core.schedules import LinearLogSNR
from scoremle.core.sde import SDE
from scoremle.core.times import AlphaSquared, UniformTime

KERNELS = {"VP": ("vp", "v"), "SP": ("straight", "unit_u")}


def drawn(arrays, monkeypatch):
    """The points of the images, with the authors' draws in place of random ones."""
    u0 = jnp.asarray(arrays["u0"])
    monkeypatch.setattr(jax.random, "uniform", lambda key: u0)
    monkeypatch.setattr(loss, "normal", lambda key, x: jnp.asarray(arrays["eps"]))
    return jnp.asarray(Pixels().points, jnp.float32)[arrays["images"].astype(int)]


@pytest.mark.parametrize("mode", ["velocity_is", "velocity_uniform", "eps_uniform"])
@pytest.mark.parametrize("path", KERNELS)
def test_golden_losses_of_velocities(path, mode, golden, monkeypatch):
    arrays, (kernel, prediction) = golden("idode"), KERNELS[path]
    x = drawn(arrays, monkeypatch)
    sde = SDE(kernel, LinearLogSNR(-5.0, 13.3), 1.0)
    density = AlphaSquared(sde, 0.0, True) if mode == "velocity_is" else UniformTime(0.0, True)
    predicted = "eps" if mode == "eps_uniform" else prediction
    noise = noise_fn(golden_vdm("idode"), sde, prediction=predicted)
    found, t, _ = loss.drawn_loss(
        noise, sde, x, jax.random.key(0), times=density, weighting="likelihood"
    )
    if mode == "velocity_is":
        np.testing.assert_allclose(-sde.log_snr(t), arrays[f"{path}/{mode}/gamma_t"], atol=3e-4)
    np.testing.assert_allclose(found, arrays[f"{path}/{mode}/loss_diff"], rtol=2e-4)


def test_golden_loss_of_vdm(golden, monkeypatch):
    """With side information about the images, of the fixed schedule."""
    arrays = golden("vdm_loss")
    x = drawn(arrays, monkeypatch)
    sde = SDE("vp", LinearLogSNR(-5.0, 13.3), 1.0)
    noise = conditioned(noise_fn(golden_vdm("fourier"), sde), jnp.asarray(arrays["cond"]))
    found = loss.denoising_loss(
        noise, sde, x, jax.random.key(0), times=UniformTime(0.0, True), weighting="likelihood"
    )
    np.testing.assert_allclose(found, arrays["fixed/T0/loss_diff"], rtol=5e-4)
