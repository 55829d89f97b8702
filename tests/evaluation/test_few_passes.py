"""The error of a mean over a few passes, whose spread alone hardly tells it."""

import io

import numpy as np
import pytest
from PIL import Image

from scoremle.errors import UserError
from scoremle.evaluation.baselines import png_bpd
from scoremle.evaluation.statistics import error_of_few, half_interval, moderated

RNG = np.random.default_rng(0)


def covered(deviations, passes, repeats=400):
    """How often twice the error, and twice the spread of an image's own, cover."""
    hits = []
    for _ in range(repeats):
        values = deviations * RNG.normal(size=(passes, len(deviations)))
        own = values.std(axis=0, ddof=1) / np.sqrt(passes)
        mean = abs(values.mean(axis=0))
        hits.append([(mean <= 2 * error_of_few(own, passes)).mean(), (mean <= 2 * own).mean()])
    return np.mean(hits, axis=0)


@pytest.mark.parametrize("passes", [2, 4, 10])
@pytest.mark.parametrize("spread", [0.0, 0.4, 1.0])
def test_twice_the_error_covers_95_percent(passes, spread):
    """Of images that are alike, and of images that are not; their own spread does not."""
    share, own = covered(np.exp(spread * RNG.normal(size=100)), passes)
    assert 0.925 < share < 0.975
    assert own < {2: 0.75, 4: 0.88, 10: 0.94}[passes]


@pytest.mark.parametrize(("passes", "factor"), [(2, 12.706), (4, 3.182), (10, 2.262)])
def test_of_a_single_image_it_is_students(passes, factor):
    np.testing.assert_allclose(error_of_few(np.array([0.1]), passes), 0.1 * factor / 2, rtol=1e-3)
    assert np.isnan(error_of_few(np.array([0.1]), 1)).all()


def test_variances_are_drawn_towards_their_distribution():
    """Drawn from the one that is assumed, with 8 degrees of freedom and a variance of 0.25."""
    true = 0.25 * 8 / RNG.chisquare(8, 20_000)
    found = true * RNG.chisquare(3, len(true)) / 3
    drawn, freedom = moderated(found, 3)
    assert freedom == pytest.approx(8 + 3, rel=0.1)
    np.testing.assert_allclose(drawn, (8 * 0.25 + 3 * found) / 11, rtol=0.1)


def test_few_images_know_no_more_than_all_their_passes():
    assert moderated(np.full(5, 2.0), 3)[1] == 5 * 3
    share, _ = covered(np.ones(5), passes=2, repeats=2000)
    assert share > 0.9


def test_passes_without_spread_change_nothing():
    for variance in (np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 1.0, 1.0, 1.0])):
        drawn, freedom = moderated(variance, 3)
        assert (drawn == variance).all() and freedom == 3


@pytest.mark.parametrize("images", [2, 3, 8, 40])
def test_the_interval_of_a_mean_covers_95_percent(images):
    """Over images: twice the standard error of two of them covers 70 %."""
    values = RNG.normal(size=(10_000, images))
    stderr = values.std(axis=1, ddof=1) / np.sqrt(images)
    half = np.array([half_interval(error, images) for error in stderr])
    assert 0.94 < (abs(values.mean(axis=1)) <= half).mean() < 0.96
    assert np.isnan(half_interval(0.1, 1))


@pytest.mark.parametrize("failed", [np.nan, np.inf])
def test_an_image_whose_pass_failed_moves_no_other_error(failed):
    stderr = np.array([0.1, 0.2, 0.15, 0.12, 0.11])
    found = error_of_few(np.insert(stderr, 2, failed), 2)
    assert np.isnan(found[2])
    np.testing.assert_array_equal(np.delete(found, 2), error_of_few(stderr, 2))
    assert np.isnan(error_of_few(np.full(5, failed), 2)).all()


def test_png_is_the_length_of_the_compressed_pixels():
    images = RNG.integers(0, 256, (2, 8, 8, 3)) // np.array([1, 255]).reshape(2, 1, 1, 1)
    images = images.astype(np.uint8)
    lengths = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG", optimize=True)
        lengths.append(len(file.getvalue()) - 8 - 25 - 12 - 12)  # signature and three chunks' rest
    np.testing.assert_allclose(png_bpd(images), 8 * np.array(lengths) / 192)
    assert png_bpd(images)[1] < 2 < 8 <= png_bpd(images)[0]
    assert png_bpd(images[..., :1]).shape == (2,)


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 5), (np.uint16, 3)])
def test_what_is_not_written_as_png_is_a_line(dtype, channels, unchecked):
    with pytest.raises(UserError, match="as PNG"):
        png_bpd(np.zeros((2, 4, 4, channels), dtype))


@pytest.mark.parametrize(("count", "pooled"), [(3, False), (4, True)])
def test_four_variances_show_a_common_value(count, pooled):
    variance = np.full(count, 2.0)
    shrunk, freedom = moderated(variance, 3)
    np.testing.assert_array_equal(shrunk, variance)
    assert freedom == (3 * count if pooled else 3)
    assert moderated(np.append(variance, 0.0), 3)[1] == 3  # nor with one that is none
