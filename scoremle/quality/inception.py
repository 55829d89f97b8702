"""The Inception network whose features and classes FID, KID and the Inception score are made of.

The architecture is Inception-v3 (Szegedy et al., arXiv 1512.00567), as TensorFlow released it on
2015-12-05. It differs from the Inceptions of today's libraries, and each difference changes a FID:

- images are resized to 299 x 299 as TensorFlow 1 did, output pixel i from place i * old / 299,
  and scaled to (x - 128) / 128;
- the averages of the pooling branches leave out the padding, and the last block takes maxima;
- there are 1008 classes.

Batch normalisation is a fixed affine map here. ``from_state_dict`` folds it into the convolutions.
Products keep float32's digits on every device (no TF32), so that features don't depend on it.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Num

from scoremle.errors import UserError, in_short

__all__ = ["from_state_dict"]

SIDE = 299
CLASSES = 1008
BATCH_NORM_EPS = 1e-3
NAMES_SHOWN = 3
# Of a convolution and its batch normalisation, in a state dict.
PARTS = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")

Branches = tuple[Array, ...]


class Features(NamedTuple):
    """The mean over places of the last block, and logits without the classes' biases.

    The published Inception scores left the biases out.
    """

    pool: Float[Array, "b features"]
    logits: Float[Array, "b classes"]


def resize(x: Float[Array, "b h w c"], side: int = SIDE) -> Float[Array, "b side side c"]:
    """Bilinear, with the corners of pixels in place of their centres, as TensorFlow 1 did."""
    return _interpolate(_interpolate(x, 2, side), 1, side)


def _interpolate(x: Array, axis: int, side: int) -> Array:
    size = x.shape[axis]
    places = np.arange(side, dtype=np.float32) * np.float32(size / side)
    low = places.astype(int)
    share = np.expand_dims(places - low.astype(np.float32), [i for i in range(4) if i != axis])
    a = jnp.take(x, low, axis)
    b = jnp.take(x, np.minimum(low + 1, size - 1), axis)
    return a + (b - a) * share


def _conv(
    x: Array, name: str, features: int, kernel: tuple[int, int] = (1, 1), *, strides: int = 1,
    padding: str = "SAME",
) -> Array:  # fmt: skip
    """Convolution, with batch normalisation in its weights and biases, and ReLU."""
    highest = jax.lax.Precision.HIGHEST
    layer = nn.Conv(features, kernel, strides, padding, precision=highest, name=name)
    return nn.relu(layer(x))


def _row(x: Array, name: str, *layers: tuple[int, int, int]) -> Array:
    """Convolutions one after the other, of (features, height, width), with numbers from 1."""
    for i, (features, height, width) in enumerate(layers, 1):
        x = _conv(x, f"{name}_{i}", features, (height, width))
    return x


# Without padding, so that the image shrinks.
_narrow = partial(_conv, kernel=(3, 3), padding="VALID")
_average = partial(nn.avg_pool, window_shape=(3, 3), padding="SAME", count_include_pad=False)
_maximum = partial(nn.max_pool, window_shape=(3, 3), padding="SAME")
_halve = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))


class Mixed(nn.Module):
    """A block of the network: the branches of x, side by side."""

    branches: Callable[[Array], Branches]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return jnp.concatenate(self.branches(x), axis=-1)


def _block_a(x: Array, pool_features: int) -> Branches:
    return (
        _conv(x, "branch1x1", 64),
        _row(x, "branch5x5", (48, 1, 1), (64, 5, 5)),
        _row(x, "branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
        _conv(_average(x), "branch_pool", pool_features),
    )


def _block_b(x: Array) -> Branches:
    three = _row(x, "branch3x3dbl", (64, 1, 1), (96, 3, 3))
    return (
        _narrow(x, "branch3x3", 384, strides=2),
        _narrow(three, "branch3x3dbl_3", 96, strides=2),
        _halve(x),
    )


def _block_c(x: Array, inner: int) -> Branches:
    first, wide, high = (inner, 1, 1), (inner, 1, 7), (inner, 7, 1)
    return (
        _conv(x, "branch1x1", 192),
        _row(x, "branch7x7", first, wide, (192, 7, 1)),
        _row(x, "branch7x7dbl", first, high, wide, high, (192, 1, 7)),
        _conv(_average(x), "branch_pool", 192),
    )


def _block_d(x: Array) -> Branches:
    seven = _row(x, "branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1))
    return (
        _narrow(_conv(x, "branch3x3_1", 192), "branch3x3_2", 320, strides=2),
        _narrow(seven, "branch7x7x3_4", 192, strides=2),
        _halve(x),
    )


def _block_e(x: Array, pool: Callable[[Array], Array]) -> Branches:
    three = _conv(x, "branch3x3_1", 384)
    double = _row(x, "branch3x3dbl", (448, 1, 1), (384, 3, 3))
    return (
        _conv(x, "branch1x1", 320),
        _conv(three, "branch3x3_2a", 384, (1, 3)),
        _conv(three, "branch3x3_2b", 384, (3, 1)),
        _conv(double, "branch3x3dbl_3a", 384, (1, 3)),
        _conv(double, "branch3x3dbl_3b", 384, (3, 1)),
        _conv(pool(x), "branch_pool", 192),
    )


class Inception(nn.Module):
    """Features of colour images with values in 0..255, of any size."""

    @nn.compact
    def __call__(self, x: Num[Array, "b h w 3"]) -> Features:
        x = (resize(jnp.asarray(x, jnp.float32)) - 128) / 128
        x = _narrow(x, "Conv2d_1a_3x3", 32, strides=2)
        x = _narrow(x, "Conv2d_2a_3x3", 32)
        x = _halve(_conv(x, "Conv2d_2b_3x3", 64, (3, 3)))
        x = _conv(x, "Conv2d_3b_1x1", 80)
        x = _halve(_narrow(x, "Conv2d_4a_3x3", 192))
        for name, pool_features in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = Mixed(partial(_block_a, pool_features=pool_features), name=f"Mixed_{name}")(x)
        x = Mixed(_block_b, name="Mixed_6a")(x)
        for name, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = Mixed(partial(_block_c, inner=inner), name=f"Mixed_{name}")(x)
        x = Mixed(_block_d, name="Mixed_7a")(x)
        x = Mixed(partial(_block_e, pool=_average), name="Mixed_7b")(x)
        # This maximum may have been a slip. It is what every FID was made with.
        x = Mixed(partial(_block_e, pool=_maximum), name="Mixed_7c")(x)
        pool = jnp.mean(x, axis=(1, 2))
        highest = jax.lax.Precision.HIGHEST
        classes = nn.Dense(CLASSES, use_bias=False, precision=highest, name="fc")
        return Features(pool, classes(pool))


@cache
def shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, by a name such as Mixed_5b/branch1x1/kernel."""
    key, image = jax.random.key(0), jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.uint8)
    params = jax.eval_shape(Inception().init, key, image)["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}


def from_state_dict(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters by name from the arrays of the usual state dict (pt_inception-2015-12-05).

    Args:
        state: arrays by the names of PyTorch.

    Raises UserError, with the names, if arrays are missing or are not of this network.
    """
    needed = _torch_shapes()
    if missing := [name for name in needed if name not in state]:
        raise UserError(f"lacks {in_short(missing, NAMES_SHOWN)}")
    for name, shape in needed.items():
        if state[name].shape != shape:
            raise UserError(f"has {name} of shape {state[name].shape}, not {shape}")
    params = {"fc/kernel": state["fc.weight"].T}
    for layer in _convolutions():
        arrays = (state[f"{layer.replace('/', '.')}.{part}"] for part in PARTS)
        params[f"{layer}/kernel"], params[f"{layer}/bias"] = _fold(*arrays)
    return params


def _convolutions() -> list[str]:
    return sorted({name.removesuffix("/bias") for name in shapes() if name.endswith("/bias")})


def _torch_shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for layer in _convolutions():
        height, width, old, new = shapes()[f"{layer}/kernel"]
        for part in PARTS:
            shape = (new, old, height, width) if part == "conv.weight" else (new,)
            found[f"{layer.replace('/', '.')}.{part}"] = shape
    return found | {"fc.weight": shapes()["fc/kernel"][::-1]}


def _fold(
    weight: np.ndarray, scale: np.ndarray, shift: np.ndarray, mean: np.ndarray, var: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [h w in out] and bias of a convolution with its batch normalisation, in float64."""
    factor = scale / np.sqrt(np.float64(var) + BATCH_NORM_EPS)
    kernel = np.transpose(weight, (2, 3, 1, 0)) * factor
    return kernel.astype(np.float32), (shift - mean * factor).astype(np.float32)
