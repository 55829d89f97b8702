"""What the threads of Orbax and TensorStore print when a checkpoint can't be written or read.

The call raises what went wrong, and a line says it. Its threads print the same as tracebacks,
hundreds of lines, some of them after the line. They are kept back, and nothing else is; with the
logger "scoremle" at DEBUG they are shown.
"""

import logging
import sys
from functools import cache
from typing import Any

__all__ = ["quiet"]

logger = logging.getLogger("scoremle")

# How a thread of Orbax begins what it logs, and what TensorStore's say when the call has ended.
ORBAX = "_SignalingThread.run() raised an exception"
TENSORSTORE = "Event loop is closed"


@cache
def quiet() -> None:
    """Keeps them back from now on, since threads outlive the call that began them."""
    before = sys.unraisablehook

    def is_shown(record: logging.LogRecord) -> bool:
        return _debug() or ORBAX not in record.getMessage()

    def hook(found: Any) -> None:
        if _debug() or str(found.exc_value) != TENSORSTORE:
            before(found)

    logging.getLogger("absl").addFilter(is_shown)
    sys.unraisablehook = hook


def _debug() -> bool:
    return logger.isEnabledFor(logging.DEBUG)
