"""A measurement of images: an estimator on a model, with its words and its identity."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

import scoremle
from scoremle.core import dequantize
from scoremle.core.outputs import outputs_of, rounded
from scoremle.core.pytree import describe
from scoremle.experiment.encoders import file_hash
from scoremle.experiment.labels import ALL, under
from scoremle.experiment.own_code import is_own
from scoremle.likelihood.images import Estimator, number_in_words, title_of
from scoremle.likelihood.pilot import Choice
from scoremle.model import ScoreModel
from scoremle.resumable import facts_of_data, parts_in
from scoremle.solvers.multistep import Multistep
from scoremle.training.checksums import model_hash

__all__ = ["Measurement", "facts_of"]


@dataclass(frozen=True)
class Measurement:
    """An estimator on a model, as images are measured by it.

    ``choice`` is the pilot's, of the solver; by its levels the mean can be corrected. ``label`` is
    that of the images, where one was given. ``doubts`` are about the model's declaration. In
    an evaluation ``kind`` is the name in results, and ``facts`` are recorded beside the number; a
    ``profile`` among the values is over the bins of ``log_snr_edges``.

    Args:
        model: a ScoreModel, under its label, or a FlowModel.
        estimator: measures bits/dim.
        dequantizer: of the images.
        notes: lines for the user.
    """

    model: Any
    estimator: Estimator
    dequantizer: dequantize.Dequantizer = dequantize.Uniform()
    choice: Choice | None = None
    label: str = ""
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    kind: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    log_snr_edges: Float[np.ndarray, " n"] | None = None

    @property
    def of_flow(self) -> bool:
        """Whether the flow dequantizer takes part."""
        return isinstance(self.dequantizer, dequantize.Flow)

    @property
    def measured_by(self) -> str:
        """Words for the estimator, with the label and the code of the images, if any."""
        return title_of(self.estimator, self.model, self._one_label)

    @property
    def title(self) -> str:
        """Words for the number: the estimator and the dequantization noise."""
        return number_in_words(self.estimator, self.dequantizer, self.model, self._one_label)

    @property
    def _one_label(self) -> str:
        """The label, if it is one: the title of the mean over all says so itself."""
        return self.label * (self.label != ALL)

    def identity(self, place: str, seed: int) -> dict[str, Any]:
        """The facts that a value depends on, besides its image and its pass.

        Args:
            place: of the model, as it was named.
            seed: of all randomness.
        """
        return {
            **facts_of(under(self.model, ALL) if self.label == ALL else self.model, place, seed),
            "pixels": describe(self.model.pixels),
            "estimator": describe(self.estimator),
            "dequantizer": describe(self.dequantizer),
        }

    def parts(
        self, above: Path, place: str, images: Integer[np.ndarray, "n h w c"], seed: int
    ) -> Path:
        """The folder of finished parts of these images, as ``parts_in`` names it.

        Args:
            above: the folder of all parts.
            place: of the model.
            images: [n h w c] integers.
            seed: of all randomness.
        """
        return parts_in(above, self.identity(place, seed) | facts_of_data(images))


def facts_of(model: Any, place: str, seed: int) -> dict[str, Any]:
    """Facts that all values of a model depend on.

    A function counts by its values, by which the numbers that it takes show. What a pilot found of
    a solver's errors does not count: its last digits depend on the processors.

    Args:
        model: a ScoreModel, under its label if it has any, or a FlowModel.
        place: of the model, as it was named.
        seed: of all randomness.
    """
    facts = {"place": place, "code": file_hash(place) if is_own(place) else "",
             "seed": seed, "version": scoremle.__version__}  # fmt: skip
    if not isinstance(model, ScoreModel):
        return facts | {"log_prob": model.log_prob(np.full((1, *model.shape), 0.5)).tolist()}
    if is_own(place):
        facts["outputs"] = rounded(outputs_of(model))
    if isinstance(model.solver, Multistep):
        model = replace(model, solver=Multistep(model.solver.steps))
    return facts | {"model": model_hash(model)}


def with_noise(name: str, dequantization: str) -> str:
    """The name of an estimator of images with this noise: by a decoder none is exact."""
    if name == "exact" and dequantization == "informed":
        return "ode_bound"
    return name if dequantization == "uniform" else f"{name}_{dequantization}"


def kind_under(name: str, model: ScoreModel, label: str) -> str:
    """The name of an estimator of a model, whose codes leave a bound, under its label if any."""
    name += "_code_bound" * (model.coder is not None and name.startswith("exact"))
    return name + f"_label_{label}" * bool(label)
