"""VDM's and i-DODE's bounds and likelihoods: the authors' numbers, and what theory says of all."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from helpers.oracles import Gaussian
from helpers.vdm_networks import golden_vdm

from scoremle.core.bijectors import AtTime
from scoremle.core.dequantize import TruncatedNormal
from scoremle.core.divergence import Exact, FixedProbe
from scoremle.core.keys import split
from scoremle.core.learned_times import LossMoments
from scoremle.core.pixels import Pixels
from scoremle.core.prediction import noise_fn
from scoremle.core.schedules import LinearLogSNR
from scoremle.core.sde import SDE
from scoremle.core.times import BINS, AlphaSquared, UniformTime
from scoremle.likelihood.by_loss import ByLoss, ByVDMLoss
from scoremle.likelihood.decoders import DiscreteDecoder
from scoremle.likelihood.elbo import elbo
from scoremle.likelihood.importance import importance_bound
from scoremle.likelihood.ode import ode_log_likelihood
from scoremle.likelihood.record import Likelihood
from scoremle.solvers.multistep import Multistep

SCHEDULE, DIMS = LinearLogSNR(-5.0, 13.3), 8 * 8 * 3
PATHS = {"VP": ("vp", "v"), "SP": ("straight", "unit_u")}


def model_of(path):
    """SDE with i-DODE's prior, and the noise prediction of its network."""
    kernel, prediction = PATHS[path]
    last = float(SDE(kernel, SCHEDULE, 1.0).sigma(1.0))
    sde = SDE(kernel, SCHEDULE, last)
    return sde, noise_fn(golden_vdm("idode"), sde, prediction=prediction)


@pytest.mark.parametrize("path", PATHS)
def test_golden_truncated_normal_noise(path, golden, monkeypatch):
    """The points where the ODE starts, and the density of the noise there."""
    arrays, (sde, _) = golden("idode"), model_of(path)
    images = jnp.asarray(arrays["images"][:2].astype(int))

    @jax.jit
    def noisy(e):
        monkeypatch.setattr(
            "scoremle.core.dequantize.per_example", lambda function, keys, shape: e
        )
        u, log_q = TruncatedNormal(sde, 0.0)(jax.random.key(0), images)
        return AtTime(sde, 0.0).forward(Pixels().encode(images, u))[0], log_q

    for draw in range(2):
        z, log_q = noisy(arrays[f"{path}/tn/e"][draw])
        np.testing.assert_allclose(z, arrays[f"{path}/tn/z0"][draw], atol=3e-7)
        # From u to z: a bin of z has the width alpha 2 / 256.
        width = np.log(2 / 256) + np.log(float(sde.alpha(0.0)))
        expected = arrays[f"{path}/tn/log_q"][draw] + DIMS * width
        np.testing.assert_allclose(log_q, expected, atol=2e-2)


@some("path", PATHS, quick=["VP"])
def test_golden_likelihood(path, golden):
    """By the same probe, against a solution in float64."""
    arrays, (sde, noise) = golden("idode"), model_of(path)
    probe = FixedProbe(jnp.asarray(arrays["hutch"])[None])
    run = jax.jit(
        lambda z: ode_log_likelihood(
            noise, sde, z, jax.random.key(0), eps=0.0, divergence=probe, solver=Multistep(96)
        ).log_prob
    )
    found = np.asarray(run(jnp.asarray(arrays[f"{path}/tn/z0"][0], jnp.float32)), np.float64)
    np.testing.assert_allclose(found, arrays[f"{path}/tn/truth/log_p_z0"][0], atol=0.05)


@pytest.mark.parametrize("path", PATHS)
def test_golden_bound_of_three_draws(path, golden):
    """From log p and log q of each: with the -log 3 that the published value lacks."""
    arrays, key = golden("idode"), jax.random.key(0)
    log_p, log_q = (jnp.asarray(arrays[f"{path}/tn/{k}"][:3]) for k in ("truth/log_p_z0", "log_q"))
    keys = jax.random.key_data(split(key, 3))

    def draw(key):
        """The draw whose key this is."""
        k = jnp.argmax(jnp.all(keys == jax.random.key_data(key), axis=-1))
        none = jnp.zeros(2)
        found = Likelihood(log_p[k], none, none.astype(int), none, none[None], none, none > 0)
        return found, log_q[k]

    bound = jax.jit(lambda key: importance_bound(draw, key, 3).log_prob)
    bits = -np.asarray(bound(key)) / (DIMS * np.log(2))
    np.testing.assert_allclose(bits, arrays[f"{path}/tn/truth/bpd_K3"], atol=2e-6)
    published = arrays[f"{path}/tn/K3/bpd_as_published"]
    np.testing.assert_allclose(bits - published, np.log2(3) / DIMS, atol=4e-4)


DATA = Gaussian.random(5, 3, 0.5)
KERNELS = ("vp", "subvp", "ve", "straight")


@cache
@jax.enable_x64(True)
def by_both_priors(kernel):
    """log p and latent by N(0, sigma_1^2 I), log p by N(0, I), and sigma_1."""

    @jax.jit
    def solved(prior_std):
        sde = SDE(kernel, SCHEDULE, prior_std)
        z, log_det = AtTime(sde, 0.0).forward(jnp.asarray(DATA.draw(1, 4)))
        found = ode_log_likelihood(
            DATA.noise(sde), sde, z, jax.random.key(0), eps=0.0, divergence=Exact(),
            solver=Multistep(96),
        )  # fmt: skip
        return found.log_prob + log_det, found.latent

    last = float(SDE(kernel, SCHEDULE, 1.0).sigma(1.0))
    (log_prob, latent), (unit, _) = jax.tree.map(np.asarray, [solved(last), solved(1.0)])
    return log_prob, latent, unit, last


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_likelihood_is_that_of_every_path_in_the_scale_of_the_data(kernel):
    """With the prior N(0, sigma_1^2 I); with N(0, I) it differs by the priors of the latent."""
    truth, *_ = by_both_priors("vp")
    log_prob, latent, unit, last = by_both_priors(kernel)
    np.testing.assert_allclose(log_prob, truth, atol=1e-6)
    square = np.square(latent).sum(axis=1)
    difference = 3 * np.log(last) + square * (1 / last**2 - 1) / 2
    np.testing.assert_allclose(unit - log_prob, difference, atol=1e-6)


def samplers(sde):
    lopsided = LossMoments(jnp.linspace(1.0, 9.0, BINS) ** 2, jnp.ones(BINS))
    return {
        "time": UniformTime(0.0, True), "alpha_squared": AlphaSquared(sde, 0.0, True),
        "learned": lopsided.times(sde, 0.0, True),
    }  # fmt: skip


@pytest.mark.parametrize("kernel", ["vp", "straight"])
@pytest.mark.parametrize("of_vdm", [False, True])
def test_the_second_order_loss_is_added_in_the_scale_of_the_first(kernel, of_vdm):
    """The error and the trace of a prediction are known, since all images are one point."""
    sde, pixels, n, c = SDE(kernel, SCHEDULE, 1.0), Pixels(16), 50, 1.5
    images = jnp.full((n, 3), 9)
    y = pixels.points[9] if of_vdm else pixels.encode_grid(images)[0]

    def noise(x, t):
        """c times the exact prediction: sigma times its trace is 3 c."""
        return c * (x - sde.alpha(t)[:, None] * y) / sde.sigma(t)[:, None]

    kind, more = (ByVDMLoss, (0.0,)) if of_vdm else (ByLoss, ())
    by_loss = kind(samplers(sde)["alpha_squared"], 0.25, "likelihood", False, *more)
    given = noise, sde, pixels, images

    @jax.jit
    def run(key):
        (first, drawn), (both, _) = (
            by_loss.drawn(*given, key, second_order=second) for second in (False, True)
        )
        return both - first, drawn, sde.likelihood_weight(drawn[1])

    added, (losses, _, density), weight = jax.tree.map(
        lambda a: np.asarray(a, np.float64), run(jax.random.key(1))
    )
    weight = weight / density
    q = 3 * c - 3 + 2 * losses / weight
    np.testing.assert_allclose(added, 0.25 * 0.1 * weight / 2 * q**2 / 3, rtol=2e-3)


@some("kind", ["time", "alpha_squared", "learned"], quick=["time", "learned"])
@pytest.mark.parametrize("kernel", ["vp", "straight"])
def test_the_loss_of_vdm_is_its_bound_whatever_the_times(kernel, kind):
    """In the mean, so that its change with the parameters is that of the bound: a z-test."""
    sde, pixels, n = SDE(kernel, SCHEDULE, 1.0), Pixels(16), 2000
    image = jnp.asarray([[3, 9, 12]])
    exact = DATA.noise(sde)

    @jax.jit
    def means(scale):
        """The loss and minus the bound, of a prediction that is ``scale`` times the exact one."""
        def noise(x, t):
            return scale * exact(x, t)

        images = jnp.tile(image, (n, 1))
        by_loss = ByVDMLoss(samplers(sde)[kind], 1.0, "likelihood", False, 0.0)
        losses, _ = by_loss.drawn(noise, sde, pixels, images, jax.random.key(1))
        bound = elbo(
            noise, sde, jnp.asarray(pixels.points, jnp.float32)[images[:50]],
            jax.random.key(2), eps=0.0, times=UniformTime(0.0, True), draws=64,
            decoder=DiscreteDecoder(pixels.points), integers=images[:50],
        )  # fmt: skip
        return losses, -bound.log_prob

    found = jax.tree.map(lambda a: np.asarray(a, np.float64), [means(1.0), means(0.8)])
    (losses, bounds), (others, other_bounds) = found
    for loss, bound in ((losses, bounds), (losses - others, bounds - other_bounds)):
        error = np.hypot(loss.std() / np.sqrt(n), bound.std() / np.sqrt(50))
        assert abs(loss.mean() - bound.mean()) < 4 * error + 1e-3
    assert abs(loss.mean()) > 10 * error  # a change that is seen
