"""The model in a working directory, for use from Python."""

from dataclasses import dataclass
from pathlib import Path

from scoremle.core.pytree import pytree, static
from scoremle.errors import UserError
from scoremle.experiment.build import build
from scoremle.experiment.workdir import Workdir
from scoremle.model import ScoreModel

__all__ = ["Trained", "load"]


@pytree
@dataclass(frozen=True, repr=False)
class Trained(ScoreModel):
    """A model, and where it came from: its data set, and the steps that it was trained for."""

    dataset: str = static(default="")
    step: int = static(default=0)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self.dataset}, step {self.step:,})"


def load(workdir: str | Path, checkpoint: int | None = None) -> Trained:
    """The model in a working directory: this checkpoint, or the newest (averaged parameters)."""
    if not Path(workdir).exists():
        raise UserError(f"there is no folder {workdir}")
    place = Workdir(Path(workdir))
    # The number of levels stands for the data set, which need not be here.
    experiment = build(place.config(), levels=place.levels())
    state, meta, _ = place.snapshots.restore(experiment.training.template(), checkpoint)
    fields = vars(experiment.model.model(state.ema))
    fields |= {"solver": experiment.evaluation.estimators.solver}
    return Trained(**fields, dataset=experiment.data.name, step=int(meta["step"]))
