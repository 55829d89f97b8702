"""One process at a time: a file that names the process that works there, while it does.

The system lets go of a lock (flock) when its process ends, however it ends. Network file systems
may have no such locks, or keep them within one machine. So the owner also writes into the file
who it is, and touches it every few seconds. Whoever finds the file of a process on another machine
watches it for a while, and takes it over if nobody touches it.
"""

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scoremle.errors import UserError
from scoremle.files import handle_of, is_gone, is_writer, machine, make_folder, writing
from scoremle.records import is_of
from scoremle.terminal import say

# What a file says of its owner.
OWNER = {"doing": str, "machine": str, "process": int, "since": str}
# Seconds between signs of life; without one for so long, the owner is taken for dead.
BEAT, WATCH = 10.0, 35.0
# Seconds between two tries.
AGAIN = 0.02


@contextlib.contextmanager
def locked(path: Path, doing: str, *, wait: float = 0.0) -> Iterator[None]:
    """Locks the file ``path`` for this process within the block.

    Of the processes of one run the first has it for all of them.

    Args:
        path: the file; it is there only for that time, unless its process is killed.
        doing: what the process does there, in words.
        wait: seconds to wait for another that has it.

    Raises:
        UserError: another process has it.
    """
    if not is_writer():
        yield
        return
    with writing(path):
        make_folder(path.parent)
        handle = _acquire(path, time.monotonic() + wait)
    ended, since = threading.Event(), time.strftime("%Y-%m-%d %H:%M:%S %Z")
    owner = {"doing": doing, "machine": machine(), "process": os.getpid(), "since": since}
    try:
        with writing(path):
            os.truncate(handle, 0)
            os.pwrite(handle, json.dumps(owner).encode(), 0)
        threading.Thread(target=_beat, args=(path, ended), daemon=True).start()
        yield
    finally:
        ended.set()
        try:
            # After a long pause another may have taken this process for dead, and have the file.
            if _is_at(path, handle) and _owner(handle) in ({}, owner):
                with writing(path):
                    path.unlink(missing_ok=True)
        finally:
            os.close(handle)


def _acquire(path: Path, until: float) -> int:
    """An open file that is this process's. Raises UserError if it is another's until then."""
    while True:
        handle = handle_of(path, os.O_RDWR | os.O_CREAT)
        try:
            held = _is_held(handle, path)
            if not held and _is_at(path, handle):
                return handle
            if held and time.monotonic() >= until:
                raise UserError(_busy(path, _owner(handle)))
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        time.sleep(AGAIN)


def _is_held(handle: int, path: Path) -> bool:
    """Whether a living process has the file."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        return True
    except OSError:  # a file system that has no locks
        free = False
    owner = _owner(handle)
    if not owner or is_gone(owner["machine"], owner["process"]):
        return False
    # On the same machine the lock would not have been given while the owner lives.
    return not (free and owner["machine"] == machine()) and _is_touched(path)


def _is_at(path: Path, handle: int) -> bool:
    """Whether the open file is the one at the path: else its last owner has removed it."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _owner(handle: int) -> dict[str, Any]:
    """Owner that the file names; empty if none, or if it can't be read."""
    try:
        owner = json.loads(os.pread(handle, 10_000, 0))
        return owner if all(is_of(owner[name], kind) for name, kind in OWNER.items()) else {}
    except (ValueError, TypeError, LookupError, RecursionError):
        return {}


def _is_touched(path: Path) -> bool:
    """Whether any process gives a sign of life."""
    until, first = time.monotonic() + WATCH, _touched_at(path)
    say(f"{path} is of another machine: is its owner alive? ({WATCH:.0f} s)")
    while time.monotonic() < until:
        time.sleep(BEAT / 4)
        if _touched_at(path) != first:
            return True
    return False


def _touched_at(path: Path) -> int | None:
    # Opened anew: a network file system queries its server then, and not before.
    with contextlib.suppress(FileNotFoundError), open(path, opener=handle_of) as file:
        return os.fstat(file.fileno()).st_mtime_ns
    return None


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def _busy(path: Path, owner: dict[str, Any]) -> str:
    if not owner:
        return f"{path.parent} is in use by another process: wait for it, or end it"
    return (
        f"{path.parent} is in use: process {owner['process']} on {owner['machine']} is"
        f" {owner['doing']} since {owner['since']}; wait for it, or end it"
    )
