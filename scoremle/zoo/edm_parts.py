"""Parts shared by the networks of EDM: fields, and tensors by the part that they belong to.

A part is named by its way, the size of its features, its kind, and its number among those:
"enc.32x32_block0", "dec.8x8_up". Attention has queries, keys and values interleaved channel by
channel.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from scoremle.errors import UserError

Arrays = Mapping[str, np.ndarray]
# Way and kind, such as "dec.up", and tensors by their names in the part.
Parts = list[tuple[str, dict[str, np.ndarray]]]

NAME = re.compile(r"(enc|dec)\.(\d{1,5})x\d+_([a-z_]+?)(\d{0,4})")
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
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in state.items():
        way, _, rest = name.partition(".")
        part, _, leaf = rest.partition(".")
        match = NAME.fullmatch(f"{way}.{part}")
        if not match or match[3] not in KINDS:
            raise UserError(f"the tensor {name} has no place in a network of EDM")
        parts.setdefault(match[0], {})[leaf] = array
    return [(_kind(name), parts[name]) for name in sorted(parts, key=_place)]


def _kind(name: str) -> str:
    way, _, kind, number = _match(name)
    return f"{way}.{kind}" + (number if kind == "in" else "")


def _place(name: str) -> tuple[bool, int, int, int]:
    way, size, kind, number = _match(name)
    down = way == "enc"
    return not down, -int(size) if down else int(size), KINDS.index(kind), int(number or 0)


def _match(name: str) -> tuple[str, ...]:
    match = NAME.fullmatch(name)
    assert match  # parts have names that did
    return match.groups()


def renamed(name: str, names: Mapping[str, str]) -> str:
    """A tensor's name with its layer called otherwise. Raises UserError for an unknown layer."""
    layer, _, leaf = name.partition(".")
    if layer not in names:
        raise UserError(f"the tensor {name} has no place in a network of EDM")
    return f"{names[layer]}.{leaf}"


def interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """The rows of queries, keys and values as [heads, channels, 3, ...]."""
    return array.reshape(heads, -1, 3, *array.shape[1:2])
