"""The families of models that others trained: how each is told, loaded, and copied.

What the parts of each mean; lambda is the log-SNR, from the smallest time to the greatest:

    family              output              label                   lambda
    ------------------  ------------------  ----------------------  ---------------------------
    diffusers           eps, x_0 or v       number of the step      9.2 .. -10.1 linear,
                                                                    10.1 .. -19.8 cosine
    improved-, guided-  eps or x_0, and v   number of the step,     the same; 4000 cosine steps
    diffusion           of variances        perhaps times 1000 / T  11.5 .. -22.6
    EDM                 F                   log(sigma) / 4          12.4 .. -8.8
    VP, VE of EDM       eps; -eps           999 t; log(sigma / 2)   13.8 .. -10.0; 7.8 .. -9.2
    iDDPM of EDM        eps, and v          number of the step      10.1 .. -19.8

In all of them level k of a pixel stands at 2k/255 - 1 (`PIXELS`), and a class is a number.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from scoremle.model import ScoreModel
from scoremle.published import diffusers, edm, openai

__all__ = ["FAMILIES", "OTHERS", "Family", "family_of"]


class Family(NamedTuple):
    """Models of one kind.

    Args:
        words: what they are.
        is_one: does this lie at a path?
        load: the model at a path.
        files: the files that it is read from, by the names that a copy of them has.
        main: which of these names ``load`` takes; "" is the folder that they lie in.
    """

    words: str
    is_one: Callable[[Path], bool]
    load: Callable[[Path], ScoreModel]
    files: Callable[[Path], dict[str, Path]]
    main: str = ""


FAMILIES = {
    "diffusers": Family(
        "a folder of diffusers", diffusers.is_folder, diffusers.load, diffusers.files
    ),
    "openai": Family(
        "a .pt of improved- or guided-diffusion", openai.is_file, openai.load, openai.files,
        "model.pt",
    ),
    "edm": Family(
        "a .safetensors of EDM, its fields beside it", edm.is_file, edm.load, edm.files,
        "model.safetensors",
    ),
}  # fmt: skip

# For whatever is none of these.
OTHERS = (
    f"{', '.join(family.words for family in FAMILIES.values())}; use"
    " scoremle.interop.torch.from_module in a FILE.py:function for any other"
)


def family_of(path: Path) -> str | None:
    """The name of the family of what lies at a path; None if it is of none."""
    return next((name for name, family in FAMILIES.items() if family.is_one(path)), None)
