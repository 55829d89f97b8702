"""The modes of the command line."""

from pathlib import Path
from typing import Any

from scoremle.errors import UserError
from scoremle.experiment.build import build
from scoremle.experiment.run_eval import run_eval
from scoremle.experiment.run_train import run_train, run_train_deq
from scoremle.experiment.workdir import Workdir

__all__ = ["run"]


def run(
    mode: str, config: Any, workdir: str, eval_folder: str, deq_folder: str
) -> dict[str, Any]:
    """Runs a mode; gives the results of an evaluation. Raises UserError for what can't be done."""
    place = Workdir(Path(workdir))
    if place.imported and mode != "eval":
        raise UserError(f"{workdir} holds a model that was imported: it can't be trained on here")
    experiment = build(config, imported=place.imported)
    if mode == "eval":
        return run_eval(experiment, place, eval_folder, deq_folder)
    if mode == "train":
        run_train(experiment, place)
    else:
        run_train_deq(experiment, place, deq_folder)
    return {}
