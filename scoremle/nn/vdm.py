"""VDM's network: a U-Net that never halves the image.

    h = conv(x beside Fourier features of x)
    L blocks down, then a block, attention and a block, then L + 1 blocks up with skips
    output = x + conv(swish(norm(h)))

(Kingma et al., arXiv 2107.00630, appendix B; i-DODE, arXiv 2305.03935, has the same.) The time
input is the log-SNR, embedded on the scale of ``gamma_min`` to ``gamma_max``, beside side
information c about the image: 0 unless it was augmented. The parameter tree has the names and
shapes of the published checkpoints.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from scoremle.core.arguments import check_count, check_number
from scoremle.errors import UserError
from scoremle.nn import layers
from scoremle.types import Images, PRNGKey, Times
from scoremle.xla import compile_once

__all__ = ["MuLANEncoder", "VDMNet"]

# A block of a side, by its number.
Level = Callable[[str, int, Images], Images]

GROUPS = 32
ZERO = nn.initializers.zeros


def _norm(dtype: DTypeLike, name: str = "GroupNorm_0") -> nn.GroupNorm:
    return nn.GroupNorm(
        GROUPS, epsilon=1e-6, dtype=layers.wide(dtype), use_fast_variance=False, name=name
    )


class Block(nn.Module):
    """x + F(x, condition): norm, swish and convolution twice, the condition as a bias between."""

    features: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Images, condition: Float[Array, "b e"], dropout: PRNGKey | None
    ) -> Images:
        h = self._conv("conv1", nn.swish(_norm(self.dtype)(x)))
        bias = nn.Dense(
            self.features, use_bias=False, kernel_init=ZERO, dtype=layers.wide(self.dtype),
            name="cond_proj",
        )(condition)  # fmt: skip
        h = h + bias[:, None, None].astype(h.dtype)
        h = layers.drop(nn.swish(_norm(self.dtype, "GroupNorm_1")(h)), self.dropout, dropout)
        h = self._conv("conv2", h, kernel_init=ZERO)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="nin_shortcut")(x)
        return x + h

    def _conv(self, name: str, h: Images, **options: Any) -> Images:
        return nn.Conv(self.features, (3, 3), dtype=self.dtype, name=name, **options)(h)


class SingleHeadAttention(nn.Module):
    """x + self-attention between all pixels, with a single head."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Images) -> Images:
        channels, pixels = x.shape[-1], x.shape[1] * x.shape[2]
        h = _norm(self.dtype)(x).reshape(len(x), pixels, channels)
        q, k, v = (nn.Dense(channels, dtype=self.dtype, name=name)(h) for name in "qkv")
        h = layers.attend(q, k, v, dtype=self.dtype)
        h = nn.Dense(channels, kernel_init=ZERO, dtype=self.dtype, name="proj_out")(h)
        return x + h.reshape(x.shape)


class _Blocks(nn.Module):
    """The blocks down and in the middle, which VDM's network and MuLAN's encoder share.

    Args:
        nf: channels, a multiple of 32.
        num_res_blocks: blocks on the way down.
        attn_resolutions: sizes of the image at which attention follows each block; in the middle
            there always is one.
        dropout: share of activations that training drops.
        fourier_features: the network sees Fourier features of the image, too.
        gamma_min: -log-SNR where the embedded number is 0.
        gamma_max: -log-SNR where the embedded number is 1000.
        dtype: what to compute in; parameters and output are float32 (the output float64 where
            dtype is).
        remat: the gradient of training computes blocks again, and so keeps less.

    Raises UserError, when it is called, for other channels, numbers of blocks or ends.
    """

    nf: int = 128
    num_res_blocks: int = 32
    attn_resolutions: tuple[int, ...] = ()
    dropout: float = 0.0
    fourier_features: bool = True
    gamma_min: float = -13.3
    gamma_max: float = 5.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def _down(
        self, x: Images, labels: Times, c: Float[Array, "b *m"] | None, train: bool
    ) -> tuple[Images, list[Images], Level]:
        """The output of the middle, the skips, and the function of a block by side and number."""
        self._check()
        blocks, condition = 2 * self.num_res_blocks + 3, self._condition(labels, c)
        keys = layers.dropout_keys(self, train, blocks)

        def block(name: str, h: Images) -> Images:
            made = Block(self.nf, self.dropout, self.dtype, name=name)
            return compile_once(made, h, condition, next(keys), remat=train and self.remat)

        def attention(name: str, h: Images) -> Images:
            return compile_once(SingleHeadAttention(self.dtype, name=name), h)

        def level(side: str, i: int, h: Images) -> Images:
            h = block(f"{side}.block_{i}", h)
            everywhere = x.shape[1] in self.attn_resolutions
            return attention(f"{side}.attn_{i}", h) if everywhere else h

        seen = jnp.concatenate([x, layers.fourier_features(x)], -1) if self.fourier_features else x
        skips = [nn.Conv(self.nf, (3, 3), dtype=self.dtype, name="conv_in")(seen)]
        for i in range(self.num_res_blocks):
            skips.append(level("down", i, skips[-1]))
        h = block("mid.block_2", attention("mid.attn_1", block("mid.block_1", skips[-1])))
        return h, skips, level

    def _last(self, h: Images, channels: int) -> Images:
        wide = layers.wide(self.dtype)
        last = nn.Conv(channels, (3, 3), kernel_init=ZERO, dtype=wide, name="conv_out")
        return last(nn.swish(_norm(self.dtype)(h)))

    def _condition(self, log_snr: Times, c: Float[Array, "b *m"] | None) -> Float[Array, "b e"]:
        share = (-log_snr - self.gamma_min) / (self.gamma_max - self.gamma_min)
        waves = layers.positional_embedding(1000 * share, self.nf)
        beside = jnp.zeros((len(waves), 1)) if c is None else c.reshape(len(waves), -1)
        h = jnp.concatenate([waves, beside.astype(waves.dtype)], axis=1)
        for name in ("dense0", "dense1"):
            h = nn.swish(nn.Dense(4 * self.nf, dtype=layers.wide(self.dtype), name=name)(h))
        return h

    def _check(self) -> None:
        check_count("num_res_blocks", self.num_res_blocks, most=layers.MOST_LAYERS)
        check_count("nf", self.nf, GROUPS, layers.MOST_CHANNELS)
        if self.nf % GROUPS:
            raise UserError(f"nf must be a multiple of {GROUPS} here, not {self.nf}")
        check_number("gamma_min", self.gamma_min)
        check_number("gamma_max", self.gamma_max, above=self.gamma_min)


class VDMNet(_Blocks):
    """VDM's network, which takes images and log-SNRs."""

    @nn.compact
    def __call__(
        self, x: Images, labels: Times, c: Float[Array, "b *m"] | None = None, *,
        train: bool = False,
    ) -> Images:  # fmt: skip
        """The raw output, of the shape of ``x``. With ``train`` it takes a "dropout" key.

        ``labels`` are the log-SNR, and ``c`` the side information; None: 0.
        """
        x = x.astype(layers.wide(self.dtype))
        h, skips, level = self._down(x, labels, c, train)
        for i in range(self.num_res_blocks + 1):
            h = level("up", i, jnp.concatenate([h, skips.pop()], axis=-1))
        return x + self._last(h, x.shape[-1])


class MuLANEncoder(_Blocks):
    """MuLAN's encoder, which gives the logits of an image's code.

    Args:
        logits: how many.
    """

    logits: int = 50

    @nn.compact
    def __call__(self, x: Images, *, train: bool = False) -> Float[Array, "b m"]:
        """The logits. With ``train`` it takes a "dropout" key."""
        x = x.astype(layers.wide(self.dtype))
        h, _, _ = self._down(x, jnp.full(len(x), -self.gamma_min), None, train)
        flat = nn.swish(self._last(h, 1)).reshape(len(x), -1)
        return nn.Dense(self.logits, dtype=layers.wide(self.dtype), name="dense_layer_final")(flat)
