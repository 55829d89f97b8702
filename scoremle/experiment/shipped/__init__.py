"""Models that the package ships, by name: small ones, for a first look and for tests.

``make model`` trains and writes them. Each folder has a card that says what it is.
"""

from pathlib import Path

from flax.traverse_util import unflatten_dict

from scoremle.devices import placed
from scoremle.experiment.build import build
from scoremle.experiment.trained import trained
from scoremle.experiment.workdir import Workdir
from scoremle.model import ScoreModel
from scoremle.published import safetensors

__all__ = ["NAMES", "load_shipped", "place_of"]

FOLDER = Path(__file__).resolve().parent
NAMES = tuple(sorted(path.parent.name for path in FOLDER.glob("*/config.json")))


def place_of(name: str) -> Path:
    """The folder of a model: of this path, or else of the shipped model of this name."""
    return Path(name) if Path(name).exists() else FOLDER / name


def load_shipped(name: str) -> ScoreModel:
    """The model of this name, one of ``NAMES``."""
    place = Workdir(FOLDER / name)
    experiment = build(place.config(), levels=place.levels())
    tensors = safetensors.read(place.folder / "weights.safetensors")
    params = placed(unflatten_dict(tensors, sep="."))
    return trained(experiment, params, experiment.training.schedule.n_iters)
