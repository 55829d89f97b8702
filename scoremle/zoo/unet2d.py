"""UNet2DModel: the U-Net of the library diffusers for images, with all its kinds of blocks.

Most kinds are the U-Net of ``blocks.py``. Skip blocks are those of NCSN++ with its pyramid of
images: Song et al. 2021, arXiv 2011.13456, appendix H. K blocks come from k-diffusion.

The fields are those of ``config.json``, the layers have the names of the state dict, the output is
that of diffusers 0.42 in evaluation. Dropout, which acts in training only, is left out.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Num

from scoremle.errors import UserError
from scoremle.nn import resample
from scoremle.nn.layers import Activation, attend, network_fields, wide
from scoremle.records import check_record
from scoremle.xla import compile_once
from scoremle.zoo import blocks, unet2d_fields
from scoremle.zoo.blocks import Embedding, Images, Times
from scoremle.zoo.from_torch import from_torch
from scoremle.zoo.unet2d_fields import BlockKind, check_fields, kind_of

Labels = Num[Array, " b"] | Embedding
Resnet = Callable[..., Images]

FIR_KERNEL = (1, 3, 3, 1)
TIME, LABEL = (jax.ShapeDtypeStruct((1,), kind) for kind in (jnp.float32, jnp.int32))
# What the parts of attention were called in 2022, and are called now.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


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
            h = blocks.normalized("group_norm", h, self.groups, self.eps, dtype=self.dtype)
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
        h = blocks.conv("conv1", self.features, dtype=self.dtype)(h)
        h = self.act(self._normalized("norm2.linear", h, self.groups[1], embedding))
        h = blocks.conv("conv2", self.features, dtype=self.dtype)(h)
        if x.shape[-1] != self.features:
            name, features = "conv_shortcut", self.features
            x = blocks.conv(name, features, size=1, use_bias=False, dtype=self.dtype)(x)
        return x + h

    def _normalized(self, name: str, h: Images, groups: int, embedding: Embedding) -> Images:
        bare = {"use_bias": False, "use_scale": False}
        wave = blocks.dense_layer(name, 2 * h.shape[-1], dtype=self.dtype)(embedding)
        scale, shift = jnp.split(wave[:, None, None], 2, axis=-1)
        h = blocks.normalized(None, h, groups, self.eps, dtype=self.dtype, **bare)
        return h * (1 + scale) + shift


class Fourier(nn.Module):
    """sin and cos of 2 pi w log sigma, with fixed random frequencies w."""

    size: int

    @nn.compact
    def __call__(self, sigma: Times) -> Embedding:
        w = self.param("weight", nn.initializers.normal(16.0, jnp.float32), (self.size,))
        phases = jnp.log(sigma)[:, None] * w * (2 * math.pi)
        return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=1)


class Learned(nn.Module):
    """A row of a table for each step; between two steps, linear in t."""

    steps: int
    size: int

    @nn.compact
    def __call__(self, t: Times) -> Embedding:
        first = nn.initializers.normal(1.0, jnp.float32)
        rows = self.param("weight", first, (self.steps, self.size))
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


class UNet2D(nn.Module):
    """A network of images, times and class labels; the fields are those of ``config.json``.

    Args:
        sample_size: the size of the images it was made for; it takes other sizes, too.
        in_channels: channels of the images.
        out_channels: channels of the output.
        center_input_sample: take images in [0, 1], and scale them to [-1, 1].
        time_embedding_type: of the times: "positional", "fourier" or "learned".
        time_embedding_dim: the size of the embedding; None: four times the first of
            ``block_out_channels``.
        freq_shift: frequency i of the n of the positional embedding is 10000^(-i / (n - this)).
        flip_sin_to_cos: put the cosines of the positional embedding before its sines.
        down_block_types: names of the blocks on the way down, one a level.
        mid_block_type: the block between: "UNetMidBlock2D", or None.
        up_block_types: names of the blocks on the way up, the coarsest level first.
        block_out_channels: channels of each level; each but the last halves the image.
        layers_per_block: residual blocks of a level.
        mid_block_scale_factor: what sums of residual blocks are divided by, in the middle.
        downsample_padding: of convolutions that halve the image: 0 (one pixel behind) or 1.
        downsample_type: how plain blocks halve the image: by "conv" or "resnet".
        upsample_type: how plain blocks double it: by "conv" or "resnet".
        act_fn: "silu" or "swish" (the same), "mish", "gelu" or "relu".
        attention_head_dim: channels of an attention head; None: there is one head.
        norm_num_groups: groups of the normalisation; None: a quarter of the channels, at most 32,
            where all blocks are skip or K blocks.
        attn_norm_num_groups: groups of the normalisation before attention in the middle; None:
            as many as elsewhere, and no normalisation with "scale_shift".
        norm_eps: what is added to the variances of the normalisation.
        resnet_time_scale_shift: how times enter: "default" (added) or "scale_shift".
        add_attention: put attention into the block between.
        class_embed_type: how class labels enter: "timestep", "identity", or None: by a table of
            ``num_class_embeds`` rows, if that is given.
        num_class_embeds: the number of classes; None: the network takes no classes.
        num_train_timesteps: the number of time steps, where their embedding is "learned".
        dtype: what to compute in; parameters and output are float32 (the output float64 where
            dtype is).

    Raises UserError, when it is called, for fields, images or labels that do not go together.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", *3 * ("AttnDownBlock2D",))
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = (*3 * ("AttnUpBlock2D",), "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None
    dtype: DTypeLike = jnp.float32

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "UNet2D":
        """The network of a ``config.json``; a field that an old one lacks has its default.

        Raises UserError for a field, a value or a block that is not known here.
        """
        if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
            raise UserError(f"the config is of a {config['_class_name']}, not of a UNet2DModel")
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v
            for k, v in config.items()
            if k not in unet2d_fields.WITHOUT_EFFECT and not k.startswith("_")
        }
        for name in sorted(given.keys() - network_fields(cls)):
            raise UserError(f"the config has the field {name}, which is not known here")
        check_record(given, cls, "the config")
        network = cls(**given)
        check_fields(network)
        return network

    @nn.compact
    def __call__(self, x: Images, t: Times, class_labels: Labels | None = None) -> Images:
        """The raw output, of the size of ``x``.

        ``t``: the number of the step, which may be a fraction; with "fourier", sigma.
        ``class_labels``: integers; with "timestep" any numbers, with "identity" the embeddings.
        Raises UserError where fields, images and labels do not go together.
        """
        check_fields(self)
        blocks.check_image_shape(x.shape, self.in_channels, len(self.block_out_channels))
        x, t = x.astype(wide(self.dtype)), t.astype(wide(self.dtype))
        x = 2 * x - 1 if self.center_input_sample else x
        embedding = self._embed(t, class_labels)
        h, skips = self._down(x, embedding)
        out = self._up(self._middle(h, embedding), skips, embedding)
        return out / t[:, None, None, None] if self.time_embedding_type == "fourier" else out

    def _embed(self, t: Times, class_labels: Labels | None) -> Embedding:
        features = self.time_embedding_dim or 4 * self.block_out_channels[0]
        waves = self._waves()
        embedding = blocks.TimestepEmbedding(features, self.dtype, name="time_embedding")(waves(t))
        unlabelled = self.class_embed_type is None and self.num_class_embeds is None
        if self.class_embed_type and class_labels is None:
            kind = f"class_embed_type={self.class_embed_type!r}"
            raise UserError(f"the network takes no class: in Python, condition= gives it ({kind})")
        blocks.check_labels(class_labels, not unlabelled)
        if class_labels is None:
            return embedding
        if self.class_embed_type == "identity":
            return embedding + class_labels
        if self.class_embed_type == "timestep":
            second = blocks.TimestepEmbedding(features, self.dtype, name="class_embedding")
            return embedding + second(waves(class_labels.astype(t.dtype)))
        assert self.num_class_embeds is not None  # the one case that is left
        rows = nn.Embed(self.num_class_embeds, features, name="class_embedding")
        return embedding + rows(blocks.class_rows(class_labels, self.num_class_embeds))

    def _waves(self) -> Callable[[Times], Embedding]:
        size = self.block_out_channels[0]
        if self.time_embedding_type == "fourier":
            return Fourier(size, name="time_proj")
        if self.time_embedding_type == "learned":
            assert self.num_train_timesteps is not None  # check_fields
            return Learned(self.num_train_timesteps, size, name="time_proj")
        waves, cos_first = blocks.timestep_embedding, self.flip_sin_to_cos
        return functools.partial(waves, size=size, cos_first=cos_first, freq_shift=self.freq_shift)

    # The three parts of the U-Net.

    def _down(self, x: Images, embedding: Embedding) -> tuple[Images, list[Images]]:
        """Down path: returns the input of the middle, and the skip features, finest first."""
        h, pyramid = self._conv("conv_in", self.block_out_channels[0])(x), x
        skips = [h]
        for i, features in enumerate(self.block_out_channels):
            kind, block = kind_of(self.down_block_types[i]), f"down_blocks.{i}"
            resnet = functools.partial(self._resnet, kind, embedding, features=features)
            for j in range(self.layers_per_block):
                h = resnet(f"{block}.resnets.{j}", h)
                h = self._attend(kind, f"{block}.attentions.{j}", h)
                skips.append(h)
            if not self._is_last(i):
                h, pyramid = self._halve(kind, block, resnet, h, pyramid)
                skips += [] if kind.family == "k" else [h]
        return h, skips

    def _middle(self, h: Images, embedding: Embedding) -> Images:
        if self.mid_block_type is None:
            return h
        features, divisor = h.shape[-1], self.mid_block_scale_factor
        groups = self.norm_num_groups or _groups(features)
        block = self._block(features, (groups, groups), divisor)
        h = compile_once(block(name="mid_block.resnets.0"), h, embedding)
        if self.add_attention:
            of_resnets = None if self._scale_shift else groups
            attention = self._attention(features, self.attn_norm_num_groups or of_resnets, divisor)
            h = compile_once(attention(name="mid_block.attentions.0"), h)
        return compile_once(block(name="mid_block.resnets.1"), h, embedding)

    def _up(self, h: Images, skips: list[Images], embedding: Embedding) -> Images:
        """Up path: from the middle to the output, with the skip features of the way down."""
        pyramid, widths = None, self.block_out_channels[::-1]
        for i, features in enumerate(widths):
            kind, block = kind_of(self.up_block_types[i]), f"up_blocks.{i}"
            resnet = functools.partial(self._resnet, kind, embedding, features=features)
            if kind.family == "k":
                following = widths[min(i + 1, len(widths) - 1)]
                h = self._take_back_one(block, resnet, h, skips, following)
            else:
                h = self._take_back(kind, block, resnet, h, skips)
            if kind.family == "skip" and pyramid is not None:
                pyramid = fir_upsample(pyramid)
            if not self._is_last(i):
                h, pyramid = self._double(kind, block, resnet, h, pyramid)
        groups = self.norm_num_groups
        out = self._to_image("conv_norm_out", "conv_out", h, self.out_channels, groups)
        return out if pyramid is None else out + pyramid

    # The parts of a level.

    def _halve(
        self, kind: BlockKind, block: str, resnet: Resnet, h: Images, pyramid: Images
    ) -> tuple[Images, Images]:
        """Features and pyramid at the next level."""
        if kind.family == "k":
            return k_downsample(h), pyramid
        if kind.family == "skip":
            h = resnet(f"{block}.resnet_down", h, resize=fir_downsample, shortcut=True)
            pyramid = fir_downsample(pyramid)
            to_features = self._conv(f"{block}.skip_conv", h.shape[-1], size=1)
            return h + to_features(pyramid), pyramid
        name = f"{block}.downsamplers.0"
        if kind.in_a_resnet or (kind.attention and self.downsample_type == "resnet"):
            return resnet(name, h, resize=resample.naive_downsample_2d), pyramid
        # With padding 0 diffusers adds one row of zeros below and one column on the right.
        padding = 2 * ((self.downsample_padding, 1),)
        halve = self._conv(f"{name}.conv", h.shape[-1], padding=padding, strides=2)
        return halve(h), pyramid

    def _take_back(
        self, kind: BlockKind, block: str, resnet: Resnet, h: Images, skips: list[Images]
    ) -> Images:
        """The residual blocks of a level on the way up, each with features of the way down."""
        odd = kind.family == "skip" and kind.attention
        for j in range(self.layers_per_block + 1):
            skip = skips.pop()
            # By a slip of diffusers only one of two terms is divided by four here.
            groups = min(h.shape[-1] + skip.shape[-1] // 4, 32) if odd else None
            h = jnp.concatenate([h, skip], axis=-1)
            h = resnet(f"{block}.resnets.{j}", h, groups=groups)
            if kind.family == "plain":
                h = self._attend(kind, f"{block}.attentions.{j}", h)
        return self._attend(kind, f"{block}.attentions.0", h) if odd else h

    def _take_back_one(
        self, block: str, resnet: Resnet, h: Images, skips: list[Images], features: int
    ) -> Images:
        """A K block on the way up: it takes the last features, drops the others, has a layer less.

        ``features``: the channels of its last layer, which are those of the next level.
        """
        groups = h.shape[-1] // 32
        h = jnp.concatenate([h, skips[-1]], axis=-1)
        del skips[-self.layers_per_block :]
        for j in range(self.layers_per_block - 1):
            h = resnet(f"{block}.resnets.{j}", h)
        # Its second normalisation has the groups that the other layers have.
        last = f"{block}.resnets.{self.layers_per_block - 1}"
        return resnet(last, h, features=features, groups=groups)

    def _double(
        self, kind: BlockKind, block: str, resnet: Resnet, h: Images, pyramid: Images | None
    ) -> tuple[Images, Images | None]:
        """Features at the next level, and the pyramid with this level added."""
        if kind.family == "k":
            return k_upsample(h), pyramid
        if kind.family == "skip":
            image = self._to_image(f"{block}.skip_norm", f"{block}.skip_conv", h, 3)
            pyramid = image if pyramid is None else pyramid + image
            return resnet(f"{block}.resnet_up", h, resize=fir_upsample, shortcut=True), pyramid
        name = f"{block}.upsamplers.0"
        if kind.in_a_resnet or (kind.attention and self.upsample_type == "resnet"):
            return resnet(name, h, resize=resample.naive_upsample_2d), pyramid
        doubled = resample.naive_upsample_2d(h)
        return self._conv(f"{name}.conv", h.shape[-1])(doubled), pyramid

    # The layers, with the fields of this network.

    @property
    def _act(self) -> Activation:
        return unet2d_fields.ACTIVATIONS[self.act_fn]

    @property
    def _scale_shift(self) -> bool:
        return self.resnet_time_scale_shift == "scale_shift"

    def _is_last(self, level: int) -> bool:
        return level == len(self.block_out_channels) - 1

    def _conv(self, name: str, features: int, **options: Any) -> nn.Conv:
        return blocks.conv(name, features, **{"dtype": self.dtype} | options)

    def _to_image(
        self, norm: str, name: str, h: Images, channels: int, groups: int | None = None
    ) -> Images:
        groups = groups or _groups(h.shape[-1])
        h = nn.swish(blocks.normalized(norm, h, groups, self.norm_eps, dtype=self.dtype))
        return self._conv(name, channels, dtype=wide(self.dtype))(h)

    def _block(
        self, features: int, groups: tuple[int, int], divisor: float, **options: Any
    ) -> Callable[..., blocks.ResnetBlock]:
        fields = (features, groups, self.norm_eps, self._act, self._scale_shift, self.dtype)
        return functools.partial(blocks.ResnetBlock, *fields, divisor=divisor, **options)

    def _resnet(
        self, kind: BlockKind, embedding: Embedding, name: str, h: Images, *, features: int,
        groups: int | None = None, **options: Any,
    ) -> Images:  # fmt: skip
        """A residual block; ``groups``: of one normalisation, where they are not as usual."""
        channels = h.shape[-1]
        if kind.family == "k":
            both = (channels // 32, groups or features // 32)
            block = ResnetBlockK(features, both, self.norm_eps, self._act, self.dtype, name=name)
            return compile_once(block, h, embedding)
        if kind.family == "skip":
            both = (groups or _groups(channels), _groups(features))
            make = self._block(features, both, math.sqrt(2), **options)
        else:
            assert self.norm_num_groups is not None  # check_fields
            make = self._block(features, 2 * (self.norm_num_groups,), 1.0, **options)
        return compile_once(make(name=name), h, embedding)

    def _attention(
        self, features: int, groups: int | None, divisor: float
    ) -> Callable[..., UNet2DAttention]:
        size = self.attention_head_dim or features
        if size > features:
            raise UserError(
                f"attention_head_dim is {size}, and a layer with attention has {features} channels"
            )
        fields = (features // size, size, groups, self.norm_eps, divisor, self.dtype)
        return functools.partial(UNet2DAttention, *fields)

    def _attend(self, kind: BlockKind, name: str, h: Images) -> Images:
        if not kind.attention:
            return h
        skip = kind.family == "skip"
        groups, divisor = (32, math.sqrt(2)) if skip else (self.norm_num_groups, 1.0)
        return compile_once(self._attention(h.shape[-1], groups, divisor)(name=name), h)


def unet2d_params(state: Mapping[str, np.ndarray], network: UNet2D) -> dict[str, Any]:
    """The parameters of ``network`` from a state dict of UNet2DModel, of any age.

    Raises UserError for a tensor that is missing, has no place here, or has another shape.
    """
    size = 2 ** len(network.block_out_channels)
    inputs = [jax.ShapeDtypeStruct((1, size, size, network.in_channels), jnp.float32), TIME]
    if network.class_embed_type == "identity":
        inputs.append(TIME)
    elif network.class_embed_type or network.num_class_embeds:
        inputs.append(LABEL)
    return from_torch({_today(k): v for k, v in state.items()}, network, tuple(inputs))


def _today(name: str) -> str:
    return ".".join(OLD_NAMES.get(part, part) for part in name.split("."))


def _groups(channels: int) -> int:
    """Groups of four channels, or 32 groups where that would be more."""
    return min(channels // 4, 32)
