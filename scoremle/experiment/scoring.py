"""How images are scored, by the words of the command line: the estimator of a model by its name.

    ode     the probability-flow ODE
    bound   the variational bound in continuous time
    steps   the bound of the model's own chain of steps: the number that its authors report
"""

import numpy as np
from jaxtyping import Integer

from scoremle.errors import UserError
from scoremle.experiment.trained import Trained
from scoremle.likelihood.images import ByBound, ByOde, Estimator
from scoremle.likelihood.reconstruction import Gaussian
from scoremle.model import ScoreModel
from scoremle.published.family import Published

__all__ = ["ESTIMATORS", "estimator_of", "in_words", "prepared"]

ESTIMATORS = ("ode", "bound", "steps")


def prepared(
    model: ScoreModel, images: Integer[np.ndarray, "n h w c"], estimator: str = "ode"
) -> tuple[ScoreModel, Estimator, list[str]]:
    """The model as these images need it, the estimator of this name, and what there is to say.

    For the ODE a pilot chooses the solver's nodes. Raises UserError for what does not fit.
    """
    notes = []
    if estimator == "ode" and (not isinstance(model, Trained) or model.pilot):
        model, choice = model.calibrated(images)
        notes.append(str(choice))
    return model, estimator_of(model, estimator), notes


def estimator_of(model: ScoreModel, name: str) -> Estimator:
    """The estimator of this name, one of ``ESTIMATORS``, for a model of images.

    Raises UserError for "steps" where a model has no chain that is known.
    """
    if name == "ode":
        return model.default_estimator
    if name == "bound":
        return ByBound(reconstruction=model.decoder or Gaussian())
    steps = model.steps if isinstance(model, Published) else None
    if steps is None:
        raise UserError(
            "no chain of steps is known of this model: take --estimator=ode or bound, or from"
            " Python model.score(images, estimator=BySteps(times, variance=...))"
        )
    return steps


def in_words(estimator: Estimator) -> str:
    """What a number is, with the noise that is given to the integers, if it is."""
    density = isinstance(estimator, ByBound) and estimator.reconstruction.bounds == "density"
    dequantized = isinstance(estimator, ByOde) or density
    return estimator.words + ", uniform dequantization" * dequantized
