"""The families of models that others trained: how each is identified, loaded, and copied.

What the parts of each mean; lambda is the log-SNR, from the smallest time to the greatest:

    family              output              label                   lambda
    ------------------  ------------------  ----------------------  ---------------------------
    diffusers           eps, x_0 or v       number of the step      9.2 .. -10.1 linear,
                                                                    10.1 .. -19.8 cosine
    score_sde's VE by   score               sigma                   9.2 .. -14.4, or less far
    diffusers
    improved-, guided-  eps or x_0, and v   number of the step,     the same; 4000 cosine steps
    diffusion           of variances        perhaps times 1000 / T  11.5 .. -22.6
    EDM                 F                   log(sigma) / 4          12.4 .. -8.8
    VP, VE of EDM       eps; -eps           999 t; log(sigma / 2)   13.8 .. -10.0; 7.8 .. -9.2
    iDDPM of EDM        eps, and v          number of the step      10.1 .. -19.8
    VDM                 eps                 log-SNR                 13.3 .. -5 at first, learned
    i-DODE              v, or u/sqrt(2)     log-SNR                 13.3 .. -5
    MuLAN               v or eps            mean log-SNR, a code    13.3 .. -5, by the code

Level k of a pixel has the value 2k/255 - 1 (`PIXELS`), but for score_sde's VE k/255, and for the
last three (2k + 1)/256 - 1. A class is a number.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from scoremle.bounded import LARGEST_SIDE, MAX_MODEL
from scoremle.core.pixels import Pixels
from scoremle.core.sde import SDE
from scoremle.errors import UserError, by, first_line
from scoremle.files import inside, named, opened, read_json
from scoremle.likelihood.steps import BySteps
from scoremle.model import Origin, ScoreModel
from scoremle.published import pytorch, safetensors
from scoremle.types import NoiseFn

__all__ = ["FAMILIES", "HUB", "OTHER_FAMILIES", "family_of"]

# Levels k of 256 in the middle of their bins, at 2k/255 - 1.
PIXELS = Pixels.of_points(256, -1, 1)
# What a model on the Hugging Face hub is named by: ``hf:OWNER/NAME[@REVISION]``.
HUB = "hf:"
# The file of a pipeline of diffusers that names its parts.
PIPELINE_INDEX = "model_index.json"
# How a training state of VDM begins: a map of four, and the name of the first.
STATE = b"\x84\xa4step"


def is_diffusers(path: Path) -> bool:
    """Whether this is the folder of a pipeline, or of a network, of diffusers."""
    configs = (PIPELINE_INDEX, "unet/config.json", "config.json")
    return path.is_dir() and any(
        (path / config).is_file() and "_diffusers_version" in read_json(inside(path, config))
        for config in configs
    )


def flags_beside(path: Path) -> Path:
    """The file of the flags that a checkpoint was trained with."""
    return path.with_suffix(".json")


def is_openai(path: Path) -> bool:
    """Whether this is a ``.pt``, or a checkpoint of PyTorch with flags beside it."""
    if not path.is_file():
        return False
    return path.suffix == ".pt" or (pytorch.is_torch_file(path) and flags_beside(path).is_file())


def is_edm(path: Path) -> bool:
    """Whether this is a file of tensors, or a pickle of EDM, which is refused by name."""
    return path.is_file() and (path.suffix == ".pkl" or safetensors.is_file(path))


def is_vdm(path: Path) -> bool:
    """Whether this is a training state of four parts in Flax's msgpack, of which step is first."""
    if not path.is_file():
        return False
    with opened(named(path), MAX_MODEL) as file:
        return file.read(len(STATE)) == STATE


class Family(NamedTuple):
    """Models of one kind.

    Args:
        title: the kind, for people.
        is_one: whether a model of the kind lies at a path.
        module: of this room: it loads them.
        main: the file that is loaded, by the name that a copy of it has; "" is the folder that
            the copies are in.
    """

    title: str
    is_one: Callable[[Path], bool]
    module: str
    main: str = ""

    def load(self, path: Path) -> ScoreModel:
        """The model at a path."""
        return self._imported.load(path)

    def files(self, path: Path) -> dict[str, Path]:
        """The files that a model is read from, by the names that a copy of them has."""
        return self._imported.files(path)

    @property
    def _imported(self) -> Any:
        return importlib.import_module(f"scoremle.zoo.{self.module}")


FAMILIES = {
    "diffusers": Family("a folder of diffusers", is_diffusers, "diffusers"),
    "openai": Family(
        "a .pt of improved- or guided-diffusion", is_openai, "openai", "model.pt"
    ),
    "edm": Family(
        "a .safetensors of EDM, its fields beside it", is_edm, "edm", "model.safetensors"
    ),
    "vdm": Family("a training state of VDM, i-DODE or MuLAN", is_vdm, "vdm", "model.flax"),
}  # fmt: skip

# For whatever is none of these.
FOR_ANY_OTHER = "use scoremle.interop.torch.from_module in a FILE.py:function for any other"
OTHER_FAMILIES = f"{', '.join(family.title for family in FAMILIES.values())}; {FOR_ANY_OTHER}"


def family_of(path: Path) -> str | None:
    """The name of the family of the model at a path; None if it is of none.

    Args:
        path: of a file or a folder.
    """
    return next((name for name, family in FAMILIES.items() if family.is_one(path)), None)


@contextmanager
def named_errors(path: Path, misfit: str) -> Iterator[None]:
    """Turns errors of the block, which makes a model of a file, into UserErrors with its name.

    What a file holds may be anything at all: then ``misfit`` says what is wrong with it.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {misfit}: {first_line(error, named=True)}") from None


def published_model(
    noise: NoiseFn,
    sde: SDE,
    eps: float,
    shape: tuple[int, ...],
    *,
    chain: BySteps | None = None,
    classes: int = 0,
    pixels: Pixels = PIXELS,
    middles: bool = False,
) -> ScoreModel:
    """The model of images of 256 levels that others trained.

    Args:
        noise, sde, eps, shape: as ``ScoreModel`` takes them.
        chain: the bound that its authors report, by the variance and the clipping of its own
            chain of steps; None if it has none that is known here.
        classes: the number of classes of a class-conditional model; 0: it is not conditional.
        pixels: the levels that it was trained on, in the middle of their bins.
        middles: sigma at the smallest time is small beside a grey level, so that the model
            distinguishes the middle of a bin from the rest of it.

    Raises UserError for a shape that no image has.
    """
    if not all(0 < side <= LARGEST_SIDE for side in shape):
        size = by(shape)
        raise UserError(f"the model's config says that images are {size}: correct their size")
    origin = Origin(published=True, chain=chain, classes=classes, middles=middles)
    return ScoreModel(noise, sde, eps, shape, pixels, origin=origin)
