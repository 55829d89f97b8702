"""SongUNet of EDM, which is DDPM++ or NCSN++ under other names, and may take classes.

In the order of use its parts are those of score_sde_pytorch, whose names ``pytorch.py`` has.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.tree_util import Partial

from scoremle.devices import placed
from scoremle.errors import UserError
from scoremle.nn import DDPMpp
from scoremle.published.pytorch import network_parameters
from scoremle.training.checkpoints import Damaged
from scoremle.zoo.blocks import check_labels
from scoremle.zoo.edm_parts import (
    Arrays,
    check_field,
    check_shape,
    edm_fields,
    interleaved,
    parts_of,
    renamed,
)

DEFAULTS = {
    "model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4,
    "attn_resolutions": [16], "embedding_type": "positional", "channel_mult_noise": 1,
    "encoder_type": "standard", "decoder_type": "standard", "resample_filter": [1, 1],
}  # fmt: skip
# What the fields are called in DDPMpp, and channel_mult_noise by the kind of embedding.
PROGRESSIVE_INPUT = {"standard": "none", "skip": "input_skip", "residual": "residual"}
PROGRESSIVE = {"standard": "none", "skip": "output_skip"}
NOISE_CHANNELS = {"positional": 1, "fourier": 2}
# What layers are called in score_sde_pytorch.
BLOCK = {
    "norm0": "GroupNorm_0", "conv0": "Conv_0", "affine": "Dense_0", "norm1": "GroupNorm_1",
    "conv1": "Conv_1", "skip": "Conv_2",
}  # fmt: skip
ALONE = {"enc.aux_residual": "Conv2d_0.", "enc.aux_skip": "Conv."}
EMBEDDING = ("map_layer0.weight", "map_layer0.bias", "map_layer1.weight", "map_layer1.bias")
FREQUENCIES = "map_noise.freqs"
LABELS = ("map_label.weight", "map_label.bias")


@dataclass(frozen=True)
class Labelled:
    """A network that adds the row of a class to the embedding of the noise level, if it has rows.

    Raises UserError for a label where it has none, and for none where it has them.
    """

    network: nn.Module

    def __call__(self, params: Any, x: Any, told: Any, label: Any = None) -> Any:
        check_labels(label, "rows" in params)
        shift = None if label is None else params["rows"][label]
        return self.network.apply({"params": params["network"]}, x, told, shift)


def song(fields: Mapping[str, Any], state: Arrays, ranged: bool) -> Partial:
    """The network.

    Raises UserError for fields or tensors that it can't have, and if it is to predict variances
    (``ranged``).
    """
    if ranged:
        raise UserError("a SongUNet has no variance of steps: known here is DhariwalUNet")
    f = edm_fields(fields, DEFAULTS)
    network, size = _network(f), f["img_resolution"]
    params: dict[str, Any] = {}
    if f["label_dim"]:
        params["rows"] = _rows(f, state)
        state = {name: array for name, array in state.items() if name not in LABELS}
    numbered = {
        f"all_modules.{i}.{name}": array
        for i, part in enumerate(_parts(state))
        for name, array in part.items()
    }
    try:
        params["network"] = network_parameters(numbered)
    except Damaged as error:
        raise UserError(f"the tensors are no SongUNet's: {error}") from None
    _check_shapes(params["network"], network, (1, size, size, f["img_channels"]))
    return Partial(Labelled(network), placed(params))


def _network(f: Mapping[str, Any]) -> DDPMpp:
    check_field(f, "embedding_type", NOISE_CHANNELS)
    check_field(f, "channel_mult_noise", [NOISE_CHANNELS[f["embedding_type"]]])
    check_field(f, "encoder_type", PROGRESSIVE_INPUT)
    check_field(f, "decoder_type", PROGRESSIVE)
    return DDPMpp(
        nf=f["model_channels"], ch_mult=tuple(f["channel_mult"]), num_res_blocks=f["num_blocks"],
        attn_resolutions=tuple(f["attn_resolutions"]), fir=True,
        fir_kernel=tuple(f["resample_filter"]), embedding_type=f["embedding_type"],
        progressive=PROGRESSIVE[f["decoder_type"]],
        progressive_input=PROGRESSIVE_INPUT[f["encoder_type"]],
    )  # fmt: skip


def _rows(f: Mapping[str, Any], state: Arrays) -> np.ndarray:
    """Embedding of each class, which is added to that of the noise level."""
    weight, bias = (_tensor(state, name) for name in LABELS)
    width = f["model_channels"] * f["channel_mult_noise"]
    check_shape(LABELS[0], weight.shape, (width, f["label_dim"]))
    check_shape(LABELS[1], bias.shape, (width,))
    return weight.T * np.sqrt(f["label_dim"]) + bias


def _parts(state: Arrays) -> Iterator[dict[str, np.ndarray]]:
    """The parts in the order of use, with the names of score_sde_pytorch."""
    if FREQUENCIES in state:
        yield {"W": state[FREQUENCIES]}
    for layer in (EMBEDDING[:2], EMBEDDING[2:]):
        yield {name.split(".")[1]: _tensor(state, name) for name in layer}
    rest = {n: array for n, array in state.items() if n not in (*EMBEDDING, FREQUENCIES)}
    for kind, part in parts_of(rest):
        block = {name: array for name, array in part.items() if name.split(".")[0] in BLOCK}
        if not block:
            yield {ALONE.get(kind, "") + leaf: array for leaf, array in part.items()}
            continue
        yield {renamed(name, BLOCK): array for name, array in block.items()}
        if "qkv.weight" in part:
            yield dict(_attention(part))


def _attention(part: Arrays) -> Iterator[tuple[str, np.ndarray]]:
    yield "GroupNorm_0.weight", part["norm2.weight"]
    yield "GroupNorm_0.bias", part["norm2.bias"]
    weight, bias = part["qkv.weight"][:, :, 0, 0], part["qkv.bias"]
    for i in range(3):
        yield f"NIN_{i}.W", interleaved(weight, 1)[0, :, i].T
        yield f"NIN_{i}.b", interleaved(bias, 1)[0, :, i]
    yield "NIN_3.W", part["proj.weight"][:, :, 0, 0].T
    yield "NIN_3.b", part["proj.bias"]


def _tensor(state: Arrays, name: str) -> np.ndarray:
    if name not in state:
        raise UserError(f"the tensor {name} is missing")
    return state[name]


def _check_shapes(params: Any, network: nn.Module, shape: tuple[int, ...]) -> None:
    x, t = (jax.ShapeDtypeStruct(of, jnp.float32) for of in (shape, (1,)))
    wanted = jax.eval_shape(network.init, jax.random.key(0), x, t)
    needed, found = (flatten_dict(tree, sep="/") for tree in (wanted["params"], params))
    for name in sorted(needed.keys() | found.keys()):
        shapes = [tree[name].shape if name in tree else None for tree in (found, needed)]
        check_shape(name, *shapes)
