"""The values that a model's own test images have: its evaluation, to see other images beside."""

import math
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from scoremle.evaluation.result import Result
from scoremle.experiment.measurement import kind_under, with_noise
from scoremle.experiment.results import measured
from scoremle.experiment.shipped import place_of
from scoremle.experiment.workdir import Workdir
from scoremle.model import ScoreModel

__all__ = ["how_to_get", "ranks", "reference_of"]

EVALUATION = "eval"
# Flags of an evaluation by which it may solve less accurately than others are measured, and the
# error of an image that such values may have, as a share of their standard deviation.
OF_SOLVER, LARGEST_ERROR = {"solver", "nodes", "tolerance"}, 0.1
# Fields of an evaluation of bits/dim of all test images, by one estimator.
OF_ALL_IMAGES = {
    "enable_bpd": True, "suite": False, "bound_steps": 0, "importance_samples": 1,
    "dequantizer": False, "dataset": "test", "num_images": 0,
}  # fmt: skip


class ReferenceScores(NamedTuple):
    """Sorted bits/dim of a model's own test images, none if they are not known.

    ``decoder_scale``: of the decoder that they were measured by, if it was fitted.
    """

    values: Float[np.ndarray, " n"]
    decoder_scale: float | None = None

    def as_measured(self, model: Any) -> Any:
        """The model with the decoder of these."""
        if self.decoder_scale is None:
            return model
        return replace(model, decoder_scale=self.decoder_scale)


NOTHING = ReferenceScores(np.zeros(0))
NO_RANKS = (
    "no ranks: no evaluation of the model's own test images by this estimator is known; score such"
    " images too, and compare"
)


def reference_of(place: str, model: Any, estimator: str, label: str = "") -> ReferenceScores:
    """Reads an evaluation's values by the same estimator, at the same step, for the same label.

    Those of another data set than the model's own are left out, and those for which a
    flag chose a solver with too large an error.

    Args:
        place: where the model is, as ``load`` takes it.
        model: that was loaded from there; of a flow no evaluation is known.
        estimator: by which others are measured: "ode", "bound" or "steps".
        label: of a class-conditional model, or "all".

    Raises UserError for results that are not as they were written.
    """
    if not isinstance(model, ScoreModel):
        return NOTHING
    kind, step = _kind(model, estimator, label), _step(place, model)
    if kind is None or step is None:
        return NOTHING
    known = (kind, "test", step, True)
    folder = place_of(place)
    for result in measured(folder, EVALUATION):
        found = (result.kind, result.split, result.step, result.full_pass)
        # An evaluation may have another precision, or another smallest time.
        same = "bfloat16" not in result.precision and math.isclose(result.eps, float(model.eps))
        if found != known or not same or not Workdir(folder).has_measured(result.to_json()):
            continue
        values = result.values
        if values is not None and _is_accurate(result, values):
            scale = result.decoder_scale
            fitted = scale if isinstance(scale, float) else None
            return ReferenceScores(np.sort(values), fitted)
    return NOTHING


def _is_accurate(result: Result, values: Float[np.ndarray, " n"]) -> bool:
    """Whether values have the solver of their model, or an error that hardly moves a rank."""
    allowed = LARGEST_ERROR * float(values.std())
    return OF_SOLVER.isdisjoint(result.flags) or (result.solver_error or 0) <= allowed


def _kind(model: ScoreModel, estimator: str, label: str) -> str | None:
    """Name of the estimator in an evaluation; None for chains of steps: there are many."""
    if estimator == "steps":
        return None
    name = with_noise("exact" if estimator == "ode" else "bound", _noise(model, estimator))
    return kind_under(name, model, label)


def _noise(model: ScoreModel, estimator: str) -> str:
    """The name of the noise that an evaluation must add to measure as others are measured."""
    if model.decoder is not None:
        return "informed"
    of_middles = "none" if estimator == "bound" else "truncated_normal"
    return of_middles if model.origin.middles else "uniform"


def _step(place: str, model: ScoreModel) -> int | None:
    """Step at which an evaluation measured the model, if it is in a working directory."""
    if model.origin.step is not None:
        return model.origin.step
    return 0 if Path(place).is_dir() and Workdir(Path(place)).imported else None


def _is_workdir(place: str, model: ScoreModel) -> bool:
    return Path(place).is_dir() and _step(place, model) is not None


def how_to_get(
    place: str, model: Any, estimator: str, label: str = "", checkpoint: int | None = None
) -> str:
    """A line on how to get the reference values that a model lacks.

    Args:
        place: where the model is.
        model: that was loaded from there.
        estimator: by which others are measured.
        label: under which they are.
        checkpoint: its number; None: the newest.
    """
    if not isinstance(model, ScoreModel):
        return NO_RANKS
    known = _kind(model, estimator, label) is not None
    flags = list(_flags(place, model, estimator, label, checkpoint))
    if known and _is_workdir(place, model):
        measure = f"scoremle {shlex.join(['eval', place, *flags])}"
        return f"no ranks: {measure} measures all of the model's own test images first"
    if known and model.origin.published:
        first = f"scoremle {shlex.join(['import', place])} FOLDER --dataset=IMAGES"
        return (
            f"no ranks: {first} and then scoremle {shlex.join(['eval', 'FOLDER', *flags])} measure"
            " normal images; then scores of the model in that folder have ranks"
        )
    return NO_RANKS


def _flags(
    place: str, model: ScoreModel, estimator: str, label: str, checkpoint: int | None
) -> Iterator[str]:
    """Flags of an evaluation of all test images that measures as others are measured.

    Those that the config of the place has anyway are left out, unless they are of the model.
    """
    noise, bound = _noise(model, estimator), estimator == "bound"
    stated = {"bound": bound or model.origin.middles, "dequantization": noise != "uniform",
              "label": label, "end_ckpt": checkpoint is not None}  # fmt: skip
    needed = {"bound": bound, "dequantization": noise, "label": label, "end_ckpt": checkpoint,
              **OF_ALL_IMAGES}  # fmt: skip
    own: Any = {}
    if _is_workdir(place, model) and (folder := Workdir(Path(place))).config_path.exists():
        config = folder.config()
        own = config.eval
        if checkpoint is None and {own.begin_ckpt, own.end_ckpt} != {None}:
            needed["end_ckpt"] = model.origin.checkpoint or 0
        needed["begin_ckpt"] = own.begin_ckpt and needed["end_ckpt"]
        if not config.data.dataset:
            yield from ("--config.data.dataset=images", "--config.data.path=IMAGES")
    for name, value in needed.items():
        if stated.get(name) or own.get(name, value) != value:
            flag = f"--{'no' * (value is False)}config.eval.{name}"
            yield flag if isinstance(value, bool) else f"{flag}={value}"


def ranks(
    values: Float[np.ndarray, " n"], reference: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " n"]:
    """The share of the sorted reference that is below each value; NaN where there is none.

    Args:
        values: [n] bits/dim.
        reference: [m] sorted bits/dim of test images.
    """
    return np.searchsorted(reference, values) / (len(reference) or np.nan)
