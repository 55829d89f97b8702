"""Progress and time to go of long work: a live bar on a terminal, lines of text elsewhere.

A notebook is neither. It gets one line, which is written over.
"""

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Timer

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from scoremle.errors import in_a_line
from scoremle.terminal import is_live, is_mute, say

# Seconds between lines, where the output is not a terminal; between changes of a bar, where it is.
LINE_EVERY, BAR_EVERY = 20.0, 0.1
# Seconds of compilation after which a line is printed.
LONG = 2.0
# Seconds over which the speed is measured.
WINDOW = 60.0
# Cells of a bar, and their colour until the end: rich's own is red, as if something failed.
SHORTEST, LONGEST, COLOUR = 10, 40, "cyan"
# (amount that is done, other facts in words)
Advance = Callable[..., None]


class Progress:
    """Progress of work of ``total`` units; without a unit, of a share of one.

    If the number of units is unknown, ``total`` is infinite, and no time to go is shown.
    Work in units begins with a compilation. Its speed and time to go count from the first
    report, and so leave that out; the elapsed time counts from the start. A line is printed
    ``every`` so many seconds, and one at the end. A share is work that others follow: it has no
    line at the end, and its bar goes away.
    """

    def __init__(
        self, label: str, total: float, unit: str = "", *, every: float = LINE_EVERY
    ) -> None:
        self._label, self._total = in_a_line(label), total
        self._unit, self._every = unit, every
        self._moments: deque[tuple[float, float]] = deque()
        self._facts: list[str] = []
        self._named: set[str] = set()
        self._late: Timer | None = None
        self._bar = self._live()

    def _live(self) -> "_LiveBar | _LiveLine | None":
        """Live display: a bar on a terminal, a line in a notebook; None if mute, and elsewhere."""
        if is_mute():
            return None
        if is_live():
            return _LiveBar(self._label, self._total, transient=not self._unit)
        # Of ipykernel: its output is a stream that a browser shows.
        notebook = type(sys.stdout).__module__.startswith("ipykernel.")
        return _LiveLine(self._label, transient=not self._unit) if notebook else None

    def start(self, done: float = 0) -> None:
        """Begins, or begins again, where ``done`` units are done already."""
        self._moments.clear()
        self._began = self._printed = self._shown = time.monotonic()
        if self._bar:
            self._bar.start()
        if not self._unit:
            self._moments.append((done, self._began))
        elif done < self._total:
            kept = " what was not kept from before" * ("JAX_COMPILATION_CACHE_DIR" in os.environ)
            compiling = f"compiling{kept}"
            if self._bar:
                self.doing(done, compiling)
            else:
                self._late = Timer(LONG, self.doing, (done, compiling))
                self._late.daemon = True
                self._late.start()

    def advance(self, done: float, text: str = "") -> None:
        """Shows the amount done and the text: facts two spaces apart, the most important first."""
        self._begun()
        self._facts = text.split("  ")
        now = time.monotonic()
        times, speed = self._pace(done, now)
        ended = done >= self._total and bool(self._unit)
        if self._bar:
            self._bar.show(done, [self._place(done), *times, *self._facts, *speed])
        elif ended or now - self._printed >= self._every:
            self._printed = now
            self._print(self._place(done), *self._facts, *speed, *times[::-1])

    def move(self, done: float) -> None:
        """Sets the amount done, and nothing else: a bar moves, and no line is printed."""
        now = time.monotonic()
        times, speed = self._pace(done, now)
        if self._bar and now - self._shown >= BAR_EVERY:
            self._shown = now
            self._bar.show(done, [self._place(done), *times, *self._facts, *speed])

    def doing(self, done: float, what: str) -> None:
        """Shows what is done now. The first time compiles: it has a line, and leaves the speed."""
        if self._bar:
            self._bar.show(done, [what, self._place(done)])
        elif what not in self._named:
            self._print(what)
        if what not in self._named:
            self._moments.clear()
        self._named.add(what)

    def close(self) -> None:
        self._begun()
        if self._bar:
            self._bar.stop()

    def _begun(self) -> None:
        """Ends compilation: the line that would announce it is not printed."""
        if self._late:
            self._late.cancel()

    def _print(self, *words: str) -> None:
        say("  ".join(filter(None, [self._label, *words])))

    def _place(self, done: float) -> str:
        if not self._unit:
            return f"{done / self._total:.0%}"
        return f"{self._unit} {done}" + f"/{self._total}" * (self._total < math.inf)

    def _pace(self, done: float, now: float) -> tuple[list[str], list[str]]:
        """The time to go, if it is known yet, and what has elapsed; the speed, if it is known."""
        moments = self._moments
        if not moments or now - moments[-1][1] >= BAR_EVERY:
            moments.append((done, now))
        while len(moments) > 1 and moments[1][1] <= now - WINDOW:
            moments.popleft()
        times, speed = [f"elapsed {_duration(now - self._began)}"], list[str]()
        before, since = moments[0]
        if done == before or now == since:
            return times, speed
        rate = (done - before) / (now - since)
        if self._unit:
            speed = [f"{rate:.1f} {self._unit}s/s" if rate >= 1 else f"{rate:.2g} {self._unit}s/s"]
        left = (self._total - done) / rate
        return [f"ETA {_duration(left)}"] * (0 < left < math.inf) + times, speed


class _LiveBar:
    """A bar between a label and words, of which the last give way where the screen is narrow."""

    def __init__(self, label: str, total: float, *, transient: bool) -> None:
        self._label, self._total = label, total
        self._cells = BarColumn(SHORTEST, complete_style=COLOUR, pulse_style=COLOUR)
        before, after = (
            TextColumn(f"{{task.{field}}}", markup=False)
            for field in ("fields[label]", "description")
        )
        columns = (before, self._cells, after) if label else (self._cells, after)
        self._bar = Bar(*columns, transient=transient)

    def start(self) -> None:
        if not self._bar.tasks:
            total = self._total if self._total < math.inf else None
            self._task = self._bar.add_task("", label=self._label, total=total)
        self._bar.start()

    def show(self, done: float, words: Sequence[str]) -> None:
        room = self._bar.console.width - len(f"{self._label} ".lstrip()) - len(" ")
        text = _fitting([word for word in words if word], room - SHORTEST)
        self._cells.bar_width = min(LONGEST, room - len(text))
        self._bar.update(self._task, completed=done, description=text)

    def stop(self) -> None:
        self._bar.stop()


class _LiveLine:
    """One line of text that is written over, for notebooks."""

    def __init__(self, label: str, *, transient: bool) -> None:
        self._label, self._transient, self._shown = label, transient, 0

    def start(self) -> None:
        pass

    def show(self, done: float, words: Sequence[str]) -> None:
        text = "  ".join(filter(None, [self._label, *words]))
        print(f"\r{text:{self._shown}}", end="", flush=True)
        self._shown = len(text)

    def stop(self) -> None:
        if self._shown:
            print(f"\r{'':{self._shown}}\r" if self._transient else "\n", end="", flush=True)
        self._shown = 0


def _fitting(words: list[str], room: int) -> str:
    """Joins as many of the first words as there is room for."""
    for count in range(len(words), 1, -1):
        if len(text := "  ".join(words[:count])) <= room:
            return text
    return words[0][: max(room, 0)]


@contextmanager
def progress(label: str, total: float, unit: str = "", *, done: float = 0) -> Iterator[Advance]:
    """A function that reports how much is done; without a label, nothing is shown."""
    if not label:
        yield lambda done, text="": None
        return
    shown = Progress(label, total, unit)
    shown.start(done)
    try:
        yield shown.advance
    finally:
        shown.close()


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s" if m else f"{s}s"
