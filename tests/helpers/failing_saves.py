"""Saves a checkpoint with a fault at operation FIRST, FIRST + STRIDE, and so on to the last.

``failing_saves.py FOLDER FIRST STRIDE``, with failing_files.c preloaded, prints a JSON object for
each fault: where it was, and what came of it. Each save is a process of its own, forked from one
that has imported all and computed nothing.
"""

import ctypes
import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint  # noqa: F401  # before processes are forked

from scoremle.cli.signals import ANSWERED, answered
from scoremle.errors import Stopped, UserError
from scoremle.training.checkpoints import Checkpoints
from scoremle.training.checksums import tree_hash
from scoremle.training.saving import Saving

SHIM = ctypes.CDLL(None)
SIGNALS = {number.name: -number for number in ANSWERED}
FAULTS = {"killed": 0, "no space": errno.ENOSPC, "input/output error": errno.EIO, **SIGNALS}
KILLED, STOPPED = -9, "stopped"


def tree(fill: float) -> dict[str, np.ndarray]:
    return {name: np.full((50, 50), fill, np.float32) for name in ("a", "b")}


def begin(folder: Path) -> None:
    for number in (1, 2):
        Checkpoints(folder, keep=None).save(number, tree(number), {})


def save(folder: Path, n: int, fault: str) -> tuple[str, int]:
    """What a UserError said, and how many operations there were."""
    SHIM.fail_at(os.fsencode(folder), ctypes.c_long(n), FAULTS[fault])
    said = ""
    try:
        with answered(), Saving() as saves:
            saves.save(Checkpoints(folder, keep=2), 3, tree(3), {})
    except UserError as error:
        said = str(error)
    except (Stopped, KeyboardInterrupt):
        said = STOPPED if {path.suffix for path in folder.iterdir()} == {""} else "half written"
    return said, SHIM.operations()


def restore(folder: Path) -> int:
    """The newest checkpoint, which must be as it was saved; then the save is done again."""
    store = Checkpoints(folder, keep=2)
    restored = store.restore(tree(0))
    assert tree_hash(restored.tree) == tree_hash(tree(restored.number))
    store.save(3, tree(3), {})
    assert tree_hash(store.restore(tree(0)).tree) == tree_hash(tree(3))
    assert store.numbers() == [2, 3]
    return restored.number


def apart(work: Callable[..., Any], *arguments: Any) -> tuple[int, Any]:
    """Exit code and result of a function, or its exception as text, in a process of its own."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        logging.disable()
        try:
            result = work(*arguments)
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        os.write(theirs, json.dumps(result).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as file:
        said = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), json.loads(said or "null")


def outcome(n: int, fault: str, code: int, saved: Any, number: Any) -> str:
    if number not in (2, 3):
        return "wrong"
    if fault == "killed" and code == KILLED:
        return f"checkpoint {number} restored"
    if code or not isinstance(saved, list):
        return "wrong"
    line, count = saved
    if fault in SIGNALS and n <= count:
        return f"stopped, checkpoint {number} restored" if line == STOPPED else "wrong"
    if not line:  # the fault was mended, or there was none
        return "saved" if number == 3 else "wrong"
    refused = line.startswith("can't write ") and "\n" not in line
    return f"one line, checkpoint {number} restored" if refused else "wrong"


def main(place: Path, n: int, stride: int) -> None:
    begun, folder = place / "begun", place / "work"
    apart(begin, begun)
    while True:
        for fault in FAULTS:
            shutil.copytree(begun, folder)
            code, saved = apart(save, folder, n, fault)
            _, number = apart(restore, folder)
            found = {"n": n, "fault": fault, "code": code, "saved": saved, "restored": number}
            print(json.dumps({**found, "outcome": outcome(n, fault, code, saved, number)}))
            shutil.rmtree(folder)
            if fault == "killed" and code != KILLED:  # there were fewer operations
                return
        n += stride


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
