"""A file system that fails, or a process that is killed or gets a signal, at the n-th operation.

Operations are those below a folder that change something: a file opened for writing, a write, an
fsync, a renaming, a removal, a new folder; with ``reads``, files opened for reading instead, or
(None) too. A
process that was killed does nothing any more: every later operation is refused too, until the
block ends. A signal comes before the operation. What Orbax does within its own temporary folders,
in threads, is left alone: ``preloaded`` is for that.
"""

import builtins
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from helpers.places import ROOT

# What is tried at random depends on it; benchmarks/faults.py counts up.
SEED = int(os.environ.get("SCOREMLE_SEED", "0"))


def report(what: str, counts: Mapping[str, int]) -> None:
    """Says how often each outcome came, in a line that benchmarks/faults.py reads."""
    print(f"\n{what}: {json.dumps(dict(counts))}")


class Killed(BaseException):
    """Stands for a kill -9: no code of the program can catch it."""


class Faults:
    """Within the block the n-th operation meets a fault: an errno, a signal, or (None) a kill.

    ``done`` counts the operations; ``kind`` is the one that met it, None if none did.
    """

    def __init__(
        self, folder: Path, n: int, fault: int | None, *, reads: bool | None = False
    ) -> None:
        self.folder, self.n, self.fault, self.reads = str(folder), n, fault, reads
        self.done, self.kind, self.dead = 0, None, False
        self._patch = pytest.MonkeyPatch()

    def step(self, kind: str, path: str) -> None:
        ours = path.startswith(self.folder) and "orbax-checkpoint-tmp" not in path
        if not ours or self.reads not in (None, kind == "read"):
            return
        if self.dead:
            raise Killed
        self.done += 1
        if self.done == self.n:
            self.kind = kind
            if isinstance(self.fault, signal.Signals):
                signal.raise_signal(self.fault)
            elif self.fault is None:
                self.dead = True
                raise Killed
            else:
                raise OSError(self.fault, os.strerror(self.fault), path)

    def __enter__(self) -> "Faults":
        opened = self._open(io.open)  # one function, of two names
        for module in (io, builtins):
            self._patch.setattr(module, "open", opened)
        self._patch.setattr(os, "open", self._os_open(os.open))
        self._patch.setattr(os, "fsync", self._by_handle("fsync", os.fsync))
        self._patch.setattr(os, "pwrite", self._by_handle("write", os.pwrite))
        for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir"):
            self._patch.setattr(os, name, self._by_path(name, getattr(os, name)))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _open(self, real):
        def call(file, mode="r", *arguments, **more):
            if isinstance(file, int) or not set(mode) & set("wax+"):
                if not isinstance(file, int):
                    self.step("read", os.fspath(file))
                return real(file, mode, *arguments, **more)
            self.step("open", os.fspath(file))
            return Written(real(file, mode, *arguments, **more), self, os.fspath(file))

        return call

    def _os_open(self, real):
        def call(path, flags, *arguments, dir_fd=None, **more):
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.step("open", _place(path, dir_fd))
            return real(path, flags, *arguments, dir_fd=dir_fd, **more)

        return call

    def _by_handle(self, kind, real):
        def call(handle, *arguments):
            self.step(kind, os.readlink(f"/proc/self/fd/{handle}"))
            return real(handle, *arguments)

        return call

    def _by_path(self, kind, real):
        def call(path, *arguments, dir_fd=None, **more):
            self.step(kind, _place(path, dir_fd))
            return real(path, *arguments, **more | ({} if dir_fd is None else {"dir_fd": dir_fd}))

        return call


class Written:
    """A file whose writes are operations. One that fails has written half."""

    def __init__(self, file, faults, path) -> None:
        self._file, self._faults, self._path = file, faults, path

    def write(self, content):
        try:
            self._faults.step("write", self._path)
        except BaseException:
            self._file.write(content[: len(content) // 2])
            raise
        return self._file.write(content)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __iter__(self):
        return iter(self._file)


def preloaded(folder: Path) -> dict[str, str]:
    """The environment of a process whose every library meets the faults of failing_files.c.

    Skips the test where there is no compiler, or no Linux.
    """
    source, library = ROOT / "tests/helpers/failing_files.c", folder / "failing_files.so"
    if sys.platform != "linux" or not shutil.which("cc"):
        pytest.skip("it takes Linux and a C compiler")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(library)}


def _place(path, folder: int | None) -> str:
    name = os.fspath(path)
    name = name.decode() if isinstance(name, bytes) else name
    return name if folder is None else f"{os.readlink(f'/proc/self/fd/{folder}')}/{name}"
