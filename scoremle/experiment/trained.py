"""The model in a working directory, for use from Python."""

from dataclasses import dataclass
from pathlib import Path

from scoremle.core.pytree import pytree, static
from scoremle.experiment.build import Experiment, build
from scoremle.experiment.networks import Params
from scoremle.experiment.workdir import Workdir
from scoremle.model import ScoreModel
from scoremle.published.family import PublishedModel

__all__ = ["Trained", "load_workdir", "trained"]


@pytree
@dataclass(frozen=True, repr=False)
class Trained(ScoreModel):
    """A model, and where it came from: its data set, and the steps that it was trained for.

    ``pilot``: its config leaves the solver's nodes to a pilot (``calibrated``).
    """

    dataset: str = static(default="")
    step: int = static(default=0)
    pilot: bool = static(default=True)

    def _facts(self) -> dict[str, str]:
        return super()._facts() | {"data set": self.dataset, "training": f"step {self.step:,}"}


def load_workdir(workdir: Path, checkpoint: int | None = None) -> Trained | PublishedModel:
    """The model in a working directory: this checkpoint, or the newest (averaged parameters).

    One that was imported is as it was published.
    """
    place = Workdir(workdir)
    if place.imported:
        return place.restore(None, checkpoint).tree.ema
    # The number of levels stands for the data set, which need not be here.
    experiment = build(place.config(), levels=place.levels())
    state, meta, _ = place.restore(experiment.training.template(), checkpoint)
    return trained(experiment, state.ema, int(meta["step"]))


def trained(experiment: Experiment, params: Params, step: int) -> Trained:
    """The model of these parameters of an experiment."""
    evaluation = experiment.evaluation
    fields = vars(experiment.model.model(params)) | {"solver": evaluation.by_ode.solver}
    return Trained(**fields, dataset=experiment.data.name, step=step, pilot=evaluation.pilot)
