"""A child process that does the work of one process of several, and its parent, which reports.

JAX's own threads end a process that has lost the others, in the midst of whatever it does and with
lines of their own. So the parent has the last word: a line, and the exit code.
"""

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from scoremle.cli.signals import ANSWERED, say_stopping
from scoremle.errors import Stopped, first_line, out_of_memory
from scoremle.terminal import say_mistake

LONGEST = 10_000  # bytes of a line
# Exit codes of the program. JAX ends a process that has lost the others by an abort, or with 1.
KNOWN, BY_JAX = (0, 2, 3, 130, 143), (1, -signal.SIGABRT)
LOST = (
    "another process of this run has ended, or can't be reached: start all of them again, and they"
    " resume from what is saved"
)
NEVER_MET = (
    "the processes of this run have not met: were all started, and is --coordinator the machine of"
    " the first, with a port that all reach?"
)
# XLA's status, which JAX says in a ValueError where the array of a failed program is fetched.
STATUS = re.compile("(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")
PAUSE = 0.02  # seconds between two looks at the child
MET = "\0"  # said to the parent before any line


@contextmanager
def run_in_child(process: int | None) -> Iterator[Callable[[], None]]:
    """Runs the block in a child, which ends with its parent; to be called before JAX is imported.

    Yields a function, to be called when the child has met the others.

    An error ends the child at once, since at its usual end it would wait for the others: they
    fail when they wait for it in vain. The parent never runs the block: it passes SIGTERM and
    Ctrl-C on as SIGTERM, prints the line of an error, and raises SystemExit. ``process`` is the
    number of this process, if it is known.
    """
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    # One that comes before this process answers it is answered then.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ANSWERED)
    if child := os.fork():
        theirs.close()
        raise SystemExit(_wait(child, ours, "" if process is None else f"process {process}: "))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    ours.close()
    os.setsid()  # Ctrl-C is for the parent
    threading.Thread(target=_end_with_parent, args=(theirs,), daemon=True).start()
    try:
        yield lambda: theirs.sendall(MET.encode())
        _leave()
    except Stopped:  # all stop together
        _leave()
        raise
    except (Exception, KeyboardInterrupt) as error:
        theirs.sendall(_line(error).encode()[:LONGEST])
        os._exit(2)


def _end_with_parent(theirs: socket.socket) -> None:
    """Waits for the end of the parent, however the connection to it ends: by EOF or an error."""
    try:
        while theirs.recv(LONGEST):
            pass
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


def _leave() -> None:
    """Waits for the others, as they do."""
    import jax

    jax.distributed.shutdown()


def _line(error: BaseException) -> str:
    import jax

    text = str(error) or type(error).__name__
    fetched = isinstance(error, ValueError) and STATUS.match(text)
    if (fetched or isinstance(error, jax.errors.JaxRuntimeError)) and not out_of_memory(error):
        return f"{LOST} ({first_line(error)[:200]})"
    return text


def _wait(child: int, ours: socket.socket, whose: str) -> int:
    """The exit code of the child; says a line if it failed."""

    def hand_on(*_: object) -> None:
        say_stopping()
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)

    for number in ANSWERED:
        signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ANSWERED)
    # A signal that comes just before a call that blocks is answered after it: so none blocks long.
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        time.sleep(PAUSE)
    code = os.waitstatus_to_exitcode(ended[1])
    ours.setblocking(False)
    said = ""
    with suppress(BlockingIOError):  # where a child of the child lives on
        said = ours.recv(LONGEST).decode(errors="replace")
    if line := said.removeprefix(MET):
        return say_mistake(whose + line)
    return code if code in KNOWN else say_mistake(whose + _how_it_ended(code, met=bool(said)))


def _how_it_ended(code: int, *, met: bool) -> str:
    if code in BY_JAX:
        return LOST if met else NEVER_MET
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"its work was ended by {how}: the same command resumes from what is saved"
