"""The losses of VDM and i-DODE: the authors' numbers, and their networks on the same draws."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.vdm_networks import golden_vdm

from scoremle.core import loss
from scoremle.core.condition import conditioned
from scoremle.core.learned_schedules import BetweenEnds, learned_schedule
from scoremle.core.pixels import Pixels
from scoremle.core.prediction import noise_fn
from scoremle.core.pytree import pytree
from scoremle.core.schedules import LinearLogSNR, Schedule
from scoremle.core.sde import SDE
from scoremle.core.times import AlphaSquared, UniformTime
from scoremle.likelihood.by_loss import ByVDMLoss
from scoremle.likelihood.elbo import prior_divergence
from scoremle.likelihood.steps import ReverseChain


@pytree
@dataclass(frozen=True)
class Plain(Schedule):
    """The same schedule under another type."""

    schedule: Schedule

    def log_snr(self, t):
        return self.schedule.log_snr(t)


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


def decoded(log_snr, arrays):
    """-log P(k | y_0) of the authors' draws, by the softmax over all levels."""
    points, k = jnp.asarray(Pixels().points, jnp.float32), arrays["images"].astype(int)
    error = points[k] + jnp.exp(-log_snr / 2) * arrays["eps0"]
    logits = -jnp.square(error[..., None] - points) * jnp.exp(log_snr) / 2
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), k[..., None], axis=-1)
    return -jnp.sum(chosen, axis=(1, 2, 3, 4))


@pytest.mark.parametrize("kind", ["scalar", "nnet"])
def test_golden_gradients_into_a_learned_schedule(kind, golden, monkeypatch):
    """Compares each term of VDM's bound, and its gradient by the parameters of the schedule."""
    arrays, prefix = golden("vdm_loss"), f"schedules/{kind}/params/"
    x, c = drawn(arrays, monkeypatch), jnp.asarray(arrays["cond"])
    flat = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    network = golden_vdm("fourier")

    def bits(params):
        sde = SDE("vp", learned_schedule(params), 1.0)
        diffusion = loss.denoising_loss(
            conditioned(noise_fn(network, sde), c), sde, x, jax.random.key(0),
            times=UniformTime(0.0, True), weighting="likelihood",
        )  # fmt: skip
        prior, last = prior_divergence(sde, x), decoded(sde.log_snr(0.0), arrays)
        terms = {"loss_diff": diffusion, "loss_klz": prior, "loss_recon": last}
        return jnp.mean(diffusion + prior + last) / (192 * jnp.log(2.0)), terms

    params = unflatten_dict(jax.tree.map(jnp.asarray, flat), sep="/")
    (value, terms), gradient = jax.jit(jax.value_and_grad(bits, has_aux=True))(params)
    for name, found in terms.items():
        np.testing.assert_allclose(found, arrays[f"{kind}/T0/{name}"], rtol=5e-4, err_msg=name)
    assert value == pytest.approx(float(arrays[f"{kind}/T0/bpd"]), rel=2e-4)
    for name, found in flatten_dict(gradient, sep="/").items():
        expected = arrays[f"{kind}/T0/grad/gamma/{name}"]
        atol = 2e-3 * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=atol, err_msg=name)


@pytest.mark.long
def test_golden_gradients_by_the_variance(golden, monkeypatch):
    """By the course of a schedule that of the squared loss, by the rest that of the loss."""
    arrays, prefix = golden("vdm_loss"), "schedules/nnet/params/"
    x, c = drawn(arrays, monkeypatch), jnp.asarray(arrays["cond"])
    flat = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    course = learned_schedule(unflatten_dict(jax.tree.map(jnp.asarray, flat), sep="/"))
    network, by_loss = golden_vdm("fourier"), ByVDMLoss(
        UniformTime(0.0, True), 1 / (192 * jnp.log(2.0)), "likelihood", False
    )  # fmt: skip

    def diffusion(schedule, network):
        sde = SDE("vp", schedule, 1.0)
        noise = conditioned(noise_fn(network, sde), c)
        return by_loss._denoising(noise, sde, x, jax.random.key(0))[0]

    def bits(schedule, network):
        return jnp.mean(by_loss.scale * diffusion(schedule, network))

    schedule = BetweenEnds(jnp.asarray([-13.3, 5.0]), course)
    losses = diffusion(schedule, network)
    np.testing.assert_allclose(losses, arrays["variance/loss_diff"], rtol=5e-4)
    square = jnp.mean(jnp.square(by_loss.scale * losses))
    assert square == pytest.approx(float(arrays["variance/mean_square_bpd"]), rel=1e-3)
    found, of_network = jax.jit(jax.grad(bits, (0, 1)))(schedule, network)
    for name, each in flatten_dict(found.course.params, sep="/").items():
        expected = arrays[f"variance/grad/{name}"]
        atol = 2e-3 * np.abs(arrays[f"variance/grad/{name}"]).max() + 1e-6
        np.testing.assert_allclose(each, expected, atol=atol, err_msg=name)
    # The rest as without: of the same schedule, whose type is another.
    plain, other = jax.jit(jax.grad(bits, (0, 1)))(Plain(schedule), network)
    np.testing.assert_allclose(found.ends, plain.schedule.ends, rtol=1e-4)
    for each, expected in zip(*map(jax.tree.leaves, (of_network, other)), strict=True):
        np.testing.assert_allclose(each, expected, atol=1e-4 * np.abs(expected).max() + 1e-7)
    assert np.abs(plain.schedule.course.params["l1"]["kernel"]).max() > 0


def test_golden_loss_of_steps(golden, monkeypatch):
    """One of ten steps is drawn for each image, by VDM's scalar schedule."""
    arrays, prefix = golden("vdm_loss"), "schedules/scalar/params/"
    x, points = drawn(arrays, monkeypatch), jnp.asarray(Pixels().points, jnp.float32)
    sde = SDE("vp", learned_schedule({k: jnp.asarray(arrays[prefix + k]) for k in "bw"}), 1.0)
    noise = conditioned(noise_fn(golden_vdm("fourier"), sde), jnp.asarray(arrays["cond"]))
    t, _ = UniformTime(0.0, True)(jax.random.key(0), 3)
    after = jnp.ceil(10 * t) / 10
    chain = ReverseChain(noise, sde, points, jnp.arange(11) / 10, "small", clip=False)
    z = jnp.asarray(arrays["eps"])
    prediction, v = chain.outputs(sde.perturb(x, after, z), after)
    found = 10 * chain.step(after - 0.1, after, prediction - z, v)
    np.testing.assert_allclose(found, arrays["scalar/T10/loss_diff"], rtol=1e-3)
