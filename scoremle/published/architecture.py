"""Architecture of the network or dequantizer of a tree of parameters, by names and shapes.

Down and up a U-Net of L levels with R blocks a level there are L R and L (R + 1) residual blocks,
two in the middle, and with BigGAN blocks 2 (L - 1) more that resample. A block with a shortcut
convolution and as many channels out as in is one that resamples; the first block that takes in
more channels than the one before gave has a skip connection, and so begins the way up.

Not seen in shapes: resolutions (only which levels have attention), activation, the FIR filter
of BigGAN blocks, scales of sums; of a dequantizer, the number of attention heads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from scoremle.training.checkpoints import Damaged

ATTENTION = "attention at levels"


@contextmanager
def _parameters_of(what: str) -> Iterator[None]:
    """Turns whatever error other parameters than these cause into Damaged."""
    try:
        yield
    except (LookupError, ValueError, AttributeError, TypeError, ArithmeticError, StopIteration):
        raise Damaged(f"its parameters are not those of a {what}") from None


@_parameters_of("Flow++ dequantizer")
def flow_architecture(params: dict[str, Any]) -> dict[str, Any]:
    """Fields ``deq.*`` (bare names) and image_size.

    Args:
        params: of a flow dequantizer, as a tree; shapes are enough.

    Raises Damaged for what is not a Flow++.
    """
    couplings = _numbered(params, "MixLogisticAttnCoupling")
    first = couplings[0]
    size, _, filters = first["pos_emb"].shape
    channels = params["Norm_0"]["norm0_g"].shape[-1]
    blocks = sum(name.endswith("_attn_proj1_W") for name in first)
    deep = "DeepProcessor_0" in params
    (outputs,) = first[f"block{blocks - 1}_{'c2' if deep else 'proj_out'}_b"].shape
    return {
        "variant": "imagenet32" if deep else "cifar10",
        "filters": filters,
        "components": (outputs // channels - 2) // 3,
        "blocks": blocks,
        "couplings": len(couplings),
        "image_size": size,
    }


@_parameters_of("DDPM++ or NCSN++")
def architecture(params: dict[str, Any]) -> dict[str, Any]:
    """Fields ``model.*`` (bare names), num_channels, and the levels that have attention.

    Args:
        params: of a network, as a tree; shapes are enough.

    Raises Damaged for what is not a DDPM++ or NCSN++.
    """
    _, _, channels, nf = params["Conv_0"]["kernel"].shape
    biggan = "ResnetBlockBigGANpp_0" in params
    kind = "ResnetBlockBigGANpp" if biggan else "ResnetBlockDDPMpp"
    blocks = _numbered(params, kind)
    levels = _levels(params, blocks, biggan)
    resampling = levels - 1 if biggan else 0
    per_level, rest = divmod(len(blocks) - levels - 2 - 2 * resampling, 2 * levels)
    if rest or per_level < 1:
        raise ValueError
    stride = per_level + biggan
    widths = [_widths(blocks[level * stride])[1] for level in range(levels)]
    return {
        "nf": nf,
        "ch_mult": tuple(width // nf for width in widths),
        "num_res_blocks": per_level,
        ATTENTION: _attention(params, widths, per_level),
        "resblock_type": "biggan" if biggan else "ddpm",
        "conditional": "Dense_0" in params,
        "embedding_type": "fourier" if "GaussianFourierProjection_0" in params else "positional",
        **_pyramids(params, blocks, stride, channels),
        **({"fir": True} if _has_fir(params) else {}),
        "num_channels": channels,
    }


def _numbered(params: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The parts of a kind in order. Numbers of parts without parameters are left out."""
    found = [name for name in params if name.rpartition("_")[0] == kind]
    return [params[name] for name in sorted(found, key=lambda name: int(name.rpartition("_")[2]))]


def _widths(block: dict[str, Any]) -> tuple[int, int]:
    """Channels into a block, and out of it."""
    return block["Conv_0"]["kernel"].shape[2:]


def _levels(params: dict[str, Any], blocks: list[dict[str, Any]], biggan: bool) -> int:
    widths = [_widths(block) for block in blocks]
    if biggan:
        resampling = sum(
            "Conv_2" in b and i == o for b, (i, o) in zip(blocks, widths, strict=True)
        )
        return resampling // 2 + 1
    if combined := _numbered(params, "Combine"):
        return len(combined) + 1
    up = next(i for i in range(2, len(blocks)) if widths[i][0] > widths[i - 1][1])
    return len(blocks) + 2 - 2 * up


def _attention(params: dict[str, Any], widths: list[int], per_level: int) -> tuple[int, ...]:
    """The levels with attention: the finest ones that have the right channels."""
    found = [block["NIN_0"]["W"].shape[0] for block in _numbered(params, "AttnBlockpp")]
    count = (len(found) - 1) // (per_level + 1)
    levels: list[int] = []
    for width in found[: per_level * count : per_level]:
        levels.append(widths.index(width, levels[-1] + 1 if levels else 0))
    return tuple(levels)


def _pyramids(
    params: dict[str, Any], blocks: list[dict[str, Any]], stride: int, channels: int
) -> dict[str, Any]:
    fields = {"progressive": "none", "progressive_input": "none"}
    outputs = [part["kernel"].shape[3] for part in _numbered(params, "Conv")[1:]]
    if outputs[0] != channels:
        fields["progressive"] = "residual"
    elif len(outputs) > 1:
        fields["progressive"] = "output_skip"
    if combined := _numbered(params, "Combine"):
        fields["progressive_input"] = "input_skip"
        both = _widths(blocks[stride])[0] == 2 * combined[0]["Conv_0"]["kernel"].shape[3]
        fields["progressive_combine"] = "cat" if both else "sum"
    elif any(_resampler_input(part) == channels for part in _numbered(params, "Downsample")):
        fields["progressive_input"] = "residual"
    return fields


def _resampler_input(part: dict[str, Any]) -> int:
    (conv,) = part.values()
    return conv["kernel" if "kernel" in conv else "weight"].shape[2]


def _has_fir(params: dict[str, Any]) -> bool:
    resamplers = _numbered(params, "Downsample") + _numbered(params, "Upsample")
    return any("Conv2d_0" in part for part in resamplers)
