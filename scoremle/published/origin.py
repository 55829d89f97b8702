"""Data set, depth, SDE and objective by the name of a published folder; and what would fit.

score_flow: ``<cifar10|imagenet32>_(deep)_<vp|subvp>_(likelihood)_(iw)_(flip)``.
score_sde: ``<vp|subvp|ve>/<data set>_<ddpmpp|ncsnpp>_(deep)_continuous``.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scoremle.published.architecture import ATTENTION, architecture, flow_architecture
from scoremle.training.checkpoints import Damaged

SCORE_FLOW = re.compile(
    r"(cifar10|imagenet32)(_deep)?_(vp|subvp)(_likelihood)?(_iw)?(_flip)?", re.IGNORECASE
)
SCORE_SDE = re.compile(r"(vp|subvp|ve)/(cifar10)_(ddpmpp|ncsnpp)(_deep)?_continuous")

# What the eight published configs have in common, and in which they differ.
DDPMPP = {
    "nf": 128,
    "ch_mult": (1, 2, 2, 2),
    ATTENTION: (1,),
    "resblock_type": "biggan",
    "conditional": True,
    "embedding_type": "positional",
    "progressive": "none",
    "progressive_input": "none",
    "num_channels": 3,
}
SHALLOW, DEEP = 4, 8
# Fields that are of other sections than ``model``.
OF_DATA = ("num_channels", "image_size")
OF_THE_FLOW = ("variant", "filters", "components", "blocks", "couplings")


@dataclass(frozen=True)
class PublishedModel:
    """A published model; ``flip`` is None where its name does not contain it."""

    dataset: str
    sde: str
    deep: bool = False
    likelihood: bool = False
    importance: bool = False
    flip: bool | None = None

    @property
    def config(self) -> str:
        """Name of the published config that is nearest: the same where there is one."""
        folder = "subvp" if self.sde == "subvp" else "vp"
        return f"{folder}/{self.dataset}_ddpmpp{'_deep' * self.deep}_continuous"

    @property
    def sections(self) -> dict[str, dict[str, object]]:
        """The fields of a config that the name states, by its sections."""
        training: dict[str, object] = {
            "sde": f"{self.sde}sde",
            "likelihood_weighting": self.likelihood,
            "importance_weighting": self.importance,
        }
        found: dict[str, dict[str, object]] = {"training": training}
        if self.flip is not None:
            found["data"] = {"random_flip": self.flip}
        if self.sde == "ve":  # score_sde's: NCSN++ with these settings throughout
            found |= {"data": {"centered": False}, "model": {"scale_by_sigma": True}}
        return found


def origin(place: Path) -> PublishedModel | None:
    """Origin of a folder with a published name, or of a file in it; None for other names.

    Args:
        place: of the folder or file; it is not opened.
    """
    for folder in (place, *place.parents[:2]):
        if match := SCORE_FLOW.fullmatch(folder.name):
            dataset, _, sde, *options = match.groups()
            deep = bool(match[2])
            return PublishedModel(dataset.lower(), sde.lower(), deep, *map(bool, options))
        if match := SCORE_SDE.fullmatch(f"{folder.parent.name}/{folder.name}"):
            return PublishedModel(match[2], match[1], bool(match[4]))
    return None


def config_name(known: PublishedModel | None, found: dict[str, object]) -> str | None:
    """The published config of a network by name, if any; of VP and CIFAR-10 if all is unknown."""
    known = known or PublishedModel("cifar10", "vp")
    blocks = found["num_res_blocks"]
    same = all(found[name] == value for name, value in DDPMPP.items())
    if blocks not in (SHALLOW, DEEP) or not same or known.sde == "ve":
        return None
    return replace(known, deep=blocks == DEEP).config


def mismatch(params: dict[str, Any], needed: dict[str, Any], path: Path) -> str | None:
    """The differences of a network or dequantizer from that of the config, and what would fit.

    In one line; None if there is none to be seen, or nothing to see it in.
    """
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
