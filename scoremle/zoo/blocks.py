"""Blocks shared by the U-Nets of diffusers and of guided diffusion.

Both are the U-Net of Ho et al. 2020 (DDPM), arXiv 2006.11239, with the changes of Dhariwal and
Nichol 2021 (ADM), arXiv 2105.05233: residual blocks that resample, several heads of attention, a
time embedding that scales and shifts the second normalisation.

Parameters are float32. ``dtype`` is what convolutions compute in; normalisation, softmax and time
embedding take at least float32.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from scoremle.errors import UserError
from scoremle.nn.layers import Activation, wide
from scoremle.types import AnyArray, Images

Times = Num[AnyArray, " b"]
Embedding = Float[Array, "b _e"]
Channels = Float[Array, "b *_pixels _c"]


def conv(name: str, features: int, *, dtype: DTypeLike, size: int = 3, **options: Any) -> nn.Conv:
    """A convolution that keeps the size of the image, unless the options say otherwise."""
    padding = options.pop("padding", size // 2)
    return nn.Conv(features, (size, size), padding=padding, dtype=dtype, name=name, **options)


def dense_layer(name: str, features: int, *, dtype: DTypeLike) -> nn.Dense:
    return nn.Dense(features, dtype=wide(dtype), name=name)


def normalized(
    name: str | None, h: Channels, groups: int, eps: float, *, dtype: DTypeLike, **options: Any
) -> Channels:
    """``h`` after a normalisation of groups of its channels. UserError if they do not split so."""
    channels = h.shape[-1]
    if groups < 1 or channels % groups:
        raise UserError(
            f"{channels} channels do not split into {groups} equal groups for normalisation: "
            "change the number of channels or of groups"
        )
    # The fast variance, E[x^2] - E[x]^2, loses digits where the mean is large.
    options["use_fast_variance"] = False
    return nn.GroupNorm(groups, epsilon=eps, dtype=wide(dtype), name=name, **options)(h)


def timestep_embedding(
    t: Times, size: int, *, cos_first: bool = True, freq_shift: float = 0
) -> Embedding:
    """sin and cos of t times frequencies that fall geometrically from 1 towards 1e-4."""
    half = size // 2
    # The published networks were trained with these roundings to float32, whatever the dtype here.
    exponents = -math.log(1e4) * np.arange(half, dtype=np.float32) / (half - freq_shift)
    phases = t[:, None] * np.exp(exponents, dtype=np.float32)
    waves = [jnp.sin(phases), jnp.cos(phases)]
    joined = jnp.concatenate(waves[::-1] if cos_first else waves, axis=1)
    return jnp.pad(joined, ((0, 0), (0, size % 2)))


class TimestepEmbedding(nn.Module):
    """Two dense layers."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, waves: Embedding) -> Embedding:
        hidden = nn.swish(dense_layer("linear_1", self.features, dtype=self.dtype)(waves))
        return dense_layer("linear_2", self.features, dtype=self.dtype)(hidden)


class ResnetBlock(nn.Module):
    """(x + F(x, t)) / ``divisor``.

    ``groups``: of the two normalisations. ``resize`` halves or doubles both x and what enters F.
    ``shortcut``: x goes through a 1x1 convolution even where the number of channels stays.
    """

    features: int
    groups: tuple[int, int]
    eps: float
    act: Activation
    scale_shift: bool
    dtype: DTypeLike
    divisor: float = 1.0
    resize: Callable[[Images], Images] | None = None
    shortcut: bool = False

    @nn.compact
    def __call__(self, x: Images, embedding: Embedding) -> Images:
        h = self.act(self._normalized("norm1", x, self.groups[0]))
        if self.resize:
            h, x = self.resize(h), self.resize(x)
        h = conv("conv1", self.features, dtype=self.dtype)(h)
        width = (1 + self.scale_shift) * self.features
        project = dense_layer("time_emb_proj", width, dtype=self.dtype)
        bias = project(self.act(embedding))[:, None, None]
        if self.scale_shift:
            scale, shift = jnp.split(bias, 2, axis=-1)
            h = self._normalized("norm2", h, self.groups[1]) * (1 + scale) + shift
        else:
            h = self._normalized("norm2", h + bias, self.groups[1])
        h = conv("conv2", self.features, dtype=self.dtype)(self.act(h))
        if self.shortcut or x.shape[-1] != self.features:
            x = conv("conv_shortcut", self.features, size=1, dtype=self.dtype)(x)
        return (x + h) / self.divisor

    def _normalized(self, name: str, h: Images, groups: int) -> Images:
        return normalized(name, h, groups, self.eps, dtype=self.dtype)


def check_labels(labels: Any, wanted: bool) -> None:
    """UserError for labels of a network that takes none, and for none of one that needs them."""
    if (labels is None) == wanted:
        what = "needs class labels" if wanted else "takes no class labels: leave them out"
        raise UserError(f"the network {what}")


def class_rows(labels: Any, count: int) -> Array:
    """Rows of classes in a table of ``count``; of a negative class one beyond it, which is NaN.

    Raises UserError for what are not whole numbers, one for each image.
    """
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.ndim != 1:
        form = f"{labels.dtype} of shape {labels.shape}"
        raise UserError(f"class labels must be whole numbers, one for each image, not {form}")
    return jnp.where(labels < 0, jnp.int32(count), labels)


def check_image_shape(shape: tuple[int, ...], channels: int, levels: int) -> None:
    """UserError unless images of a shape have so many channels and can be halved so often."""
    _, height, width, found = shape
    if found != channels:
        raise UserError(f"images have {found} channels, and the network takes {channels}")
    multiple = 2 ** (levels - 1)
    if height % multiple or width % multiple:
        raise UserError(
            f"images are {height}x{width}, and the network halves them {levels - 1} times: pad "
            f"height and width to multiples of {multiple}"
        )
