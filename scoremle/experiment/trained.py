"""The model in a working directory, for use from Python."""

from dataclasses import replace
from pathlib import Path

from scoremle.experiment.build import Experiment, build
from scoremle.experiment.networks import Params
from scoremle.experiment.workdir import Workdir
from scoremle.model import Origin, ScoreModel

__all__ = ["load_workdir", "trained"]


def load_workdir(workdir: Path, checkpoint: int | None = None) -> ScoreModel:
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


def trained(experiment: Experiment, params: Params, step: int) -> ScoreModel:
    """The model of these parameters of an experiment."""
    evaluation = experiment.evaluation
    origin = Origin(experiment.data.name, step, evaluation.pilot)
    model = experiment.model.model(params)
    return replace(model, solver=evaluation.by_ode.solver, origin=origin)
