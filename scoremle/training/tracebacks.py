"""Filter of what threads of Orbax and TensorStore print when a checkpoint fails.

The call raises an error, which becomes a line. Its threads print the same as tracebacks, hundreds
of lines, some of them after that line, since readers of other arrays go on when one fails. These
tracebacks alone are hidden; with the logger "scoremle" at DEBUG, or `--debug` on the command
line, they are shown.
"""

import logging
import sys
import traceback
import warnings
from functools import cache
from types import TracebackType
from typing import Any

logger = logging.getLogger("scoremle")

# What a thread of Orbax names in what it logs; the libraries whose threads are meant.
THREAD = "_SignalingThread"
LIBRARIES = ("orbax", "asyncio", "tensorstore", "event loop is closed")


def hide_tracebacks() -> None:
    """Hides these tracebacks from now on, since threads outlive the call that began them."""
    _keep_back()
    # At each call, since other code may reset the filters of warnings.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


@cache
def _keep_back() -> None:
    before = sys.unraisablehook

    def hook(found: Any) -> None:
        if _debug() or not _is_theirs(found.exc_value, found.exc_traceback):
            before(found)

    def is_shown(record: logging.LogRecord) -> bool:
        error = record.exc_info and record.exc_info[1]
        theirs = error and _is_theirs(error, error.__traceback__)
        return _debug() or not (theirs or THREAD in record.getMessage())

    sys.unraisablehook = hook
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(is_shown)


def _is_theirs(error: BaseException | None, trace: TracebackType | None) -> bool:
    files = " ".join(frame.filename for frame in traceback.extract_tb(trace))
    return any(name in f"{files} {error}".lower() for name in LIBRARIES)


def _debug() -> bool:
    return logger.isEnabledFor(logging.DEBUG)
