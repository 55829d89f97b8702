"""The loss of the flow dequantizer: the reference's numbers, and the bound in expectation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.flows import SMALL, golden_variables
from helpers.golden_networks import golden_noise
from helpers.oracles import SDES, Gaussian, entropy, reconstruction
from helpers.reference_kernels import REFERENCE
from scipy.stats import norm

from scoremle.core.dequantize import Flow, Uniform
from scoremle.core.loss import denoising_residual
from scoremle.core.pixels import Pixels, bits_per_dim
from scoremle.core.times import UniformLogSNR
from scoremle.likelihood.decoders import Entropy, GaussianDecoder
from scoremle.likelihood.dequantizer_loss import dequantization_loss

KEY = jax.random.key(0)
DATA = Gaussian.random(5, 4, 0.6)
DIMS = 16 * 16 * 3
EPS = {"vp": 1e-5, "subvp": 1e-2}


# --- golden numbers ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dequantized(golden):
    """y and log q(u | x) of the images of losses.npz, by the flow of dequantizer_cifar10."""
    arrays = {k.removeprefix("deq/"): v for k, v in golden("losses").items() if "deq/" in k}
    variables = golden_variables(golden("dequantizer_cifar10"), np.float32)
    x = np.round(arrays["image"] * 255).astype(np.uint8)
    u, log_q = jax.jit(SMALL["cifar10"].apply)(variables, arrays["u"], x / np.float32(255))
    return arrays, Pixels().encode(x, u), np.asarray(log_q, np.float64)


@pytest.mark.parametrize("name", ["vp", "subvp"])
def test_golden_losses(name, dequantized):
    """The published loss, which draws the parts that we have in closed form, from our pieces on
    its draws; with the reference's kernel at small t."""
    arrays, y, log_q = dequantized
    sde, kernel = SDES[name], REFERENCE[name]
    t, drift_t = arrays[f"{name}/t"], arrays[f"{name}/t_drift"]
    eps = np.full(2, EPS[name], np.float32)
    noise = golden_noise("ddpmpp", sde)

    @jax.jit
    def residual(t, z):
        return denoising_residual(noise, kernel, y, t, z)

    def squares(z):
        return np.sum(np.square(z, dtype=np.float64), axis=(1, 2, 3))

    @jax.jit
    def of_sde(z, drift_t, t):
        prior = -sde.prior_log_prob(sde.perturb(y, jnp.ones(2), z))
        span = sde.log_snr(eps)[0] - sde.log_snr(jnp.float32(1))
        return prior, sde.f(drift_t), span, kernel.likelihood_weight(t)

    prior, f, span, weight = (
        np.asarray(a, np.float64) for a in of_sde(arrays["z_prior"], drift_t, t)
    )
    dsm = 2 * np.asarray(residual(t, arrays["z"]), np.float64) - squares(arrays["z"])
    common = prior - DIMS * f + log_q
    last = np.asarray(residual(eps, arrays["z_offset"]), np.float64)
    offset = reconstruction(sde, 2 * last, DIMS, EPS[name]) - entropy(sde, DIMS, EPS[name])

    def check(key, losses, rtol):
        bpd = bits_per_dim(-jnp.asarray(losses.mean()), Pixels(), DIMS)
        np.testing.assert_allclose(losses.mean(), arrays[f"{name}/{key}/loss"], rtol=rtol)
        np.testing.assert_allclose(bpd, arrays[f"{name}/{key}/bpd"], rtol=rtol)

    check("iw_no_offset", common + span * dsm / 2, 5e-5)
    check("iw", common + span * dsm / 2 + offset, 1e-4)
    check("uniform", common + weight * dsm / 2 + offset, 1e-4)


# --- in expectation ---------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("name", ["vp", "ve"])
def test_one_draw_is_the_bound_on_average(name, offset):
    sde, eps, copies = SDES[name], 0.02, 20_000
    one = DATA.draw(3, 1)
    bins = np.repeat(np.floor(one), copies, axis=0)  # of width one, as those of these pixels
    within = jnp.asarray(np.repeat(one, copies, axis=0) - bins, jnp.float32)

    class Given(Uniform):
        def __call__(self, key, x):
            return within, jnp.zeros(copies)

    run = jax.jit(
        lambda x, key: dequantization_loss(
            DATA.noise(sde), sde, Pixels(64, -32, 32), Given(), x, key,
            eps=eps, times=UniformLogSNR(sde, eps),
            decoder=GaussianDecoder() if offset else Entropy(),
        )
    )
    values = np.asarray(run(jnp.asarray(bins + 32, int), KEY), np.float64)
    exact = -DATA.bound(sde, one, eps, offset=offset)["log_prob"][0]
    error = values.std() / np.sqrt(copies)
    assert abs(values.mean() - exact) < 4 * error
    assert error < 0.05 * abs(exact) + 0.05


def test_what_is_split_draws_nothing():
    """Not the key of all: of that the keys of noise and times are made."""
    sde, used = SDES["vp"], []

    class Noises(Uniform):
        def __call__(self, key, x):
            used.append(key)
            return super().__call__(key, x)

    class Times(UniformLogSNR):
        def __call__(self, key, n):
            used.append(key)
            return super().__call__(key, n)

    @jax.jit
    def drawn():
        dequantization_loss(
            DATA.noise(sde), sde, Pixels(4), Noises(), jnp.ones((2, 4), int), KEY,
            eps=0.02, times=Times(sde, 0.02),
        )  # fmt: skip
        return [jax.random.key_data(key) for key in used]

    of_dequantizer, of_times = drawn()
    derived = [KEY, *jax.random.split(KEY)]
    assert not np.array_equal(of_dequantizer, jax.random.key_data(KEY))
    assert all(not np.array_equal(of_times, jax.random.key_data(key)) for key in derived)


def test_the_loss_is_log_q_and_the_bound_and_its_gradient_reaches_the_dequantizer():
    """A dequantizer u = sigmoid(a + e), whose density is known: the loss falls with a towards
    where the data density is greatest."""
    sde, eps, pixels = SDES["vp"], 0.02, Pixels(4)
    data = Gaussian.of([0.0], [0.2**2])  # bins meet at its middle, x = 1 lies below it
    x = jnp.ones((20_000, 1), int)

    def apply(a, e, _):
        u = jax.nn.sigmoid(a + e)
        log_det = jnp.log(u) + jnp.log1p(-u)
        return u, jnp.sum(-(e**2) / 2 - jnp.log(2 * jnp.pi) / 2 - log_det, axis=1)

    def mean_loss(dequantizer, offset=True):
        return jnp.mean(
            dequantization_loss(
                data.noise(sde), sde, pixels, dequantizer, x, KEY,
                eps=eps, times=UniformLogSNR(sde, eps, stratified=True),
                decoder=GaussianDecoder() if offset else Entropy(),
            )
        )  # fmt: skip

    loss = jax.jit(jax.value_and_grad(lambda a: mean_loss(Flow(apply, a, levels=4))))
    (low, slope), (high, slope_there) = ([float(v) for v in loss(a)] for a in (0.0, 1.0))
    # As the slope says between the two, to second order.
    assert slope < -0.05
    assert high - low == pytest.approx((slope + slope_there) / 2, abs=0.05)
    uniform = float(jax.jit(lambda: mean_loss(Uniform()))())
    # The least loss is -log P(x), but for the constant: every dequantizer lies above it.
    edges = np.asarray(pixels.encode(np.array([1, 2]), np.zeros(2)))
    mass = np.diff(norm.cdf(edges, loc=0.0, scale=0.2))[0]
    for value in (low, high, uniform):
        assert value - pixels.log_det_per_dim > -np.log(mass) - 0.02
