"""Writers of the numbers of a training: files, the terminal, TensorBoard, and trackers.

A row is one step's numbers by name. Evaluation numbers are called ``eval_...``. All writers share
one protocol, and the training loop has several of them.

In wandb, trackio and MLflow a run is named after its folder and its data set. What it is known by
in a library is kept in the folder, so that a training that goes on continues the run it began.
Where the numbers go, to a server or to files, is set as the library has it, such as by
``WANDB_MODE=offline``, ``TRACKIO_DIR`` or ``MLFLOW_TRACKING_URI``.
"""

import abc
import importlib
import json
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoremle import files
from scoremle.bounded import MAX_TEXT
from scoremle.errors import UserError
from scoremle.files import handle_of
from scoremle.progress import Progress
from scoremle.records import check_record, is_of

__all__ = ["TRACKERS", "Console", "JsonLines", "LoggedRow", "Run", "Writer", "read_log"]

PROJECT = "scoremle"
# The file in a run's folder that has its identifier, for each library.
KEPT = "logged.json"

# A row to be written, and one that was: with None for what was not finite.
LogRow = dict[str, float]
LoggedRow = dict[str, float | None]


class Writer:
    """Takes rows in order of steps: ``rewind`` at the start, ``close`` at the end.

    By itself it does nothing with them.
    """

    def rewind(self, step: int) -> None:
        """Begins after ``step``, and forgets what an earlier run wrote beyond it."""

    def write(self, step: int, row: LogRow) -> None:
        """Takes a row.

        Args:
            step: of the training.
            row: numbers by name.
        """

    def at(self, step: int, doing: str = "") -> None:
        """The steps before this one are done, and now something else is, if it is named.

        Args:
            step: the number of those done.
            doing: what is done now; "": training.
        """

    def close(self) -> None:
        """Takes no more."""


class JsonLines(Writer):
    """One JSON object a line: ``{"step": 100, "loss": 0.12, ...}``; null if not finite.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def rewind(self, step: int) -> None:
        old = files.read_bytes(self._path, MAX_TEXT) if self._path.exists() else b""
        lines = old.decode(errors="replace").splitlines()
        kept = [line + "\n" for line in lines if _step_of(line) <= step]
        files.write_bytes(self._path, "".join(kept).encode())

    def write(self, step: int, row: LogRow) -> None:
        """Writes a line.

        Args:
            step: of the training.
            row: numbers by name.
        """
        finite = {name: v if math.isfinite(v) else None for name, v in row.items()}
        with files.writing(self._path):
            with open(self._path, "a", opener=handle_of) as file:
                file.write(json.dumps({"step": step, **finite}) + "\n")
            files.sync(self._path)  # a checkpoint that comes later leaves no gap behind it


def _step_of(line: str) -> float:
    """The step of a row; infinity for one that a kill cut short, which is to be written anew."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return step if is_of(step, float) else math.inf


def read_log(path: Path) -> list[LoggedRow]:
    """The rows that ``JsonLines`` wrote, each with its step; None for what was not finite.

    Raises UserError for a line that is not a row of numbers.

    Args:
        path: of the file.
    """
    lines = files.read_bytes(path, MAX_TEXT).decode(errors="replace").splitlines()
    return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _row(line: str, where: str) -> LoggedRow:
    try:
        row = json.loads(line)
        check_record(row, LoggedRow, where)
        step = row.get("step")
    except (ValueError, RecursionError):  # a UserError is a ValueError
        step = None
    if not is_of(step, int):
        raise UserError(f"{where} is not a row of numbers: continue the training, or remove it")
    return row


class Console(Writer):
    """Loss, bits/dim, speed and time to go: a live bar on a terminal, else a line a row.

    bits/dim that do not beat the ``uniform`` distribution come too early: the averaged parameters
    are mostly those of the beginning, whatever the network has learned. They are labelled so.

    Args:
        n_iters: steps of the training.
        uniform: bits/dim of a uniform distribution.
    """

    def __init__(self, n_iters: int, uniform: float = math.inf) -> None:
        self._progress = Progress("", n_iters, "step", every=0.0)
        self._uniform = uniform
        self._bpd: tuple[int, str] | None = None

    def rewind(self, step: int) -> None:
        self._progress.start(step)

    def write(self, step: int, row: LogRow) -> None:
        """Shows a row.

        Args:
            step: of the training.
            row: numbers by name.
        """
        if "eval_bpd" in row:
            stderr = f" +- {row['eval_bpd_stderr']:.3f}" if "eval_bpd_stderr" in row else ""
            early = " (too early: above uniform)" * (row["eval_bpd"] >= self._uniform)
            self._bpd = step, f"bpd {row['eval_bpd']:.3f}{stderr}{early}"
        words = [f"loss {row['loss']:.4f}"]
        if self._bpd:
            at, text = self._bpd
            words.append(text if at == step else f"{text}  (step {at})")
        self._progress.advance(step, "  ".join(words))

    def at(self, step: int, doing: str = "") -> None:
        """Shows the progress.

        Args:
            step: the number of those done.
            doing: what is done now; "": training.
        """
        if doing:
            self._progress.doing(step, doing)
        else:
            self._progress.move(step)

    def close(self) -> None:
        self._progress.close()


# Trackers ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Description of a training for a tracker: folder, data set, and config by dotted names.

    Args:
        folder: of the training.
        dataset: by its name.
        config: values by dotted names.
    """

    folder: Path
    dataset: str
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the run: its folder and its data set."""
        return f"{self.folder.resolve().name} {self.dataset}"


class Tracker(Writer):
    """A run in a library, begun by ``rewind``. Raises UserError if that is missing."""

    def __init__(self, library: str, run: Run) -> None:
        try:
            self._module: Any = importlib.import_module(library)
        except ImportError:
            needs = f"logging needs {library}, which is not installed: pip install {library}"
            raise UserError(needs) from None
        self._library, self._run, self._begun = library, run, False

    def write(self, step: int, row: LogRow) -> None:
        with self._mistakes():
            self._log(step, row)

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
            words = f"logging by {self._library}: {type(error).__name__}: {error}"
            raise UserError(words) from error

    @abc.abstractmethod
    def _log(self, step: int, row: LogRow) -> None: ...

    @abc.abstractmethod
    def _finish(self) -> None: ...


class KnownRun(Tracker):
    """A run that is continued by its identifier, which the folder keeps."""

    def rewind(self, step: int) -> None:
        """Begins the run. Which of repeated rows is kept depends on the library."""
        if not self._begun:
            path = self._run.folder / KEPT
            kept = files.read_json(files.inside(path.parent, KEPT)) if path.exists() else {}
            check_record(kept, dict[str, str], path)
            known = kept.get(self._library)
            with self._mistakes():
                found = self._begin(known)
            if known != found:
                files.write_json(path, {**kept, self._library: found})
            self._begun = True

    @abc.abstractmethod
    def _begin(self, known: str | None) -> str:
        """Begins the run, or continues the known one; returns its identifier."""


class TensorBoard(Tracker):
    """Event files in a folder of the run; a row that is written again takes the place of one."""

    def rewind(self, step: int) -> None:
        self.close()
        folder = self._run.folder / "tensorboard"
        with self._mistakes():
            self._writer = self._module.SummaryWriter(str(folder), purge_step=step + 1)
        self._begun = True

    def _log(self, step: int, row: LogRow) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def _finish(self) -> None:
        self._writer.close()


class LikeWandb(KnownRun):
    """wandb, and trackio, which is called like it but identifies a run by its name."""

    def _begin(self, known: str | None) -> str:
        run = self._run
        mark = known or secrets.token_hex(4)
        names = {"name": f"{run.name} {mark}"}
        if self._library == "wandb":
            names = {"name": run.name, "id": mark, "dir": str(run.folder)}
        self._module.init(project=PROJECT, resume="allow", config=dict(run.config), **names)
        return mark

    def _log(self, step: int, row: LogRow) -> None:
        self._module.log(row, step=step)

    def _finish(self) -> None:
        self._module.finish()


class MLflow(KnownRun):
    """A run of the experiment ``scoremle``."""

    def _begin(self, known: str | None) -> str:
        self._client = self._module.MlflowClient()
        if known:
            self._client.update_run(known, status="RUNNING")
        self._id = known or self._new()
        return self._id

    def _new(self) -> str:
        known = self._client.get_experiment_by_name(PROJECT)
        experiment = known.experiment_id if known else self._client.create_experiment(PROJECT)
        new = self._client.create_run(experiment, run_name=self._run.name).info.run_id
        for name, value in self._run.config.items():
            self._client.log_param(new, name, value)
        return new

    def _log(self, step: int, row: LogRow) -> None:
        now, metric = int(time.time() * 1000), self._module.entities.Metric
        metrics = [metric(name, value, now, step) for name, value in row.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def _finish(self) -> None:
        self._client.set_terminated(self._id)


TRACKERS: dict[str, Callable[[Run], Writer]] = {
    "tensorboard": lambda run: TensorBoard("tensorboardX", run),
    "wandb": lambda run: LikeWandb("wandb", run),
    "trackio": lambda run: LikeWandb("trackio", run),
    "mlflow": lambda run: MLflow("mlflow", run),
}
