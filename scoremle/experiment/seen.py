"""Images that a model was trained on: of those, nothing that is calibrated on them holds."""

import numpy as np
from jaxtyping import Integer

from scoremle.anomaly.statistics import numbers_of
from scoremle.errors import UserError
from scoremle.experiment.build import images_of
from scoremle.experiment.shipped import place_of
from scoremle.experiment.workdir import Workdir

__all__ = ["seen_in_training"]


def seen_in_training(place: str, images: Integer[np.ndarray, "n h w c"]) -> int | None:
    """The number of these images that the model was trained on.

    Args:
        place: of the model, as ``load`` takes it.
        images: as the model takes them.

    Returns None where its training images are not known, or not here.
    """
    if not place_of(place).is_dir():
        return None
    folder = Workdir(place_of(place))
    if folder.imported or not folder.config_path.is_file():
        return None
    try:
        trained = images_of(folder.config())
    except UserError:
        return None
    known = folder.data_facts().get("train_sha256")
    if known not in (None, trained.facts.get("train_sha256")):
        return None
    return int(np.isin(numbers_of(images), numbers_of(trained.train)).sum())
