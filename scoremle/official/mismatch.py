"""In which fields a published network is not the one of the config, and which config fits."""

from pathlib import Path
from typing import Any

from scoremle.checkpoint import Damaged
from scoremle.official.architecture import ATTENTION, architecture
from scoremle.official.origin import Origin, config_file, origin

__all__ = ["mismatch"]


def mismatch(params: dict[str, Any], needed: dict[str, Any], path: Path) -> str | None:
    """The differences in one line; None if there is none to be seen, or no U-Net to see it in."""
    try:
        found, config = architecture(params), architecture(needed)
    except Damaged:
        return None
    names = [n for n in dict.fromkeys([*found, *config]) if found.get(n) != config.get(n)]
    if not names:
        return None
    facts = ", ".join(
        f"{_field(name)} is {found.get(name)!r}, not {config.get(name)!r}" for name in names
    )
    advice = _advice(found, names, origin(path))
    return f"{path} holds another network than the config says: {facts}; {advice}"


def _advice(found: dict[str, Any], names: list[str], known: Origin | None) -> str:
    file = config_file(known, found)
    if file and known:
        return f"use --config={file}"
    if file:
        return f"use a config such as {file}"
    flags = [
        f"--config.{_field(name)}={found[name]!r}".replace(" ", "")
        for name in names
        if name in found and name != ATTENTION
    ]
    return f"set {' '.join(flags) or 'model.attn_resolutions'}"


def _field(name: str) -> str:
    if name == ATTENTION:
        return name
    return f"{'data' if name == 'num_channels' else 'model'}.{name}"
