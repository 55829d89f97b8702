"""Logging of a training's numbers to other libraries: wandb, trackio and MLflow.

A run is named after its folder and its data set. What it is known by in a library is kept in the
folder, so that a training that goes on continues the run it began. Where the numbers go, to a
server or to files, is set as the library has it, such as by ``WANDB_MODE=offline``,
``TRACKIO_DIR`` or ``MLFLOW_TRACKING_URI``.
"""

import abc
import importlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoremle.errors import UserError
from scoremle.files import inside, read_json, write_json
from scoremle.training.writers import Row, TensorBoard, Writer

__all__ = ["TRACKERS", "Run", "run_name"]

PROJECT = "scoremle"
# The file in a run's folder that has its identifier, for each library.
KEPT = "logged.json"


def run_name(folder: Path, dataset: str) -> str:
    """Name of a run: its folder and its data set."""
    return f"{folder.resolve().name} {dataset}"


@dataclass(frozen=True)
class Run:
    """Description of a training for a tracker: folder, name, and config by dotted names."""

    folder: Path
    name: str
    config: Mapping[str, Any]


class Tracker(abc.ABC):
    """A run in a library, begun at the first ``rewind``. Raises UserError if that is missing."""

    def __init__(self, library: str, run: Run) -> None:
        try:
            self._module: Any = importlib.import_module(library)
        except ImportError:
            raise UserError(
                f"logging={library} needs that library: pip install {library}"
            ) from None
        self._library, self._run, self._begun = library, run, False

    def rewind(self, step: int) -> None:
        """Begins the run. Which of repeated rows is kept depends on the library."""
        if not self._begun:
            path = self._run.folder / KEPT
            kept = read_json(inside(path.parent, KEPT)) if path.exists() else {}
            known = kept.get(self._library)
            if not isinstance(known, str | None):
                raise UserError(f"{path}: {self._library} must be text: mend it, or remove it")
            with self._mistakes():
                found = self._begin(known)
            if known != found:
                write_json(path, {**kept, self._library: found})
            self._begun = True

    def write(self, step: int, row: Row) -> None:
        with self._mistakes():
            self._log(step, row)

    def at(self, step: int, doing: str = "") -> None:  # noqa: B027
        """Does nothing: this is shown on the terminal alone."""

    def close(self) -> None:
        if self._begun:
            with self._mistakes():
                self._finish()
            self._begun = False

    @contextmanager
    def _mistakes(self) -> Iterator[None]:
        """Turns each error of a library, such as a missing login, into a UserError of one line."""
        try:
            yield
        except Exception as error:
            raise UserError(f"logging={self._library}: {type(error).__name__}: {error}") from error

    @abc.abstractmethod
    def _begin(self, known: str | None) -> str:
        """Begins the run, or continues the known one; returns its identifier."""

    @abc.abstractmethod
    def _log(self, step: int, row: Row) -> None: ...

    @abc.abstractmethod
    def _finish(self) -> None: ...


class LikeWandb(Tracker):
    """wandb, and trackio, which is called like it but identifies a run by its name."""

    def _begin(self, known: str | None) -> str:
        run = self._run
        mark = known or secrets.token_hex(4)
        names = {"name": f"{run.name} {mark}"}
        if self._library == "wandb":
            names = {"name": run.name, "id": mark, "dir": str(run.folder)}
        self._module.init(project=PROJECT, resume="allow", config=dict(run.config), **names)
        return mark

    def _log(self, step: int, row: Row) -> None:
        self._module.log(row, step=step)

    def _finish(self) -> None:
        self._module.finish()


class MLflow(Tracker):
    """A run of the experiment ``scoremle``."""

    def _begin(self, known: str | None) -> str:
        self._client = self._module.MlflowClient()
        if known:
            self._client.update_run(known, status="RUNNING")
            self._id = known
        else:
            self._id = self._new()
        return self._id

    def _new(self) -> str:
        there = self._client.get_experiment_by_name(PROJECT)
        experiment = there.experiment_id if there else self._client.create_experiment(PROJECT)
        new = self._client.create_run(experiment, run_name=self._run.name).info.run_id
        for name, value in self._run.config.items():
            self._client.log_param(new, name, value)
        return new

    def _log(self, step: int, row: Row) -> None:
        now, metric = int(time.time() * 1000), self._module.entities.Metric
        metrics = [metric(name, value, now, step) for name, value in row.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def _finish(self) -> None:
        self._client.set_terminated(self._id)


TRACKERS: dict[str, Callable[[Run], Writer]] = {
    "tensorboard": lambda run: TensorBoard(run.folder / "tensorboard"),
    "wandb": lambda run: LikeWandb("wandb", run),
    "trackio": lambda run: LikeWandb("trackio", run),
    "mlflow": lambda run: MLflow("mlflow", run),
}
