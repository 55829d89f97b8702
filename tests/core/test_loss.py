"""The three objectives: the reference's numbers, and one integral that all of them estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden_networks import golden_noise
from helpers.marks import some
from helpers.oracles import SDES, Gaussian, drift_and_diffusion64, schedule, schedule64
from helpers.reference_kernels import REFERENCE
from helpers.schedules import Curved

from scoremle.core.keys import normal
from scoremle.core.loss import denoising_loss, denoising_residual, loss_at
from scoremle.core.sde import SDE
from scoremle.core.times import UniformLogSNR, UniformTime

# --- golden numbers ---------------------------------------------------------------------------




@pytest.fixture(scope="module")
def network_losses():
    """The residual in nats of each example of losses.npz, by SDE, with our or their kernel."""

    def residual(name, golden, reference):
        arrays = golden("losses")
        sde = SDES[name]
        kernel = REFERENCE[name] if reference else sde
        noise = golden_noise("ncsnpp_ve" if name == "ve" else "ddpmpp", sde)
        prefix = "ve/" if name == "ve" else ""
        x, z, t = arrays[prefix + "x"], arrays[prefix + "z"], arrays[f"{name}/t"]
        run = jax.jit(lambda x, t, z: denoising_residual(noise, kernel, x, t, z))
        r = np.asarray(run(x, t, z), np.float64)
        return r, np.asarray(kernel.likelihood_weight(jnp.asarray(t)), np.float64)

    return residual


@some("name", ["vp", "subvp", "ve"], quick=["subvp", "ve"])
def test_golden_losses(name, golden, network_losses):
    arrays, dims = golden("losses"), 16 * 16 * 3
    residual, weight = network_losses(name, golden, reference=True)
    rtol = 2e-4 if name == "ve" else 2e-5  # the tolerance of that network

    def check(key, value, rtol=rtol):
        np.testing.assert_allclose(value, arrays[f"{name}/{key}"], rtol=rtol, err_msg=key)

    check("plain/sum", residual.mean())
    check("plain/mean", 2 * residual.mean() / dims)
    check("likelihood/sum", (weight * residual).mean(), max(rtol, 5e-5))
    check("likelihood/mean", 2 * (weight * residual).mean() / dims, max(rtol, 5e-5))
    if name != "ve":
        check("likelihood_iw/sum", residual.mean())
        check("likelihood_iw/mean", 2 * residual.mean() / dims)
        check("likelihood_iw/per_example_mean", 2 * residual / dims)
        check("likelihood/per_example_mean", 2 * weight * residual / dims, 5e-5)


@some("name", ["vp", "subvp"], quick=["subvp"])
def test_the_exact_kernel_differs_from_the_reference_by_its_expansion_only(
    name, golden, network_losses
):
    """The reference's std is up to 5e-4 (VP) or 1e-3 (sub-VP) off below t = 0.01."""
    arrays = golden("losses")
    residual, _ = network_losses(name, golden, reference=False)
    np.testing.assert_allclose(residual.mean(), arrays[f"{name}/plain/sum"], rtol=1e-3)


# --- expectations -----------------------------------------------------------------------------

EPS = 1e-2
X = np.array([[0.9, -0.4]])
DATA = Gaussian.random(1, 2)
REPEATS = 20_000


def mean_loss(sde, times, weighting, seed):
    x = jnp.repeat(jnp.asarray(X, jnp.float32), REPEATS, axis=0)
    loss = jax.jit(
        lambda key: denoising_loss(DATA.noise(sde), sde, x, key, times=times, weighting=weighting)
    )(jax.random.key(seed))
    assert loss.shape == (REPEATS,)
    loss = np.asarray(loss, np.float64)
    return loss.mean(), loss.std() / np.sqrt(REPEATS)


@some("name", SDES, quick=["ve_linear"])
def test_objectives_estimate_their_integrals(name):
    sde = SDES[name]
    grid = np.exp(np.linspace(np.log(EPS), 0, 4001))
    plain = np.trapezoid(DATA.residual(sde, X, grid) / 2, grid)
    likelihood = DATA.diffusion(sde, X, EPS)[0]
    rate = drift_and_diffusion64(sde, grid)[1] / schedule64(sde, grid)[1] ** 2
    by_quadrature = np.trapezoid(rate * DATA.residual(sde, X, grid) / 2, grid)
    assert likelihood == pytest.approx(by_quadrature, rel=1e-3)  # the oracle itself

    uniform, log_snr = UniformTime(EPS), UniformLogSNR(sde, EPS)
    for seed, (times, weighting, expected) in enumerate(
        [
            (uniform, "likelihood", likelihood),
            (log_snr, "likelihood", likelihood),
            (UniformTime(EPS, stratified=True), "likelihood", likelihood),
            (UniformLogSNR(sde, EPS, stratified=True), "likelihood", likelihood),
            (uniform, "plain", plain),
            (log_snr, "plain", plain),
        ]
    ):
        mean, stderr = mean_loss(sde, times, weighting, seed)
        assert abs(mean - expected) < 4 * stderr + 1e-4 * expected, (times, weighting)
        assert stderr < 0.1 * expected


@pytest.mark.parametrize("name", ["vp", "subvp"])
def test_importance_sampling_lowers_the_variance(name):
    """The paper's claim, in its setting: likelihood weighting with a small eps."""
    sde = SDES[name]

    def spread(times):
        return mean_loss(sde, times, "likelihood", 3)[1]

    assert spread(UniformLogSNR(sde, 1e-4)) < 0.3 * spread(UniformTime(1e-4))


def test_loss_draws_as_documented():
    """t and z come from the two halves of the key; the weight over the density multiplies."""
    sde, key = SDES["vp"], jax.random.key(4)
    x = jnp.asarray(DATA.draw(0, 6), jnp.float32)
    times = UniformLogSNR(sde, 1e-3)
    key_t, key_z = jax.random.split(key)
    t, p = times(key_t, 6)
    z = normal(key_z, x)
    noise = DATA.noise(sde)
    alpha, sigma = (c[:, None] for c in schedule(sde, t, jnp))
    residual = ((noise(alpha * x + sigma * z, t) - z) ** 2).sum(1) / 2
    weights = {"plain": 1, "likelihood": drift_and_diffusion64(sde, t)[1] / sigma[:, 0] ** 2}
    for weighting, weight in weights.items():
        loss = denoising_loss(noise, sde, x, key, times=times, weighting=weighting)
        np.testing.assert_allclose(loss, weight / p * residual, rtol=1e-4)


@pytest.mark.parametrize("density", [1.0, 0.4])
def test_where_dimensions_have_weights_the_loss_is_over_the_density_too(density):
    sde = SDE("vp", Curved(9.0, np.linspace(16.0, 20.0, 3), np.zeros(3)), 1.0)
    x, z = np.random.default_rng(0).normal(size=(2, 5, 3))
    t = jnp.linspace(0.2, 0.9, 5)
    found = loss_at(
        lambda x, t: 0 * x, sde, x, t, jnp.full(5, density), z, weighting="likelihood"
    )  # fmt: skip
    expected = np.sum(sde.likelihood_weight(t) * z**2, axis=1) / 2 / density
    np.testing.assert_allclose(found, expected, rtol=1e-5)
