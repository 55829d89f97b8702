"""Ctrl-C and SIGTERM end a command as an error does: files whole, the terminal as it was.

Python runs a handler in the main thread, between two of its own instructions. While XLA compiles
there is none for long: a thread, which the system's part of the handler wakes, prints a line. An
error raised within an import would leave half a library behind: the import is let finish. Python
drops an error raised in a finalizer or in some callbacks of C: the thread then sends the signal
again.
"""

import importlib
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

from scoremle.errors import Stopped
from scoremle.terminal import WIPE

ANSWERED = (signal.SIGINT, signal.SIGTERM)
# Seconds until a line says that the signal has come; between two tries to stop.
SOON, AGAIN = 0.5, 0.05
# Seconds that an import may still take.
PATIENCE = 10.0
# The frames of imports have these globals.
IMPORTS = vars(importlib._bootstrap)


@contextmanager
def answered() -> Iterator[None]:
    """In the block Ctrl-C raises KeyboardInterrupt and SIGTERM raises Stopped.

    A signal that is ignored stays so, as Ctrl-C is for what a shell runs in the background.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets only the main thread handle signals
        return
    usual = {number: signal.getsignal(number) for number in ANSWERED}
    heard, of_handler = socket.socketpair()
    of_handler.setblocking(False)
    before = signal.set_wakeup_fd(of_handler.fileno(), warn_on_full_buffer=False)
    answer = _Answer()
    thread = threading.Thread(target=answer.watch, args=(heard,), daemon=True)
    thread.start()
    try:
        for number in ANSWERED:
            if usual[number] is not signal.SIG_IGN:
                signal.signal(number, answer.handle)
        with _dropped_silently(answer):
            yield
    except RuntimeError as error:
        if not any(words in str(error) for words in RAISED_WITHIN):
            raise
        raise answer.new_error() from None
    finally:
        for number in ANSWERED:
            signal.signal(number, usual[number])
        answer.ended.set()
        signal.set_wakeup_fd(before)
        of_handler.close()
        thread.join()
        heard.close()


@contextmanager
def going_on(words: str, within: Path | None = None) -> Iterator[None]:
    """In the block Ctrl-C and SIGTERM raise with words that say how the work goes on.

    If no array is ``within`` a folder that is given, nothing was finished: there are no words.
    """
    try:
        yield
    except (KeyboardInterrupt, Stopped) as end:
        said = [words] if within is None or any(within.rglob("*.npz")) else []
        if isinstance(end, Stopped):
            raise Stopped(end.signal, *said) from None
        raise KeyboardInterrupt(*said) from None


def writing_files(first: Path) -> AbstractContextManager[None]:
    """As ``going_on``, where a command writes several files."""
    return going_on(f"the same command writes its files, with --force if {first} is there")


def say_stopping() -> None:
    """Prints that a signal has come, and that the end may take a while."""
    wipe = WIPE if sys.stderr.isatty() else ""
    words = "stopping as soon as what is compiled or computed now is done"
    print(f"{wipe}scoremle: {words}", file=sys.stderr, flush=True)


class _Interrupt(KeyboardInterrupt):
    """Ctrl-C. To Python's own exceptions there are no weak references."""


# The last line of JAX's error about one that a function raised which a compiled program calls.
RAISED_WITHIN = tuple(f"\n{kind.__name__}: " for kind in (_Interrupt, Stopped))


class _Answer:
    """Answer of a command to signals."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._number, self._since = 0, float("inf")
        self._error: Callable[[], BaseException | None] = lambda: None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raises the error, unless an import is under way."""
        self._number, now = number, time.monotonic()
        self._since = min(self._since, now)
        if not _importing(frame) or now > self._since + PATIENCE:
            raise self.new_error()

    def new_error(self) -> BaseException:
        """The error that ends the work. Its traceback must not hold it: nobody else may."""
        error = _Interrupt() if self._number == signal.SIGINT else Stopped(self._number)
        self._error = weakref.ref(error)
        return error

    def is_own(self, error: BaseException | None) -> bool:
        """Whether this is the error that was raised last."""
        return error is not None and error is self._error()

    def watch(self, heard: socket.socket) -> None:
        """From the first signal on: says a line if the end takes long, and sees that it comes."""
        while (number := heard.recv(1)) and number[0] not in ANSWERED:
            pass
        soon, said = time.monotonic() + SOON, False
        while number and not self.ended.wait(AGAIN):
            if not said and time.monotonic() > soon:
                say_stopping()
                said = True
            if self._number and self._error() is None:  # postponed, or dropped
                signal.pthread_kill(cast(int, threading.main_thread().ident), self._number)


@contextmanager
def _dropped_silently(answer: _Answer) -> Iterator[None]:
    """Keeps Python from printing what it can't raise of the answer: errors of destructors."""
    before = sys.unraisablehook

    def hook(dropped: Any) -> None:
        if not answer.is_own(dropped.exc_value):
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:  # else another hook passes on to it
            sys.unraisablehook = before


def _importing(frame: FrameType | None) -> bool:
    while frame and frame.f_globals is not IMPORTS:
        frame = frame.f_back
    return frame is not None
