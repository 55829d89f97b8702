"""Known parts are kept, the rest follows its conditional distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from helpers.oracles import SDES, Gaussian, Mixture, schedule

from scoremle.errors import UserError
from scoremle.sampling.conditional import colourise, guided, inpaint
from scoremle.sampling.predictor_corrector import PredictorCorrector, langevin, reverse_diffusion

every_sde = some("name", SDES, quick=["vp"])
N = 2000
EPS = 1e-3


def conditional(data, known, values):
    """Mean and covariance of the unknown entries of a Gaussian, given the known ones."""
    mu, c = data.mu, data.covariance
    gain = c[np.ix_(~known, known)] @ np.linalg.inv(c[np.ix_(known, known)])
    return mu[~known] + gain @ (values - mu[known]), (
        c[np.ix_(~known, ~known)] - gain @ c[np.ix_(known, ~known)]
    )


def moments_are(x, mean, covariance, tolerance):
    """Within so much of the standard deviation, and of the variance."""
    x, scale = np.asarray(x, np.float64), np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((x.mean(0) - mean) / scale, 0, atol=tolerance)
    scales = np.outer(scale, scale)
    np.testing.assert_allclose(
        np.cov(x.T).reshape(covariance.shape) / scales, covariance / scales, atol=tolerance
    )


def inpainted(name, data, values, known, method, n=N):
    sde = SDES[name]
    x = jnp.broadcast_to(jnp.asarray(values, jnp.float32), (n, len(values)))
    draw = jax.jit(
        lambda key: inpaint(data.noise(sde), sde, key, x, known, eps=EPS, method=method)
    )
    out = draw(jax.random.key(1))
    np.testing.assert_array_equal(out[:, known], x[:, known])
    return out[:, ~known]


@every_sde
def test_independent_entries_are_not_disturbed(name):
    data = Gaussian.of([0.3, -0.2, 0.5], [0.5, 1.0, 0.2])
    known = np.array([False, True, False])
    method = PredictorCorrector(1000 if name == "ve_linear" else 300)
    x = inpainted(name, data, [0.0, 2.0, 0.0], known, method)
    moments_are(x, data.mu[~known], np.diag([0.5, 0.2]), 0.1)


def test_what_is_known_comes_back_to_the_last_bit(unchecked):
    """A small number beside samples of a large scale; the smallest time may be a tracer."""
    sde, x = SDES["ve"], jnp.array([[1e-4, 0.0, 7e-9]])
    known = np.array([True, False, True])

    @jax.jit
    def draw(eps):
        data = Gaussian.of([0.3, -0.2, 0.5], [0.5, 1.0, 0.2])
        method = PredictorCorrector(5)
        return inpaint(data.noise(sde), sde, jax.random.key(0), x, known, eps=eps, method=method)

    np.testing.assert_array_equal(draw(EPS)[:, known], x[:, known])
    with pytest.raises(UserError, match="one number"):
        inpaint(lambda x, t: x, sde, jax.random.key(0), x[0, 0], True, eps=EPS)


@some("name", ["subvp", "ve"], quick=[])
def test_correctors_lead_to_the_conditional_distribution(name):
    """Of correlated entries: approximate without, nearer with Langevin steps."""
    data, known = Gaussian.of([0.2, -0.1], [[1.0, 0.7], [0.7, 1.0]]), np.array([True, False])
    mean, covariance = conditional(data, known, np.array([1.5]))
    method = PredictorCorrector(300, reverse_diffusion, langevin, corrector_steps=3)
    x = inpainted(name, data, [1.5, 0.0], known, method)
    moments_are(x, mean, covariance, 0.12)


def test_a_mask_may_differ_between_images():
    sde, data = SDES["vp"], Gaussian.random(3, 4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 2, 1)), jnp.float32)
    known = np.random.default_rng(1).random(x.shape) < 0.5
    method = PredictorCorrector(30)
    given = jnp.where(known, x, jnp.nan)
    out = inpaint(data.noise(sde), sde, jax.random.key(0), given, known, eps=EPS, method=method)
    np.testing.assert_array_equal(np.asarray(out)[known], np.asarray(x)[known])
    assert np.abs(out - x)[~known].min() > 1e-4


def test_shapes_that_do_not_fit_are_named(unchecked):
    sde, key, x = SDES["vp"], jax.random.key(0), jnp.zeros((2, 4, 4, 3))
    with pytest.raises(UserError, match="known"):
        inpaint(lambda x, t: x, sde, key, x, np.ones((2, 4)), eps=EPS)
    for grey in (x[..., 0], x):
        with pytest.raises(UserError, match="grey"):
            colourise(lambda x, t: x, sde, key, grey, eps=EPS)


@pytest.mark.parametrize("name", ["vp"])
def test_colours_given_the_grey(name):
    """Correlated channels, whose conditional distribution given their mean is known."""
    w = np.array([[0.6, 0.3, 0.1], [0.3, 0.5, 0.2], [0.1, 0.2, 0.4]])
    sde, data = SDES[name], Gaussian.of([0.3, 0.1, -0.2], w)
    grey = 0.6
    method = PredictorCorrector(300, reverse_diffusion, langevin, corrector_steps=3)
    draw = jax.jit(
        lambda key: colourise(
            data.noise(sde), sde, key, jnp.full((N, 1, 1, 1), grey), eps=EPS, method=method
        )
    )
    x = np.asarray(draw(jax.random.key(2))).reshape(N, 3)
    np.testing.assert_allclose(x.mean(1), grey, atol=1e-5)
    # In coordinates (mean of the channels, the first two channels).
    change = np.array([[1 / 3, 1 / 3, 1 / 3], [1, 0, 0], [0, 1, 0]])
    turned = Gaussian.of(change @ data.mu, change @ data.covariance @ change.T)
    known = np.array([True, False, False])
    moments_are(x[:, :2], *conditional(turned, known, np.array([grey])), 0.15)


@every_sde
def test_guidance_to_a_class_is_the_noise_of_that_class(name):
    """The gradient of the exact log p(component | x_t) turns the mixture into the component."""
    sde, data, k = SDES[name], Mixture.in_plane(), 1

    def log_class(x, t):
        alpha, sigma = (c[:, None] for c in schedule(sde, t, jnp))
        means, stds = (jnp.asarray(a, x.dtype) for a in (data.means, data.stds))
        variance = alpha**2 * stds**2 + sigma**2
        square = ((x[:, None] - alpha[:, :, None] * means) ** 2).sum(-1)
        logits = jnp.log(jnp.asarray(data.weights, x.dtype))
        logits = logits - square / variance / 2 - data.dims / 2 * jnp.log(variance)
        return jax.nn.log_softmax(logits, axis=1)[:, k]

    t = jnp.asarray([0.01, 0.1, 0.3, 1.0])
    x = jnp.asarray(np.random.default_rng(5).normal(size=(4, 2)), jnp.float32)
    component = Gaussian.of(data.means[k], np.full(2, data.stds[k] ** 2))
    noise = guided(data.noise(sde), sde, log_class)
    np.testing.assert_allclose(noise(x, t), component.noise(sde)(x, t), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("noise", "log_prob", "words"),
    [
        (lambda x, t: x[:, :1], lambda x, t: x[:, 0], "shape"),
        (lambda x, t: x, lambda x, t: jax.nn.log_softmax(x), "4 reals"),
        (lambda x, t: x, lambda x, t: jnp.ones(4, int), "4 reals"),
    ],
)
def test_guidance_by_what_has_another_shape_is_refused(noise, log_prob, words):
    with pytest.raises(UserError, match=words):
        guided(noise, SDES["vp"], log_prob)(jnp.ones((4, 3)), jnp.full(4, 0.5))
