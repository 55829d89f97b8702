"""Samples that carry log p: what is found on the way from noise is found again on the way back."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.oracles import EPS, SDES, Gaussian, Mixture, of_data
from helpers.schedules import SCHEDULES, Curved
from scipy.stats import norm

from scoremle import (
    SDE,
    Affine,
    Bounded,
    Chain,
    Exact,
    Multistep,
    Orthogonal,
    Pixels,
    ScoreModel,
    UserError,
    euler_sample,
)
from scoremle.core.bijectors import in_all_digits
from scoremle.core.keys import image_keys
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.sampling.ode import ode_draw

KEY, OTHER, VP = jax.random.key(0), jax.random.key(1), SDES["vp"]
PLANE = Mixture.in_plane()


def mixture(dims):
    """Two narrow modes, so that the trace is not the same everywhere."""
    means = 0.3 * np.random.default_rng(dims).normal(size=(2, dims))
    return Mixture.of([0.6, 0.4], means, [0.4, 0.7])


def of(data, sde=VP, eps=1e-4, **options):
    return ScoreModel(data.noise(sde), sde, eps, (data.dims,), **options)


def reflected(dims, **options):
    """A Gaussian of full covariance, by a reflection: a trace that one probe does not give."""
    rng = np.random.default_rng(dims)
    mean, axis = rng.normal(size=(2, dims))
    axis, variance = axis / np.linalg.norm(axis), np.linspace(0.25, 1, dims) ** 2

    def reflect(x):
        return x - 2 * (x @ axis)[:, None] * axis

    def noise(x, t):
        alpha, sigma = VP.alpha(t)[:, None], VP.sigma(t)[:, None]
        return sigma * reflect(reflect(x - alpha * mean) / (alpha**2 * variance + sigma**2))

    return ScoreModel(noise, VP, 1e-4, (dims,), **options)


def pair(kernel, name):
    schedule = SCHEDULES[name]
    prior_std = float(SDE(kernel, schedule, 1.0).sigma(jnp.ones(())))
    return SDE(kernel, schedule, prior_std), getattr(schedule, "eps", 1e-3)


def conditional():
    """The condition is a mean, and a row of it belongs to each sample."""
    plain = PLANE.noise(VP)

    def noise(x, t, mean):
        return plain(x - VP.alpha(t)[:, None] * mean, t)

    return ScoreModel(noise, VP, 1e-4, (2,))


def per_dimension():
    """Each dimension has a log-SNR of its own, of independent Gaussians."""
    sde = SDE("vp", Curved(9.0, np.linspace(16.0, 20.0, 3), np.asarray([0.3, -0.2, 0.0])), 1.0)
    variance, mean = np.asarray([0.2, 1.5, 0.6]), np.asarray([0.5, -1.0, 0.2])

    def noise(x, t):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return sigma * (x - alpha * mean) / (alpha**2 * variance + sigma**2)

    return ScoreModel(noise, sde, 1e-3, (3,))


# Reals, positive numbers, and shares whose density is largest at both bounds.
BOUNDS = Bounded(np.asarray([-np.inf, 0.0, 0.0]), np.asarray([np.inf, np.inf, 1.0]))
TO_NETWORK = Chain((BOUNDS, Affine(np.asarray([5.0, 1.0, 0.0]), np.asarray([100.0, 0.5, 6.0]))))

ORACLES = {
    "VP, plane": lambda: of(PLANE),
    "sub-VP, a full covariance": lambda: of(Gaussian.random(3, 5), SDES["subvp"], EPS["subvp"]),
    "VE, plane": lambda: of(PLANE, SDES["ve"], EPS["ve"]),
    "linear VE, plane": lambda: of(PLANE, SDES["ve_linear"], EPS["ve_linear"]),
    "VE, Karras": lambda: of(PLANE, *pair("ve", "karras")),
    "VP, a table": lambda: of(PLANE, *pair("vp", "discrete")),
    "straight, 80 dimensions, exact": lambda: of(
        mixture(80), *pair("straight", "log_snr"), divergence=Exact(), solver=Multistep(48)
    ),
    "sub-VP, cosine, 100 dimensions, orthogonal": lambda: of(
        mixture(100), *pair("subvp", "cosine"), divergence=Orthogonal(4)
    ),
    "VP, 1,000 dimensions, one probe": lambda: reflected(1000, solver=Multistep(24)),
    "VP, conditions": conditional,
    "VP, bounds": lambda: of(mixture(3), bijector=TO_NETWORK),
    "a schedule per dimension": per_dimension,
}


def check_forward_is_backward(name, n):
    """log p by the same solution that drew x, beside that from x: within what both state."""
    model = ORACLES[name]()
    condition = jax.random.normal(OTHER, (n, 2)) if "conditions" in name else None
    found = model.sample(n, KEY, condition=condition, log_prob=True)
    back = model.log_prob(found.x, OTHER, condition=condition)
    assert found.x.shape == (n, *model.shape) and found.evaluations.min() >= 25
    assert (found.probe_stderr > 0).all() == (model.dims > 64 and "exact" not in name)
    variance = sum(
        np.square(np.asarray(error, np.float64))
        for each in (found, back)
        for error in (each.solver_error, each.probe_stderr)
    )
    ratio = np.abs(found.log_prob - np.asarray(back.log_prob)) / np.sqrt(variance)
    assert np.mean(ratio <= 2) >= 0.95, np.sort(ratio)[-n // 10 :]
    assert ratio.max() < 5
    return ratio


@pytest.mark.parametrize("name", ["VP, plane", "VP, conditions"])
def test_forward_is_backward(name):
    check_forward_is_backward(name, 60)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", ORACLES)
def test_forward_is_backward_of_a_thousand(name):
    check_forward_is_backward(name, 1000)


def test_log_prob_is_the_density_and_samples_are_those_of_the_key():
    """Also in several batches, and under a condition that the model has."""
    model, shift = conditional(), np.asarray([[3.0, -1.0]])
    found = model.condition_on(shift).sample(40, KEY, log_prob=True, batch_size=16)
    x = found.x - shift
    exact = of_data(PLANE.log_density, VP, x, 1e-4)
    # The prior does not move with the condition: alpha is 0.0066 at t = 1.
    assert (np.abs(found.log_prob - exact) < found.solver_error + 0.05).all()
    alone = model.condition_on(np.repeat(shift, 40, 0)).sample(40, KEY, batch_size=16)
    np.testing.assert_allclose(found.x, alone, atol=0.02)
    first = VP.prior_sample(image_keys(KEY, np.arange(7)), (7, 2))
    np.testing.assert_array_equal(found.latent[:7], first)
    assert repr(found).startswith(f"Samples(40: log p {found.log_prob.mean():.5g} nats")


@pytest.mark.parametrize(
    "bijector", [Chain((Bounded(-np.inf, 1.0), Affine(14.0, 1.0))), Affine(59000.5, 0.01)]
)
def test_samples_have_the_digits_that_float32_loses(bijector):
    """In float32 the reals next to 1 are 6e-8 apart, and those next to 59,000 are 4e-3 apart."""
    model = ScoreModel(PLANE.noise(VP), VP, 1e-4, (2,), bijector=bijector)
    found = model.sample(60, KEY, log_prob=True)
    back = model.log_prob(found.x, OTHER)
    assert np.all(abs(found.log_prob - back.log_prob) < found.solver_error + back.solver_error)
    assert found.x.dtype == np.float64 and found.solver_error.max() < 0.02
    alone = model.sample(60, KEY)
    assert len(np.unique(alone)) == 120
    np.testing.assert_allclose(
        *(in_all_digits(bijector, x) for x in (alone, found.x)), atol=2e-3
    )


@pytest.mark.filterwarnings("ignore:the solver's error")
@pytest.mark.parametrize("shift", [25.0, 30.0, 50.0])
def test_what_rounding_at_a_bound_does_to_log_p_is_stated(shift):
    """In float64 the reals next to 1 are 1e-16 apart, and none is nearer to it."""
    near_one = Chain((Bounded(-np.inf, 1.0), Affine(shift, 1.0)))
    model = ScoreModel(Gaussian.random(2, 2).noise(VP), VP, 1e-4, (2,), bijector=near_one)
    found = model.sample(60, KEY, log_prob=True)
    back = model.log_prob(found.x, OTHER)
    gap, stated = abs(found.log_prob - back.log_prob), found.solver_error + back.solver_error
    assert (found.x < 1).all() and np.mean(gap <= 1.05 * stated) >= 0.95
    assert (found.solver_error.max() > 1) == (shift == 50.0)


def test_images_have_log_p_of_their_reals():
    pixels = Pixels(8)

    def noise(x, t):  # of independent N(0.1, 0.3^2)
        alpha, sigma = VP.alpha(t)[:, None, None, None], VP.sigma(t)[:, None, None, None]
        return sigma * (x - alpha * 0.1) / (0.09 * alpha**2 + sigma**2)

    model = ScoreModel(noise, VP, 1e-4, (2, 3, 1), pixels)
    found = model.sample(30, KEY, log_prob=True)
    np.testing.assert_array_equal(found.integers, pixels.decode(found.x))
    exact = norm.logpdf(found.x, 0.1, 0.3).sum(axis=(1, 2, 3))
    assert (np.abs(found.log_prob - exact) < found.solver_error + 0.02).all()


def test_none_are_an_empty_record(unchecked):
    found = of(PLANE).sample(0, KEY, log_prob=True)
    assert found.x.shape == (0, 2) and found.log_prob.shape == (0,) and len(found) == 0
    assert repr(found) == "Samples(none)"


@pytest.mark.parametrize("shape", [(1, 2), (5, 3), (5,)])
def test_a_sampler_that_draws_another_shape_is_refused(shape):
    with pytest.raises(UserError, match="sampler gives"):
        of(PLANE).sample(5, KEY, sampler=lambda *_, eps: jnp.zeros(shape))
    with pytest.raises(UserError, match="sampler gives"):
        of(PLANE).sample(5, KEY, sampler=lambda *_, eps: (jnp.zeros((5, 2)), 1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": partial(euler_sample, steps=5)}, "ODE"),
        ({"sampler": partial(ode_draw, denoised=True)}, "ODE"),
        ({"solver": PublishedRK45()}, "PublishedRK45"),
    ],
)
def test_samplers_without_a_density_are_refused(options, words):
    model = of(PLANE, solver=options.pop("solver", Multistep()))
    with pytest.raises(UserError, match=words):
        model.sample(3, KEY, log_prob=True, **options)


def test_log_p_of_samples_is_in_the_scale_of_the_data():
    """At t = 0.05 alpha is 0.985, and its logarithm is 0.03 nats in two dimensions."""
    model = of(PLANE, VP, 0.05, bijector=Affine(1.0, 2.0))
    found = model.sample(5, KEY, log_prob=True)
    back = model.log_prob(found.x, OTHER, solver=Multistep(128))
    np.testing.assert_allclose(found.log_prob, back.log_prob, atol=5e-3)
