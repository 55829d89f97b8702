"""Where the numbers of a training go: files, TensorBoard, the terminal.

A row is one step's numbers by name. Evaluation numbers are called ``eval_...``. All writers share
one protocol, so that the training loop knows only one of them: a ``FanOut``.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from rich.progress import BarColumn, Progress, TextColumn

from scoremle.errors import UserError
from scoremle.files import write_atomically, writing

__all__ = ["Bar", "FanOut", "JsonLines", "Lines", "Row", "TensorBoard", "Writer", "console"]

Row = dict[str, float]


class Writer(Protocol):
    """``rewind`` once at the start, ``write`` in order of steps, ``close`` at the end."""

    def rewind(self, step: int) -> None:
        """Begin after ``step``, and forget what an earlier run wrote beyond it."""

    def write(self, step: int, row: Row) -> None: ...

    def close(self) -> None: ...


class FanOut:
    """Several writers as one."""

    def __init__(self, *writers: Writer) -> None:
        self._writers = writers

    def rewind(self, step: int) -> None:
        for writer in self._writers:
            writer.rewind(step)

    def write(self, step: int, row: Row) -> None:
        for writer in self._writers:
            writer.write(step, row)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class JsonLines:
    """One JSON object a line: ``{"step": 100, "loss": 0.12, ...}``; null if not finite."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def rewind(self, step: int) -> None:
        old = self._path.read_text() if self._path.exists() else ""
        kept = [line + "\n" for line in old.splitlines() if _step_of(line) <= step]
        with write_atomically(self._path) as new:
            new.write_text("".join(kept))

    def write(self, step: int, row: Row) -> None:
        finite = {name: v if math.isfinite(v) else None for name, v in row.items()}
        with writing(self._path), self._path.open("a") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")

    def close(self) -> None:
        pass


def _step_of(line: str) -> float:
    """The step of a row; infinity for one that a kill cut short, which is to be written anew."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


class TensorBoard:
    """Event files for TensorBoard; needs the extra ``tensorboard``."""

    def __init__(self, folder: Path) -> None:
        try:
            import tensorboardX
        except ImportError:
            raise UserError(
                "TensorBoard output needs the extra: pip install 'scoremle[tensorboard]'"
            ) from None
        self._open = tensorboardX.SummaryWriter
        self._folder = folder
        self._writer: Any = None

    def rewind(self, step: int) -> None:
        self._writer = self._open(str(self._folder), purge_step=step + 1)

    def write(self, step: int, row: Row) -> None:
        with writing(self._folder):
            for name, value in row.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer:
            with writing(self._folder):
                self._writer.close()


class _Pace:
    """Loss, bits/dim, speed and time to go, in words."""

    def __init__(self, n_iters: int) -> None:
        self._n_iters = n_iters
        self._bpd: tuple[int, str] | None = None

    def start(self, step: int) -> None:
        self._since, self._rows = (step, time.monotonic()), 0

    def describe(self, step: int, row: Row) -> str:
        if "eval_bpd" in row:
            stderr = f" +- {row['eval_bpd_stderr']:.3f}" if "eval_bpd_stderr" in row else ""
            self._bpd = step, f"bpd {row['eval_bpd']:.3f}{stderr}"
        now = time.monotonic()
        rate = (step - self._since[0]) / max(now - self._since[1], 1e-9)
        left = _duration((self._n_iters - step) / rate)
        pace = f"{rate:.1f} steps/s  ETA {left}"
        if self._rows == 0:
            self._since = (step, now)  # what came before was mostly compilation
            pace += " (with compilation)"
        self._rows += 1
        return "  ".join([f"loss {row['loss']:.4f}", *self._measured(step), pace])

    def _measured(self, step: int) -> list[str]:
        """The newest bits/dim, and when it was measured if that was earlier."""
        if self._bpd is None:
            return []
        at, text = self._bpd
        return [text if at == step else f"{text} (step {at})"]


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s" if m else f"{s}s"


class Lines:
    """A line of text a row, for logs and pipes."""

    def __init__(self, n_iters: int) -> None:
        self._n_iters = n_iters
        self._pace = _Pace(n_iters)

    def rewind(self, step: int) -> None:
        self._pace.start(step)

    def write(self, step: int, row: Row) -> None:
        print(f"step {step}/{self._n_iters}  {self._pace.describe(step, row)}", flush=True)

    def close(self) -> None:
        pass


class Bar:
    """A live progress bar, for terminals."""

    def __init__(self, n_iters: int) -> None:
        self._pace = _Pace(n_iters)
        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.description}", markup=False),
        )
        self._task = self._progress.add_task("starting", total=n_iters)

    def rewind(self, step: int) -> None:
        self._pace.start(step)
        self._progress.update(self._task, completed=step)
        self._progress.start()

    def write(self, step: int, row: Row) -> None:
        text = self._pace.describe(step, row)
        self._progress.update(self._task, completed=step, description=text)

    def close(self) -> None:
        self._progress.stop()


def console(n_iters: int) -> Writer:
    """A live bar when standard output is a terminal, plain lines when it is not."""
    return Bar(n_iters) if sys.stdout.isatty() else Lines(n_iters)
