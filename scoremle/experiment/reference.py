"""The values that a model's own test images have: its evaluation, to see other images beside."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from scoremle.experiment.results import read_results, read_values
from scoremle.experiment.shipped import place_of
from scoremle.experiment.trained import Trained
from scoremle.likelihood.images import ByBound, ByOde, Estimator
from scoremle.model import ScoreModel

__all__ = ["how_to_get", "ranks", "test_values"]

EVALUATION = "eval"


def test_values(
    place: str, model: ScoreModel, estimator: Estimator
) -> Float[np.ndarray, " n"]:
    """Sorted bits/dim of the test images by the same estimator at the same step; none if unknown.

    Args:
        place: where the model is, as ``load`` takes it.
        model: that was loaded from there.
        estimator: by which others are measured.

    Raises UserError for results that are not as they were written.
    """
    kind = _kind(estimator)
    if not isinstance(model, Trained) or kind is None:
        return np.zeros(0)
    folder = place_of(place) / EVALUATION
    for name, facts in read_results(folder / "results.json").items():
        if _is_of(facts, kind, model.step):
            values = read_values(folder / f"{name}.npz", "bpd")
            if values is not None:
                return np.sort(values.mean(axis=0))
    return np.zeros(0)


def _kind(estimator: Estimator) -> str | None:
    """The name that an evaluation has for it."""
    if isinstance(estimator, ByOde):
        return "exact"
    return "bound" if isinstance(estimator, ByBound) else None


def _is_of(facts: Any, kind: str, step: int) -> bool:
    known = {"kind": kind, "split": "test", "step": step, "full_pass": True}
    return isinstance(facts, dict) and known.items() <= facts.items()


def how_to_get(
    place: str, model: ScoreModel, estimator: Estimator, checkpoint: int | None
) -> str:
    """In a line, what gives a model the values that it lacks.

    Args:
        place: where the model is.
        model: that was loaded from there.
        estimator: by which others are measured.
        checkpoint: its number; None: the newest.
    """
    kind = _kind(estimator)
    if isinstance(model, Trained) and kind and Path(place).is_dir():
        flags = ["--config.eval.bound"] * (kind == "bound")
        flags += [] if checkpoint is None else [f"--config.eval.end_ckpt={checkpoint}"]
        measure = f"scoremle {shlex.join(['eval', place, *flags])}"
        return f"no ranks: {measure} measures the model's own test images first"
    return (
        "no ranks: no evaluation of the model's own test images by this estimator is known; score"
        " such images too, and compare"
    )


def ranks(
    values: Float[np.ndarray, " n"], reference: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " n"]:
    """The share of the sorted reference that is below each value; NaN where there is none."""
    return np.searchsorted(reference, values) / (len(reference) or np.nan)
