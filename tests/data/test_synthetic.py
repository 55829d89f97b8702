"""Images whose probabilities are known, and the bits/dim that come out for a perfect model."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.oracles import schedule

import scoremle
from scoremle import data
from scoremle.data.readers import synthetic

LEVELS, DIMS = synthetic.LEVELS, 64
IMAGES = data.load("synthetic")


def test_the_images_are_those_of_the_probabilities():
    counts = {"train": len(IMAGES.train), "test": len(IMAGES.test)}
    assert counts == synthetic.COUNTS and IMAGES.levels == LEVELS
    assert IMAGES.shape == (8, 8, 1) and IMAGES.facts["source"] == "scoremle"
    masses = np.exp(synthetic.log_masses())
    np.testing.assert_allclose(masses.sum(axis=-1), 1, rtol=1e-12)
    # Each pixel's histogram, and the covariance that only the choice of a direction makes.
    expected = masses.mean(axis=0)
    pixels = IMAGES.train.reshape(-1, DIMS)
    found = np.stack([np.bincount(p, minlength=LEVELS) for p in pixels.T]) / len(pixels)
    error = np.sqrt(expected * (1 - expected) / len(pixels))
    assert (np.abs(found - expected) < 5 * error + 2e-4).all()
    levels = np.arange(LEVELS)
    means = masses @ levels
    variances = masses @ levels**2 - means**2
    covariance = np.cov(means.T, bias=True) + np.diag(variances.mean(axis=0))
    np.testing.assert_allclose(np.cov(pixels.T), covariance, atol=0.5)


@pytest.mark.parametrize("split", synthetic.COUNTS)
def test_the_hash_of_the_source_is_of_both_splits(split, monkeypatch):
    monkeypatch.setitem(synthetic.COUNTS, split, 9)
    other = data.load("synthetic").facts
    assert other["source_sha256"] != IMAGES.facts["source_sha256"]
    assert (other["train_sha256"] != IMAGES.facts["train_sha256"]) == (split == "train")


def test_probabilities_add_up_to_one(monkeypatch):
    """Over all images of 2x2 pixels and three levels."""
    monkeypatch.setattr(synthetic, "LEVELS", 3)
    monkeypatch.setattr(synthetic, "SIDE", 2)
    every = np.array(list(itertools.product(range(3), repeat=4)), np.uint8)
    total = np.exp(synthetic.log_prob(every.reshape(-1, 2, 2, 1))).sum()
    np.testing.assert_allclose(total, 1, rtol=1e-12)


def perfect_noise(sde, pixels):
    """The exact noise prediction of the dequantized images: each pixel is uniform in its bin."""
    masses = jnp.asarray(np.exp(synthetic.log_masses()))
    edges = jnp.linspace(pixels.low, pixels.high, LEVELS + 1)

    def log_density(x, t):
        alpha, sigma = schedule(sde, t, jnp)
        below = jax.scipy.special.ndtr((x[:, None] - alpha * edges) / sigma)
        each = jnp.log(jnp.einsum("kil,il->ki", masses, below[:, :-1] - below[:, 1:]))
        return jax.nn.logsumexp(each.sum(axis=1))

    def noise(x, t):
        score = jax.vmap(jax.grad(log_density))(x.reshape(len(x), -1), t)
        return -sde.sigma(t)[:, None, None, None] * score.reshape(x.shape)

    return noise


@pytest.mark.long
def test_a_perfect_model_has_the_bits_of_the_probabilities(x64):
    sde, pixels, eps, n = scoremle.VP(), scoremle.Pixels(LEVELS), 1e-4, 40
    images = IMAGES.test[:n]
    key_u, key = jax.random.split(jax.random.key(0))
    y = pixels.encode(images, jax.random.uniform(key_u, images.shape))
    times = scoremle.UniformLogSNR(sde, eps, stratified=True)
    noise = perfect_noise(sde, pixels)
    bound = jax.jit(
        lambda y: scoremle.elbo(noise, sde, y, key, eps=eps, times=times, draws=64)
    )(y)
    bits = scoremle.bits_per_dim(bound.log_prob, pixels, DIMS)
    truth = -synthetic.log_prob(images) / (DIMS * math.log(2))
    error = np.sqrt(np.mean((bits - truth) ** 2))
    stated = np.sqrt(np.mean(bound.stderr**2)) / (DIMS * math.log(2))
    assert 0.7 < error / stated < 1.3
    assert abs(np.mean(bits - truth)) < 3 * stated / math.sqrt(n)
