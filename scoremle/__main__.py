"""``scoremle`` and ``python -m scoremle``: the command line, in a process of its own."""

import gc
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

STOPPED = tuple(128 + number for number in (signal.SIGINT, signal.SIGTERM))


def main() -> int:
    """Runs the command line; gives the exit code."""
    _open_closed()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    gc.disable()  # imports leave no garbage
    from scoremle.cli.main import main

    code = main()
    gc.freeze()  # the system takes all memory at once: Python need not look for garbage
    if code in STOPPED:
        # JAX may still compute: the end of Python would wait for it, and crash.
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)
    return code


def _open_closed() -> None:
    """Opens /dev/null in place of a standard stream that is closed.

    Else the stream is None, and the next file that is opened gets its number.
    """
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _end(number: int, _: FrameType | None) -> None:
    """Ends at once: outside of a command's work nothing is begun, and an error would leave Python
    in the midst of an import."""
    if number == signal.SIGINT:
        os.write(2, b"\r\x1b[K" * os.isatty(2) + b"scoremle: interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
