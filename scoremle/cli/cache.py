"""Compiled programs are kept: a command compiles once, and not each time.

This is JAX's persistent cache. The command line switches it on; ``import scoremle`` does not.
JAX's own variables have the last word: ``JAX_COMPILATION_CACHE_DIR`` names another folder, and
``JAX_ENABLE_COMPILATION_CACHE=false`` keeps nothing.
"""

import hashlib
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

__all__ = ["FOLDER", "keep_programs", "programs_folder"]

FOLDER = "JAX_COMPILATION_CACHE_DIR"
SWITCH, OFF = "JAX_ENABLE_COMPILATION_CACHE", ("false", "f", "no", "n", "off", "0")
# Seconds of compilation from which a program is kept. JAX's own 1 would leave out most, which take
# as long as the others together.
LEAST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", 0


def keep_programs() -> None:
    """Switches it on, before anything compiles, unless the user has named a folder, or none."""
    if FOLDER in os.environ or os.environ.get(SWITCH, "").lower() in OFF:
        return
    try:
        folder = programs_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or none to write to: `scoremle env` says so
        return
    for name, value in ((FOLDER, str(folder)), LEAST):
        if name in os.environ:
            continue
        os.environ[name] = str(value)
        if "jax" in sys.modules:  # which has read its variables already
            sys.modules["jax"].config.update(name.lower(), value)


def programs_folder() -> Path:
    """Where programs of this machine are kept: another processor could not run them."""
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
