"""Integers and reals, and the constants that the change of scale puts into bits per dimension."""

import jax.numpy as jnp
import numpy as np
import pytest

from scoremle.core.pixels import Pixels, bits_per_dim
from scoremle.errors import UserError

SCALES = [Pixels(), Pixels(256, 0.0, 1.0), Pixels(17), Pixels(2, -0.5, 0.5), Pixels(17, 0.0, 16.0)]
every_scale = pytest.mark.parametrize("pixels", SCALES, ids=str)


@every_scale
@pytest.mark.parametrize("u", [0.001, 0.25, 0.5, 0.999])
def test_round_trip(pixels, u):
    x = jnp.arange(pixels.levels).reshape(1, -1, 1, 1)
    y = pixels.encode(x, jnp.full(x.shape, u))
    assert y.min() > pixels.low and y.max() < pixels.high
    expected = pixels.low + (pixels.high - pixels.low) * (np.asarray(x) + u) / pixels.levels
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    back = pixels.decode(y)
    assert jnp.issubdtype(back.dtype, jnp.integer)
    np.testing.assert_array_equal(back, x)


@every_scale
def test_lower_edges_belong_to_their_bin(pixels):
    """u = 0 is a legal noise: rounding must not put the edge into the bin below."""
    x = jnp.arange(pixels.levels).reshape(1, -1, 1, 1)
    np.testing.assert_array_equal(pixels.decode(pixels.encode(x, jnp.zeros(x.shape))), x)


@every_scale
def test_decode_clips(pixels):
    ends = jnp.asarray([pixels.low - 3, pixels.low, pixels.high, pixels.high + 3])
    ends = ends.reshape(1, 2, 2, 1)
    top = pixels.levels - 1
    np.testing.assert_array_equal(pixels.decode(ends).ravel(), [0, 0, top, top])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_encode_takes_any_integers(dtype):
    x = np.array([0, 127, 128, 255], dtype).reshape(1, 2, 2, 1)
    y = Pixels().encode(jnp.asarray(x), jnp.full(x.shape, 0.5))
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y.ravel(), (x.ravel() + 0.5) / 128 - 1, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16])
@pytest.mark.parametrize("u", [0, 1, False, np.uint8(0), np.zeros((1, 4), np.uint8), [[0] * 4]])
def test_noise_of_whole_numbers_does_not_wrap_around(dtype, u, unchecked):
    """Also with ends that are whole numbers, by which a sum of integers would be multiplied."""
    x, pixels = np.array([[0, 60, 119, 120]], dtype), Pixels(121, -1, 9)
    for given in (x, jnp.asarray(x), x.tolist()):
        y = pixels.encode(given, u)
        np.testing.assert_allclose(y, -1 + 10 * (x.astype(float) + np.float64(u)) / 121, rtol=1e-5)


@every_scale
def test_log_det_is_the_derivative(pixels):
    zero = jnp.zeros((1, 1, 1, 1), jnp.int32)
    step = pixels.encode(zero, jnp.ones(zero.shape)) - pixels.encode(zero, jnp.zeros(zero.shape))
    assert pixels.log_det_per_dim == pytest.approx(np.log(step.item()), abs=1e-5)


@every_scale
def test_uniform_density_costs_log2_of_the_levels(pixels):
    dims = 12
    log_prob = jnp.full(3, -dims * np.log(pixels.high - pixels.low))
    np.testing.assert_allclose(
        bits_per_dim(log_prob, pixels, dims), np.log2(pixels.levels), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("pixels", "constant"),
    [(Pixels(), 7), (Pixels(256, 0.0, 1.0), 8), (Pixels(17), np.log2(17 / 2))],
    ids=str,
)
def test_constants(pixels, constant):
    bpd = bits_per_dim(jnp.asarray([0.0, -30 * np.log(2)]), pixels, 10)
    np.testing.assert_allclose(bpd, [constant, constant + 3], rtol=1e-6)


def test_golden_scaling(golden):
    arrays = golden("likelihood")
    y = Pixels().encode(jnp.asarray(arrays["image_uint8"], jnp.int32), jnp.asarray(arrays["u"]))
    np.testing.assert_allclose(y, arrays["data"], atol=2e-6)
    log_prob = arrays["vp/f64_tol1e-10_dop853/delta_logp"]
    log_prob = log_prob + arrays["vp/f64_tol1e-10_dop853/prior_logp"]
    bpd = bits_per_dim(jnp.asarray(log_prob), Pixels(), 768)
    np.testing.assert_allclose(bpd, arrays["vp/f64_tol1e-10_dop853/bpd"], rtol=1e-6)


def test_more_levels_than_a_byte_holds():
    pixels = Pixels(1024)
    x = jnp.arange(1024).reshape(1, -1, 1, 1)
    np.testing.assert_array_equal(pixels.decode(pixels.encode(x, jnp.full(x.shape, 0.5))), x)
    assert Pixels().decode(jnp.zeros((1, 1, 1, 1))).dtype == jnp.uint8


def test_the_grid_of_published_training_has_its_ends_on_the_ends():
    pixels = Pixels(17, -1.0, 1.0)
    np.testing.assert_allclose(
        pixels.encode_grid(np.array([0, 8, 16], np.uint8)), [-1.0, 0.0, 1.0], atol=1e-6
    )


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
@pytest.mark.parametrize("ends", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 0.5)])
def test_values_that_are_points_are_the_middles_of_their_bins(levels, ends):
    """The points, and the rule that documents state for who has low and high to say."""
    pixels, (a, b) = Pixels.of_points(levels, *ends), ends
    np.testing.assert_allclose(pixels.points, np.linspace(a, b, levels), atol=1e-12)
    w = (b - a) / (levels - 1)
    assert (pixels.low, pixels.high) == pytest.approx((a - w / 2, b + w / 2))


def test_the_first_value_beyond_the_levels_is_refused():
    images = np.full((1, 2, 2, 1), 16, np.uint8)
    assert Pixels(17).checked(images, (2, 2, 1)) is images
    with pytest.raises(UserError, match=r"0\.\.16"):
        Pixels(17).checked(images + np.uint8(1), (2, 2, 1))


@pytest.mark.parametrize("levels", [17, 256, 257, 65536])
def test_the_remedy_that_is_named_reaches_the_highest_level(levels, unchecked):
    pixels, unit = Pixels(levels), np.array([0.0, 1.0]).reshape(1, 1, 2, 1)
    wanted = np.asarray(pixels.decode(2 * unit - 1))
    for images in (unit, 2 * unit - 1, (levels - 1) * unit, wanted[0]):
        with pytest.raises(UserError, match="; try") as error:
            pixels.checked(images, (1, 2, 1))
        _, remedy = str(error.value).split("; try ")
        made = eval(remedy, {"np": np, "images": images})
        np.testing.assert_array_equal(pixels.checked(made, (1, 2, 1)), wanted)


def test_integers_are_scored_where_the_shape_is_one_of_images():
    with pytest.raises(UserError, match=r"\(1, 6, 1\)"):
        Pixels(17).checked(np.zeros((2, 6), np.uint8), (6,))


@pytest.mark.parametrize(
    "call",
    [
        lambda p: p.encode(np.full((1, 2), 17), 0.5),
        lambda p: p.encode(np.full((1, 2), -1), 0.5),
        lambda p: p.encode(np.full((1, 2), 0.5), 0.5),
        lambda p: p.encode(np.zeros((1, 2), int), 1.5),
        lambda p: p.encode(np.zeros((1, 2), int), np.nan),
        lambda p: p.encode_grid(np.full((1, 2), 17)),
        lambda p: p.decode(np.full((1, 2), np.nan)),
        lambda p: bits_per_dim(np.zeros(1), 256, 3),
    ],
)
def test_what_is_no_integer_and_no_noise_is_refused(call, unchecked):
    with pytest.raises(UserError, match=r"must|finite"):
        call(Pixels(17))
