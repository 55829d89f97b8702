"""The modes of the command line."""

from pathlib import Path
from typing import Any

from scoremle.errors import UserError
from scoremle.evaluation_run import run_eval
from scoremle.experiment import build
from scoremle.training_run import run_train
from scoremle.workdir import Workdir

__all__ = ["run"]


def run(mode: str, config: Any, workdir: str, eval_folder: str) -> None:
    """Runs a mode. Raises UserError for what can't be done."""
    if mode == "train_deq":
        raise UserError("train_deq is not available in this version: use train or eval")
    experiment, place = build(config), Workdir(Path(workdir))
    if mode == "train":
        run_train(experiment, place)
    else:
        run_eval(experiment, config.eval, place, eval_folder)
