"""The discrete decoder: its cost by simulation, and a bound on a distribution that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.oracles import SDES, Gaussian, Mixture
from scipy.special import log_softmax
from scipy.stats import norm

from scoremle import ByElbo, ByOde, ScoreModel, UserError
from scoremle.core.dequantize import truncation_start
from scoremle.core.pixels import Pixels
from scoremle.core.times import UniformLogSNR
from scoremle.likelihood.decoders import DiscreteDecoder, InformedDecoder, decoding_cost
from scoremle.likelihood.elbo import elbo
from scoremle.likelihood.steps import BySteps

VP = SDES["vp"]
LEVELS = 16
PIXELS = Pixels(LEVELS)
POINTS = np.asarray(PIXELS.encode(np.arange(LEVELS), np.full(LEVELS, 0.5)), np.float64)


@pytest.mark.parametrize("log_snr", [-2.0, 3.0, 5.5, 30.0])
def test_the_cost_is_that_of_decoding_noisy_levels(log_snr):
    s, n = np.exp(-log_snr / 2), 20_000
    e = np.random.default_rng(0).normal(size=(n, 1))
    cost = decoding_cost(jnp.asarray(POINTS), jnp.asarray(log_snr))
    for k in range(0, LEVELS, 5):
        z = POINTS[k] + s * e
        simulated = -log_softmax(-(((z - POINTS) / s) ** 2) / 2, axis=1)[:, k]
        error = simulated.std() / np.sqrt(n)
        assert abs(simulated.mean() - cost[k]) < 4 * error + 1e-6


def test_the_cost_at_the_published_end():
    """256 levels on [-1, 1], log-SNR 13.3: a hundredth of a bit, half of it at the ends."""
    pixels = Pixels()
    points = np.asarray(pixels.encode(np.arange(256), np.full(256, 0.5)), np.float64)
    bits = np.asarray(decoding_cost(jnp.asarray(points), jnp.asarray(13.3))) / np.log(2)
    np.testing.assert_allclose(bits[1:-1], 0.01045, atol=1e-4)
    np.testing.assert_allclose(bits[[0, -1]], 0.01045 / 2, atol=1e-4)


def bound(noise, x, start, draws=256, **options):
    times = UniformLogSNR(VP, start, stratified=True)
    run = jax.jit(
        lambda x, key: elbo(
            noise,
            VP,
            jnp.asarray(POINTS, jnp.float32)[x],
            key,
            eps=start,
            times=times,
            draws=draws,
            decoder=DiscreteDecoder(POINTS),
            integers=x,
            **options,
        )
    )
    found = run(jnp.asarray(x), jax.random.key(0))
    return jax.tree.map(lambda a: np.asarray(a, np.float64), found)


def discretised_gaussian():
    """Masses of the levels, and the exact noise of the distribution on their points."""
    edges = np.concatenate([[-np.inf], (POINTS[1:] + POINTS[:-1]) / 2, [np.inf]])
    mass = np.diff(norm.cdf(edges, loc=0.15, scale=0.3))
    data = Mixture.of(mass, POINTS[:, None], np.zeros(LEVELS))
    return mass, data.noise(VP)


@pytest.mark.parametrize("matching", ["denoising", "sliced"])
def test_a_discretised_gaussian_is_bounded_closely(matching):
    """sum_k P(k) bound(k) lies above the entropy by what the decoder does not know of P, and
    the prior's mismatch: both small."""
    mass, noise = discretised_gaussian()
    start, copies = truncation_start(VP, 1e-5, PIXELS), 32
    x = np.repeat(np.arange(LEVELS), copies)[:, None]
    found = bound(noise, x, start, matching=matching)
    values = -found.log_prob.reshape(LEVELS, copies)
    mean, error = mass @ values.mean(axis=1), np.sqrt(
        mass**2 @ (values.var(axis=1, ddof=1) / copies)
    )  # fmt: skip
    entropy = -mass @ np.log(mass)
    assert entropy - 4 * error < mean < entropy + 4 * error + 0.015
    assert error < 0.05
    stated = np.sqrt(np.mean(found.stderr**2))
    assert 0.7 < np.sqrt(values.var(axis=1, ddof=1).mean()) / stated < 1.4
    assert found.bounds == "probability"
    total = found.prior + found.diffusion + found.reconstruction
    np.testing.assert_allclose(found.log_prob, -total, rtol=1e-5, atol=1e-5)


def test_a_wrong_noise_is_a_looser_bound():
    mass, noise = discretised_gaussian()
    start = truncation_start(VP, 1e-5, PIXELS)
    x = np.repeat(np.arange(LEVELS), 8)[:, None]

    def mean(noise):
        return mass @ -bound(noise, x, start).log_prob.reshape(LEVELS, 8).mean(axis=1)

    wrong = Gaussian.of([0.15], [0.3**2]).noise(VP)  # of the Gaussian without its levels
    assert mean(wrong) > mean(noise) + 0.2


@pytest.mark.parametrize("levels", [2, LEVELS - 1, LEVELS + 1])
def test_a_decoder_of_other_levels_than_the_images_is_refused(levels):
    """JAX takes the last of too few points for all beyond: the value is better, and false."""
    model = ScoreModel(lambda x, t: x, VP, 1e-3, (1, 2, 1), PIXELS)
    points, images = Pixels(levels).points, np.zeros((1, 1, 2, 1), np.uint8)
    for estimator in (
        ByElbo(4, decoder=DiscreteDecoder(points)),
        ByOde(decoder=InformedDecoder(points, 0.1)),
        BySteps(np.arange(1, 5) / 4, decoder=DiscreteDecoder(points)),
    ):
        with pytest.raises(UserError, match=f"{levels} levels"):
            model.score(images, estimator=estimator)


@pytest.mark.usefixtures("unchecked")
def test_integers_of_another_shape_than_the_data_are_refused():
    """One row of them was that of all examples."""
    x = np.zeros((2, 1), np.int32)
    with pytest.raises(UserError, match="shape of x"):
        elbo(
            lambda x, t: x, VP, jnp.asarray(POINTS, jnp.float32)[x], jax.random.key(0),
            eps=1e-3, times=UniformLogSNR(VP, 1e-3), draws=4, decoder=DiscreteDecoder(POINTS),
            integers=x[:1],
        )  # fmt: skip


def test_the_discrete_decoder_needs_integers():
    x = jnp.zeros((2, 1))
    with pytest.raises(UserError, match="integers="):
        DiscreteDecoder(POINTS).known(VP, x, None, jnp.full(2, 0.5))
