"""What the threads of Orbax and TensorStore print when a checkpoint can't be written or read.

The call raises what went wrong, and a line says it. Its threads print the same as tracebacks,
hundreds of lines, some of them after the line: one array can't be read, and the readers of the
others are left to themselves. They are kept back, and nothing else is; with the logger "scoremle"
at DEBUG they are shown.
"""

import logging
import sys
import traceback
import warnings
from functools import cache
from types import TracebackType
from typing import Any

__all__ = ["quiet"]

logger = logging.getLogger("scoremle")

# How a thread of Orbax begins what it logs; the libraries whose threads are meant.
ORBAX = "_SignalingThread.run() raised an exception"
LIBRARIES = ("orbax", "asyncio", "tensorstore", "event loop is closed")


def quiet() -> None:
    """Keeps them back from now on, since threads outlive the call that began them."""
    _keep_back()
    # Each time: others may set the filters of warnings anew.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


@cache
def _keep_back() -> None:
    before = sys.unraisablehook

    def hook(found: Any) -> None:
        if _debug() or not _is_theirs(found.exc_value, found.exc_traceback):
            before(found)

    sys.unraisablehook = hook
    logging.getLogger("absl").addFilter(
        lambda record: _debug() or ORBAX not in record.getMessage()
    )
    logging.getLogger("asyncio").addFilter(
        lambda record: _debug() or not (record.exc_info and _is_theirs(*record.exc_info[1:]))
    )


def _is_theirs(error: BaseException | None, trace: TracebackType | None) -> bool:
    files = " ".join(frame.filename for frame in traceback.extract_tb(trace))
    return any(name in f"{files} {error}".lower() for name in LIBRARIES)


def _debug() -> bool:
    return logger.isEnabledFor(logging.DEBUG)
