"""Compiled programs are kept: a command compiles once, and not each time.

This is JAX's persistent cache. The command line switches it on; ``import scoremle`` does not.
JAX's own variables have the last word: ``JAX_COMPILATION_CACHE_DIR`` names another folder, and
``JAX_ENABLE_COMPILATION_CACHE=false`` keeps nothing.

A program is run as it lies there. So the folder must be the user's own, and neither it nor one
above may be one that others can write to.
"""

import hashlib
import importlib.metadata
import logging
import os
import platform
import stat
import sys
from pathlib import Path

FOLDER = "JAX_COMPILATION_CACHE_DIR"
SWITCH, OFF = "JAX_ENABLE_COMPILATION_CACHE", ("false", "f", "no", "n", "off", "0")
# Seconds of compilation from which a program is kept. JAX's own 1 would leave out most, which take
# as long as the others together.
LEAST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", 0


logger = logging.getLogger(__name__)


def keep_programs() -> None:
    """Switches it on, before anything compiles, unless the user has named a folder, or none.

    A folder that is open to others is not used, and a line says so.
    """
    if os.environ.get(SWITCH, "").lower() in OFF:
        return
    try:
        folder = Path(os.environ[FOLDER]) if FOLDER in os.environ else programs_folder()
        if FOLDER not in os.environ:
            folder.mkdir(0o700, parents=True, exist_ok=True)
        place = _open_to_others(folder) if folder.exists() else None
    except (OSError, RuntimeError):  # no home, or none to write to: `scoremle env` says so
        return
    if place:
        logger.warning(
            "compiled programs are not kept in %s: others can write to %s; chmod go-w it, if it is"
            " yours, or set %s to a folder of your own", folder, place, FOLDER,
        )  # fmt: skip
        _set(SWITCH, False)
    elif FOLDER not in os.environ:
        _set(FOLDER, str(folder))
        if LEAST[0] not in os.environ:
            _set(*LEAST)


def _set(name: str, value: str | int) -> None:
    os.environ[name] = "false" if value is False else str(value)
    if "jax" in sys.modules:  # which has read its variables already
        sys.modules["jax"].config.update(name.lower(), value)


def _open_to_others(folder: Path) -> Path | None:
    """The folder, or the first one above, that another user can write to; None if none is."""
    folder = folder.resolve()
    for place in (folder, *folder.parents):
        info, above = place.stat(), place != folder
        # A group of the user's own number has no other member.
        group = stat.S_IWGRP if info.st_gid != info.st_uid else 0
        writable = info.st_mode & (stat.S_IWOTH | group)
        kept = above and info.st_mode & stat.S_ISVTX  # there, nobody replaces what is another's
        mine = info.st_uid == os.geteuid() or (above and info.st_uid == 0)
        if (writable and not kept) or not mine:
            return place
    return None


def programs_folder() -> Path:
    """The folder of programs that this machine compiled: another processor could not run them."""
    caches = os.environ.get("XDG_CACHE_HOME")
    above = Path(caches) if caches else Path.home() / ".cache"
    return above / "scoremle" / "programs" / _machine()


def _machine() -> str:
    """A short name for the processor and the compiler."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        processor = platform.processor()
    facts = [platform.machine(), processor, importlib.metadata.version("jaxlib")]
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:12]
