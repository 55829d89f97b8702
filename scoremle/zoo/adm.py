"""The U-Net of improved diffusion and of guided diffusion (ADM).

Nichol and Dhariwal 2021, arXiv 2102.09672; Dhariwal and Nichol 2021, arXiv 2105.05233. The second
has all of the first, and more: heads by their size, resampling in residual blocks, another order
of queries, keys and values. Both are the U-Net of ``blocks.py``.

The fields are the flags of their scripts, the layers have the names of their state dicts. Dropout,
which acts in training only, is left out.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Integer

from scoremle.core.arguments import check_count
from scoremle.errors import UserError
from scoremle.nn import layers, resample
from scoremle.records import check_record
from scoremle.types import Images
from scoremle.xla import compile_once
from scoremle.zoo import blocks
from scoremle.zoo.from_torch import from_torch

Labels = Integer[Array, " b"]

CHANNELS = 3
GROUPS, EPS = 32, 1e-5
# The multiples of num_channels at each level, where channel_mult has none.
DEFAULT_MULTIPLES: dict[int, tuple[float, ...]] = {
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
# Flags of training, and of the diffusion: the network is the same with all of them.
OTHER_FLAGS = {
    "diffusion_steps", "dropout", "noise_schedule", "predict_xstart", "rescale_learned_sigmas",
    "rescale_timesteps", "sigma_small", "timestep_respacing", "use_checkpoint", "use_fp16",
    "use_kl",
}  # fmt: skip
# How the parts of a residual block and of the time embedding are called there.
THEIR_NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "linear_1": "0",
    "linear_2": "2",
}


class ADM(nn.Module):
    """A network of images, times and class labels; the fields are their flags.

    Args:
        image_size: the size of the images it was made for.
        num_channels: channels of a level whose multiple is one.
        num_res_blocks: residual blocks of a level.
        num_heads: heads of attention.
        num_heads_upsample: heads of attention on the way up; -1: ``num_heads``.
        num_head_channels: channels of a head, which overrule the numbers of heads; -1: they don't.
        attention_resolutions: sizes of the features at which there is attention, where the images
            have the size ``image_size``.
        channel_mult: channels of each level, in units of ``num_channels``; each level but the last
            halves the image. Empty: the multiples that belong to ``image_size``.
        conv_resample: resample by a convolution, where residual blocks do not.
        use_scale_shift_norm: times scale and shift the features; otherwise they are added.
        resblock_updown: resample in residual blocks.
        use_new_attention_order: split queries, keys and values before the heads.
        learn_sigma: three more channels of output, which give the variance.
        class_cond: take class labels.
        num_classes: the number of classes.
        dtype: what to compute in; parameters and output are float32 (the output float64 where
            dtype is).

    Raises UserError, when it is called, for fields, images or labels that do not go together.
    """

    image_size: int = 64
    num_channels: int = 128
    num_res_blocks: int = 2
    num_heads: int = 4
    num_heads_upsample: int = -1
    num_head_channels: int = -1
    attention_resolutions: tuple[int, ...] = (16, 8)
    channel_mult: tuple[float, ...] = ()
    conv_resample: bool = True
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    learn_sigma: bool = False
    class_cond: bool = False
    num_classes: int = 1000
    dtype: DTypeLike = jnp.float32

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> "ADM":
        """The network of their flags ("16,8" for numbers); one that is not given has its default.

        Flags of training and of the diffusion have no effect. Raises UserError for others.
        """
        fields = {k: v for k, v in flags.items() if k not in OTHER_FLAGS}
        for name in sorted(fields.keys() - layers.network_fields(cls)):
            raise UserError(f"the flag {name} is not known here")
        for name, number in (("attention_resolutions", int), ("channel_mult", float)):
            if isinstance(fields.get(name), str):
                fields[name] = _numbers(name, fields[name], number)
        check_record(fields, cls, "the flags")
        network = cls(**fields)
        _check_fields(network)
        return network

    @nn.compact
    def __call__(self, x: Images, t: blocks.Times, class_labels: Labels | None = None) -> Images:
        """The raw output, of the size of ``x``; with ``learn_sigma`` twice the channels.

        ``t``: the number of the step, which may be a fraction. Raises UserError where fields,
        images and labels do not go together.
        """
        _check_fields(self)
        blocks.check_image_shape(x.shape, CHANNELS, len(self._widths))
        x, t = x.astype(layers.wide(self.dtype)), t.astype(layers.wide(self.dtype))
        embedding = self._embed(t, class_labels)
        skips = self._down(x, embedding)
        h = self._up(self._middle(skips[-1], embedding), skips, embedding)
        h = nn.swish(blocks.normalized("out.0", h, GROUPS, EPS, dtype=self.dtype))
        channels = (1 + self.learn_sigma) * CHANNELS
        return blocks.conv("out.2", channels, dtype=layers.wide(self.dtype))(h)

    def _embed(self, t: blocks.Times, class_labels: Labels | None) -> blocks.Embedding:
        features = 4 * self.num_channels
        waves = blocks.timestep_embedding(t, self.num_channels)
        embedding = blocks.TimestepEmbedding(features, self.dtype, name="time_embed")(waves)
        blocks.check_labels(class_labels, self.class_cond)
        if class_labels is None:
            return embedding
        rows = nn.Embed(self.num_classes, features, name="label_emb")
        return embedding + rows(blocks.class_rows(class_labels, self.num_classes))

    # The three parts of the U-Net. Every block on the way down leaves its features behind, so that
    # their number is that of the next block.

    def _down(self, x: Images, embedding: blocks.Embedding) -> list[Images]:
        """The features after every block, finest first."""
        resnet = functools.partial(self._resnet, embedding=embedding)
        skips = [blocks.conv("input_blocks.0.0", self._widths[0], dtype=self.dtype)(x)]
        for level, features in enumerate(self._widths):
            for _ in range(self.num_res_blocks):
                block = f"input_blocks.{len(skips)}"
                h = resnet(f"{block}.0", skips[-1], features=features)
                if self._has_attention(level):
                    h = self._attend(f"{block}.1", h, self.num_heads)
                skips.append(h)
            if level < len(self._widths) - 1:
                skips.append(self._halve(f"input_blocks.{len(skips)}.0", skips[-1], resnet))
        return skips

    def _middle(self, h: Images, embedding: blocks.Embedding) -> Images:
        h = self._resnet("middle_block.0", h, embedding)
        h = self._attend("middle_block.1", h, self.num_heads)
        return self._resnet("middle_block.2", h, embedding)

    def _up(self, h: Images, skips: list[Images], embedding: blocks.Embedding) -> Images:
        """Up path: from the middle to the last features, with skip features of the way down."""
        resnet = functools.partial(self._resnet, embedding=embedding)
        heads = self.num_heads if self.num_heads_upsample == -1 else self.num_heads_upsample
        count = len(skips)
        for level, features in reversed(list(enumerate(self._widths))):
            for i in range(self.num_res_blocks + 1):
                block = f"output_blocks.{count - len(skips)}"
                attention = self._has_attention(level)
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = resnet(f"{block}.0", h, features=features)
                if attention:
                    h = self._attend(f"{block}.1", h, heads)
                if level > 0 and i == self.num_res_blocks:
                    h = self._double(f"{block}.{1 + attention}", h, resnet)
        return h

    # The layers, with the fields of this network.

    @property
    def _widths(self) -> list[int]:
        """The number of channels at each level."""
        multiples = self.channel_mult or DEFAULT_MULTIPLES[self.image_size]
        return [int(multiple * self.num_channels) for multiple in multiples]

    def _has_attention(self, level: int) -> bool:
        return 2**level in [self.image_size // size for size in self.attention_resolutions]

    def _resnet(
        self, name: str, h: Images, embedding: blocks.Embedding, features: int = 0, **options: Any
    ) -> Images:
        """A residual block; it keeps the number of channels unless ``features`` are given."""
        fields = ((GROUPS, GROUPS), EPS, nn.swish, self.use_scale_shift_norm, self.dtype)
        block = blocks.ResnetBlock(features or h.shape[-1], *fields, name=name, **options)
        return compile_once(block, h, embedding)

    def _halve(self, name: str, h: Images, resnet: Callable[..., Images]) -> Images:
        if self.resblock_updown:
            return resnet(name, h, resize=resample.naive_downsample_2d)
        if not self.conv_resample:
            return resample.naive_downsample_2d(h)
        return blocks.conv(f"{name}.op", h.shape[-1], strides=2, dtype=self.dtype)(h)

    def _double(self, name: str, h: Images, resnet: Callable[..., Images]) -> Images:
        if self.resblock_updown:
            return resnet(name, h, resize=resample.naive_upsample_2d)
        h = resample.naive_upsample_2d(h)
        if not self.conv_resample:
            return h
        return blocks.conv(f"{name}.conv", h.shape[-1], dtype=self.dtype)(h)

    def _attend(self, name: str, h: Images, heads: int) -> Images:
        channels = h.shape[-1]
        if self.num_head_channels != -1:
            heads = channels // self.num_head_channels
        if heads < 1 or channels % heads:
            raise UserError(
                f"{channels} channels do not split into {heads} equal heads of attention: change "
                "num_heads or num_head_channels"
            )
        attention = Attention(heads, self.use_new_attention_order, self.dtype, name=name)
        return compile_once(attention, h)


class Attention(nn.Module):
    """x + self-attention between all pixels.

    ``split_first``: queries, keys and values are split before the heads are, not within each head.
    """

    heads: int
    split_first: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Images) -> Images:
        b, height, width, c = x.shape
        h = x.reshape(b, height * width, c)
        h = blocks.normalized("norm", h, GROUPS, EPS, dtype=self.dtype)
        h = nn.Conv(3 * c, (1,), dtype=self.dtype, name="qkv")(h)
        split = (3, self.heads) if self.split_first else (self.heads, 3)
        parts = h.reshape(*h.shape[:2], *split, c // self.heads)
        q, k, v = jnp.moveaxis(parts, 2 if self.split_first else 3, 0)
        h = layers.attend(q, k, v, dtype=self.dtype)
        h = nn.Conv(c, (1,), dtype=self.dtype, name="proj_out")(h)
        return x + h.reshape(x.shape)


def adm_params(state: Mapping[str, np.ndarray], network: ADM) -> dict[str, Any]:
    """The parameters of ``network`` from a state dict of either repository.

    Raises UserError for a tensor that is missing, has no place here, or has another shape.
    """
    size = 2 ** len(network._widths)
    shapes = (1, size, size, CHANNELS), (1,)
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    if network.class_cond:
        inputs.append(jax.ShapeDtypeStruct((1,), jnp.int32))
    return from_torch(state, network, tuple(inputs), THEIR_NAMES)


def _numbers(name: str, text: str, number: Callable[[str], float]) -> tuple[float, ...]:
    try:
        return tuple(number(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UserError(
            f"{name} is {text[:40]!r}: give numbers with commas between them"
        ) from None


def _check_fields(net: ADM) -> None:
    check_count("num_res_blocks", net.num_res_blocks, most=layers.MOST_LAYERS)
    if net.class_cond:
        check_count("num_classes", net.num_classes)
    if net.num_head_channels != -1:  # without effect are then the numbers of heads
        check_count("num_head_channels, if it is not -1,", net.num_head_channels)
    else:
        check_count("num_heads", net.num_heads)
        if net.num_heads_upsample != -1:
            check_count("num_heads_upsample, if it is not -1,", net.num_heads_upsample)
    if depth := len(net.channel_mult):
        check_count("the length of channel_mult", depth, most=layers.MOST_RESOLUTIONS)
    if not depth and net.image_size not in DEFAULT_MULTIPLES:
        sizes = ", ".join(map(str, DEFAULT_MULTIPLES))
        raise UserError(
            f"image_size is {net.image_size}, for which there is no channel_mult ({sizes} have "
            "one): give it"
        )
    for size in net.attention_resolutions:
        check_count("a size in attention_resolutions", size, most=layers.MOST_CHANNELS)
    for width in net._widths:
        check_count("num_channels at a level", width, most=layers.MOST_CHANNELS)
