"""DhariwalUNet of EDM, which is ADM under other names.

Its blocks resample, in place of layers that do; a block that doubles stands before its level, and
in ADM it is the last layer of the block before. Its heads have 64 channels.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jax.tree_util import Partial

from scoremle.devices import placed
from scoremle.errors import UserError
from scoremle.nn.applied import Applied
from scoremle.zoo.adm import ADM, adm_params
from scoremle.zoo.edm_parts import (
    Arrays,
    Parts,
    check_field,
    edm_fields,
    interleaved,
    parts_of,
    renamed,
)

DEFAULTS = {
    "model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3,
    "attn_resolutions": [32, 16, 8],
}  # fmt: skip
HEAD_CHANNELS = 64
# With fewer, EDM normalises in fewer than the 32 groups of ADM.
LEAST_CHANNELS = 128
# What layers and blocks are called in guided-diffusion.
BLOCK = {
    "norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1",
    "norm1": "out_layers.0", "conv1": "out_layers.3", "skip": "skip_connection",
}  # fmt: skip
ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "proj_out"}
ENDS = {
    "map_layer0": "time_embed.0", "map_layer1": "time_embed.2", "out_norm": "out.0",
    "out_conv": "out.2",
}  # fmt: skip
MIDDLE = {"dec.in0": "middle_block.0", "dec.in1": "middle_block.2"}
WAYS = {"enc": "input_blocks", "dec": "output_blocks"}


def dhariwal(fields: Mapping[str, Any], state: Arrays, ranged: bool) -> Partial:
    """The network; ``ranged``: it predicts variances, too.

    Raises UserError for fields or tensors that it can't have.
    """
    f = edm_fields(fields, DEFAULTS)
    check_field(f, "img_channels", [3])
    if f["model_channels"] * min(f["channel_mult"]) < LEAST_CHANNELS:
        raise UserError(f"a DhariwalUNet of under {LEAST_CHANNELS} channels is not known here")
    network = ADM(
        image_size=f["img_resolution"], num_channels=f["model_channels"],
        num_res_blocks=f["num_blocks"], channel_mult=tuple(f["channel_mult"]),
        attention_resolutions=tuple(f["attn_resolutions"]), num_head_channels=HEAD_CHANNELS,
        resblock_updown=True, learn_sigma=ranged, class_cond=f["label_dim"] > 0,
        num_classes=f["label_dim"],
    )  # fmt: skip
    return Partial(Applied(network), placed(adm_params(dict(_renamed(state)), network)))


def _renamed(state: Arrays) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors, with names and layouts of guided-diffusion."""
    ways = {name: array for name, array in state.items() if name.split(".")[0] in WAYS}
    for name in state.keys() - ways.keys():
        if name == "map_label.weight":
            yield "label_emb.weight", state[name].T
        else:
            yield renamed(name, ENDS), state[name]
    for block, attention, part in _blocks(parts_of(ways)):
        for name, array in part.items():
            if "." not in name:  # a convolution alone
                yield f"{block}.{name}", array
            elif name.split(".")[0] in ATTENTION:
                yield f"{attention}.{renamed(name, ATTENTION)}", _of_attention(name, array)
            else:
                yield f"{block}.{renamed(name, BLOCK)}", array


def _blocks(parts: Parts) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
    """The name there of each block, that of the attention behind it, and its tensors here."""
    counts, layers = dict.fromkeys(WAYS, 0), 0
    for kind, part in parts:
        way = kind.split(".")[0]
        if kind in MIDDLE:
            yield MIDDLE[kind], "middle_block.1", part
        elif kind == "dec.up":
            yield f"{WAYS[way]}.{counts[way] - 1}.{layers}", "", part
        else:
            block = f"{WAYS[way]}.{counts[way]}"
            yield f"{block}.0", f"{block}.1", part
            counts[way] += 1
            layers = 1 + ("qkv.weight" in part)


def _of_attention(name: str, array: np.ndarray) -> np.ndarray:
    array = array[:, :, 0, 0] if array.ndim == 4 else array
    if name.startswith("qkv"):
        # There heads come first, in each of them queries, then keys, then values.
        heads = len(array) // (3 * HEAD_CHANNELS)
        array = np.moveaxis(interleaved(array, heads), 2, 1).reshape(array.shape)
    return array[:, :, None] if array.ndim == 2 else array
