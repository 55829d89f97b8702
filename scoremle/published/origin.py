"""Data set, depth, SDE and objective by the name of a published folder.

score_flow: ``<cifar10|imagenet32>_(deep)_<vp|subvp>_(likelihood)_(iw)_(flip)``.
score_sde: ``<vp|subvp|ve>/<data set>_<ddpmpp|ncsnpp>_(deep)_continuous``.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from scoremle.published.architecture import ATTENTION

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
    """Origin of a folder with a published name, or of a file in it; None for other names."""
    for folder in (place, *place.parents[:2]):
        if match := SCORE_FLOW.fullmatch(folder.name):
            dataset, _, sde, *options = match.groups()
            flip = bool(match[2])
            return PublishedModel(dataset.lower(), sde.lower(), flip, *map(bool, options))
        if match := SCORE_SDE.fullmatch(f"{folder.parent.name}/{folder.name}"):
            return PublishedModel(match[2], match[1], bool(match[4]))
    return None


def config_name(known: PublishedModel | None, architecture: dict[str, object]) -> str | None:
    """The published config of a network by name, if any; of VP and CIFAR-10 if all is unknown."""
    known = known or PublishedModel("cifar10", "vp")
    blocks = architecture["num_res_blocks"]
    same = all(architecture[name] == value for name, value in DDPMPP.items())
    if blocks not in (SHALLOW, DEEP) or not same or known.sde == "ve":
        return None
    return replace(known, deep=blocks == DEEP).config
