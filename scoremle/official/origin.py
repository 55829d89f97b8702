"""What the name of a published folder says: data set, depth, SDE, objective.

score_flow: ``<cifar10|imagenet32>_(deep)_<vp|subvp>_(likelihood)_(iw)_(flip)``.
score_sde: ``<vp|subvp|ve>/<data set>_<ddpmpp|ncsnpp>_(deep)_continuous``.
"""

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Origin", "config_file", "origin"]

SCORE_FLOW = re.compile(
    r"(cifar10|imagenet32)(_deep)?_(vp|subvp)(_likelihood)?(_iw)?(_flip)?", re.IGNORECASE
)
SCORE_SDE = re.compile(r"(vp|subvp|ve)/(cifar10)_(ddpmpp|ncsnpp)(_deep)?_continuous")


@dataclass(frozen=True)
class Origin:
    """A published model; ``flip`` is None where its name does not say."""

    dataset: str
    sde: str
    likelihood: bool = False
    importance: bool = False
    flip: bool | None = None

    @property
    def fields(self) -> dict[str, object]:
        """The fields of a config that the name states."""
        fields: dict[str, object] = {
            "training.sde": f"{self.sde}sde",
            "training.likelihood_weighting": self.likelihood,
            "training.importance_weighting": self.importance,
        }
        return fields if self.flip is None else {**fields, "data.random_flip": self.flip}


def origin(place: Path) -> Origin | None:
    """Of a folder that has a name as published, or of a file in it."""
    for folder in (place, *place.parents[:2]):
        if match := SCORE_FLOW.fullmatch(folder.name):
            dataset, _, sde, likelihood, weighting, flip = match.groups()
            return Origin(
                dataset.lower(), sde.lower(), bool(likelihood), bool(weighting), bool(flip)
            )
        if match := SCORE_SDE.fullmatch(f"{folder.parent.name}/{folder.name}"):
            return Origin(match[2], match[1])
    return None


def config_file(known: Origin | None, blocks: int) -> str | None:
    """The published config of a model with so many blocks a level, if there is one."""
    depth = {4: "", 8: "_deep"}.get(blocks)
    dataset, sde = (known.dataset, known.sde) if known else ("cifar10", "vp")
    if depth is None or sde == "ve":
        return None
    return f"configs/{sde}/{dataset}_ddpmpp{depth}_continuous.py"
