"""How images are scored, by the words of the command line: an estimator's name, a class label.

    ode      the probability-flow ODE
    bound    the variational bound in continuous time
    steps    the bound of the model's own chain of steps: the number that its authors report

A label is a number, or "all" for the mean over all of them.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Integer

from scoremle.errors import UserError
from scoremle.experiment.trained import Trained
from scoremle.likelihood.check import FEWEST_IMAGES
from scoremle.likelihood.images import ByBound, ByOde, Estimator
from scoremle.likelihood.labels import ByLabels
from scoremle.likelihood.reconstruction import Gaussian
from scoremle.likelihood.steps import BySteps
from scoremle.model import ScoreModel
from scoremle.published.family import PublishedModel

__all__ = ["ALL", "ESTIMATORS", "in_words", "prepared"]

ESTIMATORS = ("ode", "bound", "steps")
ALL = "all"

Images = Integer[np.ndarray, "n h w c"]


def prepared(
    model: ScoreModel, images: Images, estimator: str = "ode", label: str = ""
) -> tuple[ScoreModel, Estimator, list[str]]:
    """The model as these images need it, the estimator of this name, and what there is to say.

    A few images tell whether the model is what it is declared to be, how many nodes the ODE's
    solver needs, and the scale of a decoder. Under all labels there is no one condition to check,
    and these go by the first. Raises UserError for what does not fit.
    """
    classes = model.classes if isinstance(model, PublishedModel) else 0
    _check_label(label, classes)
    steps = _steps_of(model) if estimator == "steps" else None  # a mistake before any work
    one = model.given(np.array([0 if label == ALL else int(label)])) if label else model
    notes = [] if label == ALL else _doubts(one, images)
    if estimator == "ode" and (not isinstance(model, Trained) or model.pilot):
        one, choice = one.calibrated(images)
        notes.append(str(choice))
    elif not steps:
        one = one.fitted(images)
    found = steps or one.default_estimator
    if estimator == "bound":
        found = ByBound(reconstruction=one.decoder or Gaussian())
    if label == ALL:
        return replace(one, noise=model.noise), ByLabels(found, classes), notes
    return one, found, notes


def in_words(estimator: Estimator) -> str:
    """What a number is, with the noise that is given to the integers, if it is."""
    inner = estimator.of_one if isinstance(estimator, ByLabels) else estimator
    density = isinstance(inner, ByBound) and inner.reconstruction.bounds == "density"
    dequantized = isinstance(inner, ByOde) or density
    return estimator.words + ", uniform dequantization" * dequantized


def _check_label(label: str, classes: int) -> None:
    choices = f"--label=N, N from 0 to {classes - 1}, or --label={ALL} for the mean over them"
    if label and not classes:
        raise UserError("this model takes no class labels: leave --label out")
    if classes and not label:
        raise UserError(f"this model is one of {classes} classes of images: say {choices}")
    if label not in ("", ALL) and not (label.isdecimal() and int(label) < classes):
        raise UserError(f"--label={label} is none of the model's: say {choices}")


def _doubts(model: ScoreModel, images: Images) -> list[str]:
    """What looks wrong with the model's declaration, if the images are enough to tell."""
    if len(images) < FEWEST_IMAGES:
        return []
    of_kind = "check, if these images are of the kind that it was trained on"
    return [f"{of_kind}: {line}" for line in model.check(images)]


def _steps_of(model: ScoreModel) -> BySteps:
    steps = model.steps if isinstance(model, PublishedModel) else None
    if steps is None:
        raise UserError(
            "no chain of steps is known of this model: take --estimator=ode or bound, or from"
            " Python model.score(images, estimator=BySteps(times, variance=...))"
        )
    return steps
