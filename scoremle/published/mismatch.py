"""In which fields a published network or dequantizer is not that of the config; what would fit."""

from pathlib import Path
from typing import Any

from scoremle.published.architecture import ATTENTION, architecture, flow_architecture
from scoremle.published.origin import PublishedModel, config_name, origin
from scoremle.training.checkpoints import Damaged

OF_DATA = ("num_channels", "image_size")
OF_THE_FLOW = ("variant", "filters", "components", "blocks", "couplings")


def mismatch(params: dict[str, Any], needed: dict[str, Any], path: Path) -> str | None:
    """The differences in one line; None if there is none to be seen, or nothing to see it in."""
    flow = "Norm_0" in needed
    describe = flow_architecture if flow else architecture
    try:
        found, config = describe(params), describe(needed)
    except Damaged:
        return None
    names = [n for n in dict.fromkeys([*found, *config]) if found.get(n) != config.get(n)]
    if not names:
        return None
    facts = ", ".join(
        f"{_field(name)} is {found.get(name)!r}, not {config.get(name)!r}" for name in names
    )
    advice = _fields(found, names) if flow else _advice(found, names, origin(path))
    what = "dequantizer" if flow else "network"
    return f"{path} holds another {what} than the config says: {facts}; {advice}"


def _advice(found: dict[str, Any], names: list[str], known: PublishedModel | None) -> str:
    name = config_name(known, found)
    if name and known:
        return f"use the config {name}"
    if name:
        return f"use a config such as {name}"
    return _fields(found, names)


def _fields(found: dict[str, Any], names: list[str]) -> str:
    fields = [
        f"{_field(name)}={found[name]!r}".replace(" ", "")
        for name in names
        if name in found and name != ATTENTION
    ]
    return f"set {' '.join(fields) or _field('attn_resolutions')}"


def _field(name: str) -> str:
    if name == ATTENTION:
        return name
    section = "data" if name in OF_DATA else "deq" if name in OF_THE_FLOW else "model"
    return f"{section}.{name}"
