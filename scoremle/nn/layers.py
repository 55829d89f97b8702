"""The parts of the U-Net: residual blocks, attention, time embeddings, resampling layers.

A residual block maps x to x + F(x, t), with F = norm, act, conv twice and the time embedding as a
bias in between: Ho et al. 2020 (DDPM), arXiv 2006.11239. The BigGAN variant resamples inside the
block: Brock et al. 2019, arXiv 1809.11096. With ``skip_rescale`` the sum is divided by sqrt(2), so
that it keeps the variance: Song et al. 2021, arXiv 2011.13456, appendix H.

Class and parameter names are those of the published checkpoints. Parameters are float32. ``dtype``
is what convolutions compute in; normalisation, softmax and time embedding take at least float32.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from scoremle.errors import UserError
from scoremle.nn import resample
from scoremle.types import Images, PRNGKey, Times

__all__ = [
    "MOST_CHANNELS", "MOST_LAYERS", "MOST_RESOLUTIONS", "Activation", "attend", "network_fields",
    "wide",
]  # fmt: skip

Activation = Callable[[Array], Array]
Embedding = Float[Array, "b e"]
Heads = Float[Array, "b pixels *head c"]
FirKernel = tuple[float, ...] | None  # None: nearest neighbours and 2x2 means, no filter

ACTIVATIONS: dict[str, Activation] = {
    "swish": nn.swish,
    "elu": nn.elu,
    "relu": nn.relu,
    "lrelu": functools.partial(nn.leaky_relu, negative_slope=0.2),
}

# 2^f is how often a Fourier feature of an image oscillates over a unit of it.
EXPONENTS = (6, 7)

# Far beyond what any network has. To build one of more would take all memory, or would not end.
MOST_LAYERS, MOST_RESOLUTIONS, MOST_CHANNELS = 100, 16, 1 << 16


def network_fields(network: type[nn.Module]) -> set[str]:
    """Names of the fields of a network, but for Flax's own and the dtype.

    Args:
        network: a class of Flax.
    """
    return {field.name for field in dataclasses.fields(network)} - {"dtype", "parent", "name"}


def wide(dtype: DTypeLike) -> jnp.dtype:
    """The type for what must not lose digits: at least float32.

    Args:
        dtype: that of the data.
    """
    return jnp.promote_types(dtype, jnp.float32)


def initializer(scale: float = 1.0) -> Callable[..., Array]:
    """Uniform with variance 2 scale / (fan_in + fan_out); scale 0 means almost zero."""
    return nn.initializers.variance_scaling(
        scale or 1e-10, "fan_avg", "uniform", dtype=jnp.float32
    )


def conv3x3(
    features: int, *, dtype: DTypeLike, init_scale: float = 1.0, stride: int = 1
) -> nn.Conv:
    init = initializer(init_scale)
    return nn.Conv(features, (3, 3), strides=stride, kernel_init=init, dtype=dtype)


def conv1x1(features: int, *, dtype: DTypeLike) -> nn.Conv:
    return nn.Conv(features, (1, 1), kernel_init=initializer(), dtype=dtype)


def dense(features: int, *, dtype: DTypeLike) -> nn.Dense:
    return nn.Dense(features, kernel_init=initializer(), dtype=wide(dtype))


def group_norm(channels: int, *, dtype: DTypeLike) -> nn.GroupNorm:
    """Groups of four channels, or 32 groups where that would be more."""
    groups = min(channels // 4, 32)
    if channels % groups:
        raise UserError(
            f"{channels} channels do not split into {groups} equal groups for normalisation: "
            "take an nf that is a multiple of 4 (of 32 where layers have more than 128 channels)"
        )
    return nn.GroupNorm(num_groups=groups, epsilon=1e-6, dtype=wide(dtype))


def add_residual(x: Images, h: Images, *, rescale: bool) -> Images:
    return (x + h) / math.sqrt(2.0) if rescale else x + h


def positional_embedding(labels: Times, size: int) -> Embedding:
    """sin and cos of labels times frequencies that fall geometrically from 1 to 1e-4."""
    half = size // 2
    # The published networks have float32 frequencies, in whatever type the rest is computed.
    frequencies = jnp.exp(jnp.arange(half, dtype=jnp.float32) * (-math.log(1e4) / (half - 1)))
    phases = labels[:, None] * frequencies
    waves = jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=1)
    return jnp.pad(waves, ((0, 0), (0, size % 2)))


class GaussianFourierProjection(nn.Module):
    """sin and cos of 2 pi W label, W ~ N(0, scale^2): Tancik et al. 2020, arXiv 2006.10739."""

    size: int
    scale: float
    trainable: bool

    @nn.compact
    def __call__(self, labels: Times) -> Embedding:
        w = self.param("W", nn.initializers.normal(self.scale, jnp.float32), (self.size,))
        w = w if self.trainable else jax.lax.stop_gradient(w)
        phases = labels[:, None] * w * (2 * math.pi)
        return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=1)


class NIN(nn.Module):
    """One matrix for all pixels ("network in network")."""

    features: int
    dtype: DTypeLike
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "b *pixels c"]) -> Float[Array, "b *pixels features"]:
        w = self.param("W", initializer(self.init_scale), (x.shape[-1], self.features))
        b = self.param("b", nn.initializers.zeros, (self.features,), jnp.float32)
        return x.astype(self.dtype) @ w.astype(self.dtype) + b.astype(self.dtype)


def attend(q: Heads, k: Heads, v: Heads, *, dtype: DTypeLike) -> Float[Array, "b pixels _c"]:
    """Scaled dot-product attention between all pixels, head by head; the heads side by side.

    Args:
        q: queries, with an axis of heads or, of a single head, without.
        k: keys.
        v: values.
        dtype: what to compute in; the softmax takes at least float32.
    """
    # Not jax.nn.dot_product_attention: its softmax is float32 where all else is float64, and the
    # fused kernel behind it on a GPU has no forward-mode derivative.
    logits = jnp.einsum("bq...c,bk...c->b...qk", q, k, preferred_element_type=wide(dtype))
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1).astype(dtype)
    return jnp.einsum("b...qk,bk...c->bq...c", weights, v).reshape(*q.shape[:2], -1)


class AttnBlockpp(nn.Module):
    """x + self-attention between all pixels, with a single head."""

    skip_rescale: bool
    init_scale: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Images) -> Images:
        b, height, width, c = x.shape
        h = group_norm(c, dtype=self.dtype)(x).reshape(b, height * width, c)
        q, k, v = (NIN(c, self.dtype)(h) for _ in range(3))
        h = NIN(c, self.dtype, self.init_scale)(attend(q, k, v, dtype=self.dtype))
        return add_residual(x, h.reshape(x.shape), rescale=self.skip_rescale)


class Combine(nn.Module):
    """Joins a pyramid level x with the features h, by sum or side by side."""

    method: str
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Images, h: Images) -> Images:
        x = conv1x1(h.shape[-1], dtype=self.dtype)(x)
        return x + h if self.method == "sum" else jnp.concatenate([x, h], axis=-1)


class Conv2d(nn.Module):
    """A 3x3 convolution that doubles or halves the image with a FIR filter."""

    features: int
    operation: Callable[..., Images]
    fir_kernel: tuple[float, ...]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Images) -> Images:
        shape = (3, 3, x.shape[-1], self.features)
        weight = self.param("weight", initializer(), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        bias = bias.astype(self.dtype)
        return self.operation(x.astype(self.dtype), weight, self.fir_kernel) + bias


def upsample(x: Images, fir_kernel: FirKernel) -> Images:
    return resample.upsample_2d(x, fir_kernel) if fir_kernel else resample.naive_upsample_2d(x)


def downsample(x: Images, fir_kernel: FirKernel) -> Images:
    if fir_kernel:
        return resample.downsample_2d(x, fir_kernel)
    return resample.naive_downsample_2d(x)


class Upsample(nn.Module):
    """Doubles the image; with ``with_conv`` a convolution gives it ``features`` channels."""

    with_conv: bool
    fir_kernel: FirKernel
    dtype: DTypeLike
    features: int | None = None

    @nn.compact
    def __call__(self, x: Images) -> Images:
        if not self.with_conv:
            return upsample(x, self.fir_kernel)
        features = self.features or x.shape[-1]
        if self.fir_kernel:
            return Conv2d(features, resample.upsample_conv_2d, self.fir_kernel, self.dtype)(x)
        return conv3x3(features, dtype=self.dtype)(upsample(x, None))


class Downsample(nn.Module):
    """Halves the image; with ``with_conv`` a convolution gives it ``features`` channels."""

    with_conv: bool
    fir_kernel: FirKernel
    dtype: DTypeLike
    features: int | None = None

    @nn.compact
    def __call__(self, x: Images) -> Images:
        if not self.with_conv:
            return downsample(x, self.fir_kernel)
        features = self.features or x.shape[-1]
        if self.fir_kernel:
            return Conv2d(features, resample.conv_downsample_2d, self.fir_kernel, self.dtype)(x)
        return conv3x3(features, dtype=self.dtype, stride=2)(x)


def fourier_features(x: Images) -> Images:
    """sin and cos of 2 pi 2^f x for each f of ``EXPONENTS``: the sines, then the cosines.

    In them a network sees the last bits of a pixel (Kingma et al. 2021, arXiv 2107.00630, appendix
    C). 2^f x and its distance to a whole number are exact, so that none is lost.
    """
    turns = x[..., None] * jnp.asarray([2.0**f for f in EXPONENTS], x.dtype)
    phases = 2 * math.pi * (turns - jnp.round(turns)).reshape(*x.shape[:-1], -1)
    return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1)


def drop(h: Images, rate: float, key: PRNGKey | None) -> Images:
    """Dropout: zeroes a fraction ``rate`` of ``h`` and scales the rest; none without a key."""
    if key is None or rate == 0:
        return h
    # Drawn along one axis: for that XLA compiles the generator sooner.
    kept = jax.random.bernoulli(key, 1 - rate, (h.size,)).reshape(h.shape)
    # A gradient keeps what has a name: this takes a quarter of the memory of what drew it.
    return jnp.where(checkpoint_name(kept, "kept"), h / (1 - rate), 0)


def dropout_keys(network: Any, train: bool, blocks: int) -> Iterator[PRNGKey | None]:
    """Dropout keys of a network's blocks in training; None for each without dropout."""
    if not 0 <= network.dropout < 1:
        raise UserError(f"dropout must be at least 0 and below 1, not {network.dropout}")
    if not (train and network.dropout):
        return itertools.repeat(None)
    return iter(jax.random.split(network.make_rng("dropout"), blocks))


class ResnetBlockBase(nn.Module):
    """The two residual blocks: x + F(x, t), where ``resize`` halves or doubles both terms.

    They take x, the embedding, and in training the key of the dropout. ``shortcut`` is what x goes
    through where its size or its number of channels is not that of F. F is twice a normalisation,
    an activation and a convolution, with a bias of the embedding and the dropout between.
    """

    shortcut: ClassVar[Callable[..., nn.Module]]

    act: Activation
    dropout: float
    skip_rescale: bool
    init_scale: float
    dtype: DTypeLike
    features: int | None = None
    resize: Callable[[Images, FirKernel], Images] | None = None
    fir_kernel: FirKernel = None

    @nn.compact
    def __call__(
        self, x: Images, embedding: Embedding | None, dropout: PRNGKey | None = None
    ) -> Images:
        features, h = self.features or x.shape[-1], self._normalized(x)
        if self.resize:
            h, x = (self.resize(each, self.fir_kernel) for each in (h, x))
        h = conv3x3(features, dtype=self.dtype)(h)
        if embedding is not None:
            bias = dense(features, dtype=self.dtype)(self.act(embedding))
            h = h + bias[:, None, None, :].astype(h.dtype)
        h = drop(self._normalized(h), self.dropout, dropout)
        h = conv3x3(features, dtype=self.dtype, init_scale=self.init_scale)(h)
        if self.resize or x.shape[-1] != features:
            x = self.shortcut(features, dtype=self.dtype)(x)
        return add_residual(x, h, rescale=self.skip_rescale)

    def _normalized(self, h: Images) -> Images:
        return self.act(group_norm(h.shape[-1], dtype=self.dtype)(h))


class ResnetBlockDDPMpp(ResnetBlockBase):
    """The block of DDPM, at one resolution."""

    shortcut: ClassVar[Callable[..., nn.Module]] = NIN


class ResnetBlockBigGANpp(ResnetBlockBase):
    """The block of BigGAN."""

    shortcut: ClassVar[Callable[..., nn.Module]] = staticmethod(conv1x1)
