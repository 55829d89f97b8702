"""The networks of EDM: SongUNet, which is DDPM++ or NCSN++, and DhariwalUNet, which is ADM.

Their tensors are identified by the part that they belong to, and get the names and layouts of the
networks here. A part is named by its way, the size of its features, its kind, and its number among
those: "enc.32x32_block0", "dec.8x8_up". Attention has queries, keys and values interleaved channel
by channel.
"""

import re
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
from scoremle.nn.applied import Applied, matmul_precision
from scoremle.published.pytorch import network_parameters
from scoremle.training.checkpoints import Damaged
from scoremle.zoo.adm import ADM, adm_params
from scoremle.zoo.blocks import check_labels, class_rows

Arrays = Mapping[str, np.ndarray]
# Way, size, kind and number of a part, as they are in names.
Place = tuple[str, ...]
# Way and kind, such as "dec.up", and tensors by their names in the part.
Parts = list[tuple[str, dict[str, np.ndarray]]]

NAME = re.compile(r"(enc|dec)\.(\d{1,5})x\2_([a-z_]+?)(\d{0,4})")
# The kinds of parts, in the order in which a level uses them.
KINDS = (
    "conv", "in", "down", "up", "aux_down", "aux_skip", "aux_residual", "block", "aux_up",
    "aux_norm", "aux_conv",
)  # fmt: skip
# Fields that both networks need, and those that they may have.
FIELDS: dict[str, Any] = {
    "img_resolution": None, "img_channels": None, "label_dim": 0, "channel_mult_emb": 4,
}  # fmt: skip


def edm_fields(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a network; ``defaults`` are of those that it alone has.

    Raises UserError for one that is missing or not known.
    """
    known = FIELDS | dict(defaults)
    for name in sorted(given.keys() - known.keys()):
        raise UserError(f"the field {name} is not known here")
    found = known | dict(given)
    for name in [name for name, value in found.items() if value is None]:
        raise UserError(f"the field {name} is missing")
    check_field(found, "channel_mult_emb", [4])
    return found


def check_field(fields: Mapping[str, Any], name: str, known: Any) -> None:
    """UserError unless a field has a value that is known here."""
    if fields.get(name) not in known:
        choices = ", ".join(map(str, known))
        raise UserError(f"{name} is {fields.get(name)!r}: known here is {choices}")


def check_shape(name: str, found: Any, needed: Any) -> None:
    """Raises UserError unless a tensor has the needed shape. None is the shape of no tensor."""
    if found != needed:
        raise UserError(
            f"the tensors do not fit the fields: {name} has the shape {found}, and the network"
            f" needs {needed}"
        )


def parts_of(state: Arrays) -> Parts:
    """The parts of both ways in the order of use. Raises UserError for what is in none."""
    parts: dict[Place, dict[str, np.ndarray]] = {}
    for name, array in state.items():
        way, _, rest = name.partition(".")
        part, _, leaf = rest.partition(".")
        match = NAME.fullmatch(f"{way}.{part}")
        if not match or match[3] not in KINDS:
            raise UserError(f"the tensor {name} has no place in a network of EDM")
        parts.setdefault(match.groups(), {})[leaf] = array
    return [(_kind(place), parts[place]) for place in sorted(parts, key=_order)]


def _kind(place: Place) -> str:
    way, _, kind, number = place
    return f"{way}.{kind}" + (number if kind == "in" else "")


def _order(place: Place) -> tuple[bool, int, int, int]:
    way, size, kind, number = place
    down = way == "enc"
    return not down, -int(size) if down else int(size), KINDS.index(kind), int(number or 0)


def renamed(name: str, names: Mapping[str, str]) -> str:
    """A tensor's name with its layer called otherwise. Raises UserError for an unknown layer."""
    layer, _, leaf = name.partition(".")
    if layer not in names:
        raise UserError(f"the tensor {name} has no place in a network of EDM")
    return f"{names[layer]}.{leaf}"


def interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """The rows of queries, keys and values as [heads, channels, 3, ...]."""
    return array.reshape(heads, -1, 3, *array.shape[1:2])


# DhariwalUNet ------------------------------------------------------------------------------------
#
# Its blocks resample, in place of layers that do; a block that doubles comes before its level,
# and in ADM it is the last layer of the block before. Its heads have 64 channels.

OF_DHARIWAL = {
    "model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3,
    "attn_resolutions": [32, 16, 8],
}  # fmt: skip
HEAD_CHANNELS = 64
# With fewer, EDM normalises in fewer than the 32 groups of ADM.
LEAST_CHANNELS = 128
# What layers and blocks are called in guided-diffusion.
GUIDED_BLOCK = {
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
    f = edm_fields(fields, OF_DHARIWAL)
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
                yield f"{block}.{renamed(name, GUIDED_BLOCK)}", array


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


# SongUNet ----------------------------------------------------------------------------------------
#
# It may take classes. In the order of use its parts are those of score_sde_pytorch, whose names
# ``published/pytorch.py`` has.

OF_SONG = {
    "model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4,
    "attn_resolutions": [16], "embedding_type": "positional", "channel_mult_noise": 1,
    "encoder_type": "standard", "decoder_type": "standard", "resample_filter": [1, 1],
}  # fmt: skip
# What the fields are called in DDPMpp, and channel_mult_noise by the kind of embedding.
PROGRESSIVE_INPUT = {"standard": "none", "skip": "input_skip", "residual": "residual"}
PROGRESSIVE = {"standard": "none", "skip": "output_skip"}
NOISE_CHANNELS = {"positional": 1, "fourier": 2}
# What layers are called in score_sde_pytorch.
SDE_BLOCK = {
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

    def __call__(self, params: Any, x: Any, noise_label: Any, label: Any = None) -> Any:
        check_labels(label, "rows" in params)
        rows = params.get("rows", ())
        shift = None if label is None else jnp.take(rows, class_rows(label, len(rows)), axis=0)
        given = {"params": params["network"]}
        with jax.default_matmul_precision(matmul_precision()):
            return self.network.apply(given, x, noise_label, shift=shift)


def song(fields: Mapping[str, Any], state: Arrays, ranged: bool) -> Partial:
    """The network.

    Raises UserError for fields or tensors that it can't have, and if it is to predict variances
    (``ranged``).
    """
    if ranged:
        raise UserError("a SongUNet has no variance of steps: known here is DhariwalUNet")
    f = edm_fields(fields, OF_SONG)
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
        raise UserError(f"the tensors are not SongUNet's: {error}") from None
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
        if not any("." in name for name in part):  # a layer alone
            yield {ALONE.get(kind, "") + leaf: array for leaf, array in part.items()}
            continue
        block = (name for name in part if name.split(".")[0] not in ATTENTION)
        yield {renamed(name, SDE_BLOCK): part[name] for name in block}
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
