"""How far long work is and when it ends: a live bar on a terminal, lines of text elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from scoremle.terminal import printable, say

__all__ = ["Progress", "progress"]

# Seconds between lines, where the output is no terminal.
LINE_EVERY = 20.0
# How much is done now, and what else there is to say.
Tell = Callable[..., None]


class Progress:
    """Progress of work of ``total`` units; without a unit, of a share of one.

    The speed and the time to go leave out what came before the first that is told, which is mostly
    compilation. A line is printed ``every`` so many seconds, and one at the end. A share is work
    that others follow: it has no line at the end, and its bar goes away.
    """

    def __init__(
        self, label: str, total: float, unit: str = "", *, every: float = LINE_EVERY
    ) -> None:
        self._label, self._total = printable(label), total
        self._unit, self._every = unit, every
        self._bar: Bar | None = None
        if sys.stdout.isatty():
            label_text, words = (
                TextColumn(f"{{task.{field}}}", markup=False)
                for field in ("fields[label]", "description")
            )
            self._bar = Bar(label_text, BarColumn(), words, transient=not unit)

    def start(self, done: float = 0) -> None:
        """Begin, or begin again, with so much that is done already."""
        self._since, self._compiling = (done, time.monotonic()), True
        self._last = self._since[1]
        if self._bar:
            if not self._bar.tasks:
                self._bar.add_task("starting", label=self._label, total=self._total)
            self._bar.update(self._bar.task_ids[0], completed=done)
            self._bar.start()

    def tell(self, done: float, text: str = "") -> None:
        """So much is done now."""
        now = time.monotonic()
        words = "  ".join(filter(None, [self._place(done), text, self._pace(done, now)]))
        ended = done >= self._total and bool(self._unit)
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=done, description=words)
        elif ended or now - self._last >= self._every:
            self._last = now
            say("  ".join(filter(None, [self._label, words])))

    def close(self) -> None:
        if self._bar:
            self._bar.stop()

    def _place(self, done: float) -> str:
        return f"{self._unit} {done}/{self._total}" if self._unit else f"{done / self._total:.0%}"

    def _pace(self, done: float, now: float) -> str:
        before, since = self._since
        if done == before:
            return "ETA 0s" if done >= self._total else ""
        rate = (done - before) / max(now - since, 1e-9)
        eta = f"ETA {_duration((self._total - done) / rate)}"
        first, self._compiling = self._compiling, False
        if first:
            self._since = (done, now)
        if not self._unit:
            return eta
        speed = f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"
        return f"{speed} {self._unit}s/s  {eta}" + " (with compilation)" * first


@contextmanager
def progress(label: str, total: float, unit: str = "", *, done: float = 0) -> Iterator[Tell]:
    """A function that is to be told how much is done; without a label, nothing is shown."""
    if not label:
        yield lambda done, text="": None
        return
    shown = Progress(label, total, unit)
    shown.start(done)
    try:
        yield shown.tell
    finally:
        shown.close()


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s" if m else f"{s}s"
