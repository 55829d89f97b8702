"""Labels of class-conditional models, by the words of a flag.

A label is a number, or "all" for the mean over all of them.
"""

from typing import TYPE_CHECKING

import numpy as np

from scoremle.errors import UserError, no_labels

if TYPE_CHECKING:
    from scoremle.likelihood.images import Estimator
    from scoremle.model import ScoreModel

__all__ = ["ALL", "check_label", "under"]

ALL = "all"


def check_label(model: "ScoreModel", label: str, flag: str = "--label") -> int:
    """Returns the model's number of classes. Raises UserError for a label it does not have.

    Args:
        model: any.
        label: a number, "all", or "" for none.
        flag: the caller's name for it, for the error.
    """
    classes = model.origin.classes
    choices = f"{flag}=N, N from 0 to {classes - 1}, or {flag}={ALL} for the mean over them"
    if label and not classes:
        raise no_labels(flag)
    if classes and not label:
        raise UserError(f"this model is one of {classes} classes of images: use {choices}")
    if label not in ("", ALL) and not (label.isdecimal() and int(label) < classes):
        raise UserError(f"{flag}={label} is not one of the model's: use {choices}")
    return classes


def under(model: "ScoreModel", label: str) -> "ScoreModel":
    """The model of one label; for all labels that of the first, which a pilot takes.

    Args:
        model: with classes, if there is a label.
        label: a number, "all", or "" for none.
    """
    return model.condition_on(np.array([0 if label == ALL else int(label)])) if label else model


def measured_under(
    model: "ScoreModel", estimator: "Estimator", label: str
) -> tuple["ScoreModel", "Estimator"]:
    """The model and the estimator by which images of a label are measured, or in the mean."""
    if label == ALL:
        from scoremle.likelihood.labels import ByLabels

        return model, ByLabels(estimator, model.origin.classes)
    return under(model, label), estimator
