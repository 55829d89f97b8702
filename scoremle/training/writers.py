"""Writers of the numbers of a training: files, TensorBoard, the terminal.

A row is one step's numbers by name. Evaluation numbers are called ``eval_...``. All writers share
one protocol, so that the training loop has only one of them: a ``FanOut``.
"""

import json
import math
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from scoremle.bounded import MAX_TEXT
from scoremle.errors import UserError
from scoremle.files import handle_of, read_bytes, sync, write_atomically, writing
from scoremle.progress import Progress
from scoremle.records import is_of

__all__ = ["Console", "FanOut", "JsonLines", "Row", "Writer"]

Row = dict[str, float]


@runtime_checkable
class Writer(Protocol):
    """``rewind`` at the start, ``write`` and ``at`` in order of steps, ``close`` at the end."""

    def rewind(self, step: int) -> None:
        """Begin after ``step``, and forget what an earlier run wrote beyond it."""

    def write(self, step: int, row: Row) -> None: ...

    def at(self, step: int, doing: str = "") -> None:
        """The steps before this one are done, and now something else is, if it is named."""

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

    def at(self, step: int, doing: str = "") -> None:
        for writer in self._writers:
            writer.at(step, doing)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class JsonLines:
    """One JSON object a line: ``{"step": 100, "loss": 0.12, ...}``; null if not finite."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def rewind(self, step: int) -> None:
        old = read_bytes(self._path, MAX_TEXT) if self._path.exists() else b""
        lines = old.decode(errors="replace").splitlines()
        kept = [line + "\n" for line in lines if _step_of(line) <= step]
        with write_atomically(self._path) as new:
            new.write_text("".join(kept))

    def write(self, step: int, row: Row) -> None:
        finite = {name: v if math.isfinite(v) else None for name, v in row.items()}
        with writing(self._path):
            with open(self._path, "a", opener=handle_of) as file:
                file.write(json.dumps({"step": step, **finite}) + "\n")
            sync(self._path)  # a checkpoint that comes later leaves no gap behind it

    def at(self, step: int, doing: str = "") -> None:
        pass

    def close(self) -> None:
        pass


def _step_of(line: str) -> float:
    """The step of a row; infinity for one that a kill cut short, which is to be written anew."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return step if is_of(step, float) else math.inf


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
        self.close()
        self._writer = self._open(str(self._folder), purge_step=step + 1)

    def write(self, step: int, row: Row) -> None:
        with writing(self._folder):
            for name, value in row.items():
                self._writer.add_scalar(name, value, step)

    def at(self, step: int, doing: str = "") -> None:
        pass

    def close(self) -> None:
        if self._writer:
            with writing(self._folder):
                self._writer.close()


class Console:
    """Loss, bits/dim, speed and time to go: a live bar on a terminal, else a line a row.

    bits/dim that do not beat the ``uniform`` distribution come too early: the averaged parameters
    are mostly those of the beginning, whatever the network has learned. They are labelled so.
    """

    def __init__(self, n_iters: int, uniform: float = math.inf) -> None:
        self._progress = Progress("", n_iters, "step", every=0.0)
        self._uniform = uniform
        self._bpd: tuple[int, str] | None = None

    def rewind(self, step: int) -> None:
        self._progress.start(step)

    def write(self, step: int, row: Row) -> None:
        if "eval_bpd" in row:
            stderr = f" +- {row['eval_bpd_stderr']:.3f}" if "eval_bpd_stderr" in row else ""
            early = " (too early: above uniform)" * (row["eval_bpd"] >= self._uniform)
            self._bpd = step, f"bpd {row['eval_bpd']:.3f}{stderr}{early}"
        words = [f"loss {row['loss']:.4f}"]
        if self._bpd:
            at, text = self._bpd
            words.append(text if at == step else f"{text}  (step {at})")
        self._progress.tell(step, "  ".join(words))

    def at(self, step: int, doing: str = "") -> None:
        if doing:
            self._progress.doing(step, doing)
        else:
            self._progress.move(step)

    def close(self) -> None:
        self._progress.close()
