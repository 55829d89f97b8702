"""The scale of the informed decoder, fitted to a few images; and what the decoder is worth.

One number is fitted: the standard deviation of the decoder `InformedDecoder` of `decoders.py`. The
estimator `ByOde` takes this decoder.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Key, Shaped

from scoremle.core.condition import conditioned, parted, rows_of
from scoremle.core.keys import image_keys, normal
from scoremle.core.programs import OfModels
from scoremle.core.sde import SDE
from scoremle.likelihood.decoders import InformedDecoder, decoding_cost
from scoremle.likelihood.image_model import ImageModel, pixels_of
from scoremle.likelihood.pilot import PILOT_IMAGES
from scoremle.likelihood.scales import ScaleOfOthers
from scoremle.numerics import as_pytree, predict_ranged
from scoremle.resumable import Arrays, resumable_map
from scoremle.types import IntImages, NoiseFn, PRNGKey, Scalar

__all__ = ["decoder_worth", "fitted_scale", "scale_of_others"]

IMAGES_AT_ONCE = 64
# The scale is looked for from this share of a bin to the whole range of the data.
SMALLEST = 1e-2


def fitted_scale(model: ImageModel, images: Shaped[np.ndarray, "n h w c"], key: PRNGKey) -> float:
    """The scale of `InformedDecoder` under which the integers of these images are likeliest.

    By one network evaluation for each image, and a search in one dimension; a hundred images are
    enough. Scores of these images gain by it, if less than a nat all together: `scale_of_others`
    is for images that are then scored. Raises UserError for images of another type or range than
    the model's.

    Args:
        model: one of images.
        images: [n h w c] integers.
        key: draws the noise.
    """
    images = pixels_of(model).checked(np.asarray(images), np.shape(images)[1:])
    return _likeliest(model, _predicted(model, images, key)[0], images)


def scale_of_others(
    model: ImageModel, images: Integer[np.ndarray, "n h w c"], key: PRNGKey
) -> ScaleOfOthers:
    """A scale for these images and all others that is fitted to no image that it decodes.

    The first 16 of them are halved, or all if they are fewer. The first half has the scale that is
    fitted to the second, and every other image that of the first. An image that is alone has that
    of the noise. Equal images count as one.

    Args:
        model: one of images.
        images: [n h w c] integers.
        key: draws the noise.
    """
    _, firsts = np.unique(images[: 2 * PILOT_IMAGES], axis=0, return_index=True)
    few = images[np.sort(firsts)]
    errors, half = _predicted(model, few, key)[0], (len(few) + 1) // 2
    noise = float(jnp.exp(-model.sde.log_snr(jnp.asarray(model.eps)) / 2))
    scale, of_these = (
        _likeliest(model, errors[part], few[part]) if len(few[part]) else noise
        for part in (slice(half), slice(half, None))
    )
    return ScaleOfOthers(few[:half], scale, of_these)


def decoder_worth(
    model: ImageModel, decoder: InformedDecoder, images: Shaped[np.ndarray, "n h w c"],
    key: PRNGKey,
) -> tuple[float, float]:  # fmt: skip
    """Bits/dim of decoding the last noise to integers: by this decoder, and by a flat one.

    Means over these images: the first takes one network evaluation for each image, the second
    has no random error.

    Args:
        model: one of images.
        decoder: the one to compare.
        images: [n h w c] integers.
        key: draws the noise.
    """
    (error, v), t = _predicted(model, images, key), jnp.full(len(images), model.eps)
    informed = -decoder.log_prob(error, model.sde, jnp.asarray(images), t, v)
    points = jnp.asarray(model.points, float)
    flat = decoding_cost(points, model.sde.log_snr(jnp.asarray(model.eps)))[images]
    bits = math.log(2)
    return float(jnp.mean(informed)) / (images[0].size * bits), float(jnp.mean(flat)) / bits


def _likeliest(
    model: ImageModel, error: Float[Array, "n h w c"], images: Integer[np.ndarray, "n h w c"]
) -> float:
    """The scale under which these integers are, by the errors of the predicted noise.

    In three digits, which are the same on machines that round otherwise, as a rule.
    """
    from scipy.optimize import minimize_scalar  # slow to import, and seldom needed

    pixels, t = pixels_of(model), jnp.full(len(images), model.eps)
    points, x = jnp.asarray(model.points, float), jnp.asarray(images)
    width = pixels.high - pixels.low
    ends = math.log(SMALLEST * width / pixels.levels), math.log(width)
    found = minimize_scalar(
        lambda at: float(_nats(at, points, error, model.sde, x, t)), bounds=ends, method="bounded"
    )
    return float(f"{math.exp(found.x):.3g}")


@jax.jit
def _nats(
    log_scale: Array, points: Array, error: Array, sde: SDE, x: IntImages, t: Array
) -> Array:
    decoder = InformedDecoder(points, jnp.exp(log_scale))
    return -jnp.mean(decoder.log_prob(error, sde, x, t))


def _predicted(
    model: ImageModel, images: Shaped[np.ndarray, "n h w c"], key: PRNGKey
) -> tuple[Float[Array, "n h w c"], Float[Array, "n h w c"] | None]:
    """Error of the predicted noise, and v, for one draw of each image at the smallest time."""
    points = jnp.asarray(model.points, float)
    noise, condition = parted(model.noise)
    rows = rows_of(condition, len(images))

    def work(_: int, indices: Integer[np.ndarray, " size"]) -> Arrays:
        under = as_pytree(conditioned(noise, jax.tree.map(lambda row: row[indices], rows)))
        keys = image_keys(key, indices)
        error, v = _at_the_end(under, model.sde, model.eps, points, images[indices], keys)
        return {"error": np.asarray(error)} | ({} if v is None else {"v": np.asarray(v)})

    found = resumable_map(work, len(images), size=IMAGES_AT_ONCE)
    return jnp.asarray(found["error"][0]), jnp.asarray(found["v"][0]) if "v" in found else None


@OfModels
def _at_the_end(
    noise: NoiseFn, sde: SDE, eps: Scalar, points: Float[Array, " levels"], x: IntImages,
    keys: Key[Array, " b"],
) -> tuple[Array, Array | None]:  # fmt: skip
    y, t = points[x], jnp.full(len(x), eps)
    z = normal(keys, y)
    prediction, v = predict_ranged(noise, sde.perturb(y, t, z), t)
    return prediction - z, v
