"""The simple densities against sums, samples and closed forms."""

import math

import numpy as np
import pytest
from scipy import stats

from scoremle.errors import UserError
from scoremle.evaluation.baselines import gaussian_bpd, histogram_bpd, png_bpd, uniform_bpd


def images_of(values, shape=(1, 1, 1)) -> np.ndarray:
    return np.asarray(values, np.uint8).reshape(-1, *shape)


@pytest.fixture
def correlated():
    """Integer images of 2x2 pixels that depend on each other."""
    rng = np.random.default_rng(0)
    mixing = np.array([[3.0, 0, 0, 0], [2, 2, 0, 0], [1, 1, 2, 0], [0, 1, 1, 3]])
    values = 10 + rng.normal(size=(400, 4)) @ mixing.T
    return images_of(np.clip(np.round(values), 0, 20), (2, 2, 1))


def test_uniform_is_the_logarithm_of_the_levels():
    bits = uniform_bpd(np.zeros((3, 2, 2, 1), np.uint8), 17)
    np.testing.assert_allclose(bits, np.full(3, math.log2(17)))


def test_histogram_counts_each_pixel_with_one_more_for_each_level():
    train = images_of([[0, 2], [0, 1], [1, 2]], (1, 2, 1))
    test = images_of([[0, 2], [2, 0]], (1, 2, 1))
    # Counts + 1 are (3, 2, 1) for the first pixel and (1, 2, 3) for the second, of 6 in all.
    expected = [-math.log2(3 / 6), -math.log2(1 / 6)]
    np.testing.assert_allclose(histogram_bpd(train, test, 3), expected)


def test_histogram_is_normalised():
    levels = 4
    train = images_of(np.random.default_rng(0).integers(0, levels, (50, 2)), (1, 2, 1))
    every = images_of([[a, b] for a in range(levels) for b in range(levels)], (1, 2, 1))
    probabilities = 2.0 ** (-2 * histogram_bpd(train, every, levels))
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)


def test_histogram_of_random_pixels_costs_their_entropy():
    rng = np.random.default_rng(0)
    p = np.array([0.5, 0.25, 0.125, 0.125])
    train, test = (images_of(rng.choice(4, (20_000, 2), p=p), (1, 2, 1)) for _ in range(2))
    bits = histogram_bpd(train, test, 4)
    error = bits.std() / len(bits) ** 0.5
    assert bits.mean() == pytest.approx(1.75, abs=4 * error)


def test_values_beyond_the_levels_are_refused():
    images = images_of([0, 3])
    for train, test in ((images, images[:1]), (images[:1], images)):
        with pytest.raises(UserError, match="one is 3"):
            histogram_bpd(train, test, 3)


IMAGES = images_of([0, 3], (1, 1, 1))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (IMAGES / 255, "not float64"),
        (IMAGES.astype(int) - 1, "not int64"),
        (IMAGES[0], "of shape"),
        (IMAGES[..., :0], "of shape"),
        ("images", "not an array"),
    ],
)
def test_what_are_no_integer_images_is_a_line(wrong, words, unchecked):
    for measure, *given in (
        (png_bpd, wrong), (uniform_bpd, wrong, 256),
        (gaussian_bpd, wrong, IMAGES), (gaussian_bpd, IMAGES, wrong),
        (histogram_bpd, wrong, IMAGES, 256), (histogram_bpd, IMAGES, wrong, 256),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            measure(*given)


def test_images_of_another_size_or_none_to_train_on_are_a_line(unchecked):
    for train in (np.zeros((3, 1, 2, 1), np.uint8), IMAGES[:0]):
        for measure, *levels in ((gaussian_bpd,), (histogram_bpd, 256)):
            with pytest.raises(UserError, match="of one size"):
                measure(train, IMAGES, *levels)


def test_gaussian_is_the_mean_over_the_dequantization_noise(correlated):
    train, test = correlated[:300], correlated[300:303]
    flat = train.reshape(len(train), -1).astype(float)
    model = stats.multivariate_normal(
        flat.mean(axis=0) + 0.5, np.cov(flat, rowvar=False, bias=True) + np.eye(4) / 12
    )
    u = np.random.default_rng(1).random((100_000, 4))
    for image, bits in zip(test, gaussian_bpd(train, test), strict=True):
        sampled = -model.logpdf(image.reshape(-1) + u) / (4 * math.log(2))
        error = sampled.std() / len(sampled) ** 0.5
        assert bits == pytest.approx(sampled.mean(), abs=4 * error)


def test_gaussian_on_its_own_training_images_costs_its_entropy(correlated):
    flat = correlated.reshape(len(correlated), -1).astype(float)
    covariance = np.cov(flat, rowvar=False, bias=True) + np.eye(4) / 12
    entropy = stats.multivariate_normal(np.zeros(4), covariance).entropy()
    bits = gaussian_bpd(correlated, correlated)
    assert bits.mean() == pytest.approx(entropy / (4 * math.log(2)), rel=1e-12)


def test_gaussian_is_an_upper_bound_on_the_cost_of_the_integers(correlated):
    """Jensen: the mean of -log p(x + u) is at least -log of the mean of p, which sums to one."""
    levels, one_pixel = 21, correlated[:, :1, :1]
    every = images_of(np.arange(levels))
    bits = gaussian_bpd(one_pixel, every)
    flat = one_pixel.reshape(-1).astype(float)
    model = stats.norm(flat.mean() + 0.5, math.sqrt(flat.var() + 1 / 12))
    exact = -np.log2(np.diff(model.cdf(np.arange(levels + 1))))
    assert np.all(bits >= exact)


def test_correlated_pixels_are_cheaper_for_the_gaussian(correlated):
    """It knows of the covariance; without it, the entropy would be that of independent pixels."""
    flat = correlated.reshape(len(correlated), -1).astype(float)
    independent = stats.norm(scale=np.sqrt(flat.var(axis=0) + 1 / 12)).entropy().mean()
    assert gaussian_bpd(correlated, correlated).mean() < independent / math.log(2) - 0.1
