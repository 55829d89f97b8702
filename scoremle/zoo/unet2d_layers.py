"""Layers that only UNet2DModel has: its attention, K blocks, embeddings of times, resampling."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from scoremle.nn import resample
from scoremle.nn.layers import Activation
from scoremle.zoo.blocks import (
    Embedding,
    Images,
    Times,
    attend,
    conv,
    dense_layer,
    torch_group_norm,
)

FIR_KERNEL = (1, 3, 3, 1)


class UNet2DAttention(nn.Module):
    """(x + self-attention between all pixels) / ``divisor``."""

    heads: int
    head_dim: int
    groups: int | None
    eps: float
    divisor: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Images) -> Images:
        b, height, width, c = x.shape
        h = x.reshape(b, height * width, c)
        if self.groups:
            h = torch_group_norm("group_norm", c, self.groups, self.eps, dtype=self.dtype)(h)
        q, k, v = (self._heads(name, h) for name in ("to_q", "to_k", "to_v"))
        h = nn.Dense(c, dtype=self.dtype, name="to_out.0")(attend(q, k, v, dtype=self.dtype))
        return (x + h.reshape(x.shape)) / self.divisor

    def _heads(self, name: str, h: Array) -> Array:
        project = nn.Dense(self.heads * self.head_dim, dtype=self.dtype, name=name)
        return project(h).reshape(*h.shape[:2], self.heads, self.head_dim)


class ResnetBlockK(nn.Module):
    """x + F(x, t), where t scales and shifts both normalisations, whose ``groups`` are given."""

    features: int
    groups: tuple[int, int]
    eps: float
    act: Activation
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Images, embedding: Embedding) -> Images:
        h = self.act(self._normalized("norm1.linear", x, self.groups[0], embedding))
        h = conv("conv1", self.features, dtype=self.dtype)(h)
        h = self.act(self._normalized("norm2.linear", h, self.groups[1], embedding))
        h = conv("conv2", self.features, dtype=self.dtype)(h)
        if x.shape[-1] != self.features:
            name, features = "conv_shortcut", self.features
            x = conv(name, features, size=1, use_bias=False, dtype=self.dtype)(x)
        return x + h

    def _normalized(self, name: str, h: Images, groups: int, embedding: Embedding) -> Images:
        channels = h.shape[-1]
        bare = {"use_bias": False, "use_scale": False}
        norm = torch_group_norm(None, channels, groups, self.eps, dtype=self.dtype, **bare)
        wave = dense_layer(name, 2 * channels, dtype=self.dtype)(embedding)[:, None, None]
        scale, shift = jnp.split(wave, 2, axis=-1)
        return norm(h) * (1 + scale) + shift


class Fourier(nn.Module):
    """sin and cos of 2 pi w log sigma, with fixed random frequencies w."""

    size: int

    @nn.compact
    def __call__(self, sigma: Times) -> Embedding:
        w = self.param("weight", nn.initializers.normal(16.0), (self.size,))
        phases = jnp.log(sigma)[:, None] * w * (2 * math.pi)
        return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=1)


class Learned(nn.Module):
    """A row of a table for each step; between two steps, linear in t."""

    steps: int
    size: int

    @nn.compact
    def __call__(self, t: Times) -> Embedding:
        rows = self.param("weight", nn.initializers.normal(1.0), (self.steps, self.size))
        # No row is picked by rounding: XLA may round a step twice, and differently.
        distance = jnp.clip(t, 0, self.steps - 1)[:, None] - jnp.arange(self.steps)
        return jnp.dot(nn.relu(1 - jnp.abs(distance)), rows, precision="highest")


def fir_downsample(x: Images) -> Images:
    return resample.downsample_2d(x, FIR_KERNEL)


def fir_upsample(x: Images) -> Images:
    return resample.upsample_2d(x, FIR_KERNEL)


def k_downsample(x: Images) -> Images:
    """Downsampling filter with reflected borders, in place on the same pixels as the others."""
    return fir_downsample(_border(_border(x, "reflect"), "constant"))[:, 1:-1, 1:-1]


def k_upsample(x: Images) -> Images:
    return fir_upsample(_border(x, "reflect"))[:, 2:-2, 2:-2]


def _border(x: Images, mode: str) -> Images:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
