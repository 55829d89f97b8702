"""The fields of UNet2DModel's ``config.json``: their values, and the valid combinations."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from scoremle.core.arguments import check_count, check_number
from scoremle.errors import UserError
from scoremle.nn.layers import MOST_CHANNELS, MOST_LAYERS, MOST_RESOLUTIONS, Activation

ACTIVATIONS: dict[str, Activation] = {
    "swish": nn.swish,
    "silu": nn.swish,
    "mish": jax.nn.mish,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "relu": nn.relu,
}


class BlockKind(NamedTuple):
    """Kind of a block, by its name.

    ``family``: "plain"; "skip", with a pyramid of images; "k", normalised without weights.
    ``in_a_resnet``: a plain block resamples in a residual block, not beside a convolution.
    """

    family: str = "plain"
    attention: bool = False
    in_a_resnet: bool = False


DOWN_BLOCKS = {
    "DownBlock2D": BlockKind(),
    "AttnDownBlock2D": BlockKind(attention=True),
    "ResnetDownsampleBlock2D": BlockKind(in_a_resnet=True),
    "SkipDownBlock2D": BlockKind("skip"),
    "AttnSkipDownBlock2D": BlockKind("skip", attention=True),
    "KDownBlock2D": BlockKind("k"),
}
UP_BLOCKS = {name.replace("Down", "Up"): kind for name, kind in DOWN_BLOCKS.items()}
CHOICES = {
    "time_embedding_type": ("positional", "fourier", "learned"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "act_fn": tuple(ACTIVATIONS),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
}
# Whole numbers of at least one, if they are given.
COUNTS = (
    "in_channels", "out_channels", "attention_head_dim", "norm_num_groups", "attn_norm_num_groups",
    "num_class_embeds", "num_train_timesteps",
)  # fmt: skip
# The others describe how parameters were averaged: diffusers writes them beside the fields.
WITHOUT_EFFECT = (
    "dropout", "decay", "inv_gamma", "min_decay", "optimization_step", "power",
    "update_after_step", "use_ema_warmup",
)  # fmt: skip


def kind_of(block: str) -> BlockKind:
    """The kind of a block by its name, of today or of 2022."""
    return (DOWN_BLOCKS | UP_BLOCKS)[block.removeprefix("UNetRes")]


def check_fields(net: Any) -> None:
    """Raises UserError for fields of a ``UNet2D`` that are not known, or do not go together."""
    for field, choices in CHOICES.items():
        value = getattr(net, field)
        if value not in choices:
            raise UserError(f"{field} is {value!r}: known here are {_listed(choices)}")
    for field in COUNTS:
        if (value := getattr(net, field)) is not None:
            check_count(field, value)
    if net.time_embedding_dim:  # 0 is as none
        check_count("time_embedding_dim", net.time_embedding_dim)
    check_number("mid_block_scale_factor", net.mid_block_scale_factor, above=0)
    check_number("norm_eps", net.norm_eps, above=0)
    check_count("layers_per_block", net.layers_per_block, most=MOST_LAYERS)
    depth = len(net.block_out_channels)
    check_count("the length of block_out_channels", depth, most=MOST_RESOLUTIONS)
    for channels in net.block_out_channels:
        check_count("one of block_out_channels", channels, most=MOST_CHANNELS)
    half = net.block_out_channels[0] // 2  # 0 of one channel, which has no frequencies to divide
    if net.time_embedding_type == "positional" and half and net.freq_shift == half:
        raise UserError(f"freq_shift is {half}, half of the channels: no frequencies have it")
    for field, kinds in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        blocks = getattr(net, field)
        if len(blocks) != len(net.block_out_channels):
            raise UserError(
                f"{field} names {len(blocks)} blocks, and block_out_channels "
                f"{len(net.block_out_channels)}: give one of each for a level"
            )
        for block in blocks:
            if block.removeprefix("UNetRes") not in kinds:
                raise UserError(f"{field} has {block!r}: known here are {_listed(tuple(kinds))}")
    if net.time_embedding_type == "learned" and not net.num_train_timesteps:
        raise UserError("time_embedding_type is 'learned': num_train_timesteps must be given")
    down = [kind_of(block).family for block in net.down_block_types]
    up = [kind_of(block).family for block in net.up_block_types]
    families = {*down, *up}
    if net.norm_num_groups is None and "plain" in families:
        raise UserError("norm_num_groups is None: only Skip blocks can do without it")
    if "k" in families and len(families) > 1:
        raise UserError("K blocks are mixed with others: take K blocks down and up, or none")
    _check_skip_blocks(net, down, up)


def _check_skip_blocks(net: Any, down: list[str], up: list[str]) -> None:
    """The pyramid of images must be halved and doubled as often as the features are."""
    halving, doubling = ([family == "skip" for family in side[:-1]] for side in (down, up))
    up_to_the_end = [family == "skip" for family in up] if any(doubling) else []
    if halving != sorted(halving, reverse=True) or up_to_the_end != sorted(up_to_the_end):
        raise UserError(
            "Skip blocks must be the first of down_block_types and the last of up_block_types"
        )
    if (any(halving) and net.in_channels != 3) or (any(doubling) and net.out_channels != 3):
        raise UserError(
            f"in_channels is {net.in_channels} and out_channels {net.out_channels}: "
            "Skip blocks take images with 3 channels alone"
        )


def _listed(choices: tuple[Any, ...]) -> str:
    return ", ".join(map(str, choices))
