"""Reads hostile files in processes of little memory: ``hostile_worker.py read|fuzz ...``.

``read NAME PATH ...`` prepares each data set, or reads each file by the reader of that name, and
prints a line for each: how its process ended (0, or minus the signal), how many seconds it
computed, and what its UserError said. ``fuzz COUNT SEED PATH ...`` unpickles that
many mutations of the files, and prints how many could be read and how many were refused.
"""

import gc
import os
import random
import resource
import signal
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet  # noqa: F401  # before memory is limited
import scipy.io  # noqa: F401

from scoremle import data, published
from scoremle.data.readers.cifar import unpickle_rows
from scoremle.data.readers.pictures import decode_folder
from scoremle.data.unpickle import unpickle
from scoremle.errors import UserError
from scoremle.published import pytorch, safetensors

# On top of what the process has. No bomb may need it.
MEMORY = 400 << 20
# Of computing, however many processes share the machine.
SECONDS = 60


def limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)


def pictures(path: Path) -> None:
    """Raises UserError for the first that can't be taken."""
    reports, _ = decode_folder(path, (8, 8, 3), "resize", lambda done: None)
    for report in reports:
        if report.pixels is None:
            raise UserError(f"{report.name}: {report.reason}")


# Of files that are not data sets.
READERS = {
    "pictures": pictures,
    "parameters of PyTorch": pytorch.tensors,
    "parameters": lambda path: [np.array(array) for array in safetensors.read(path).values()],
    "a training state": published.read,
}


def read(name: str, path: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            if name in READERS:
                READERS[name](Path(path))
            else:
                options = data.Options(size=64) if name == "celeba" else data.Options()
                data.DATASETS[name].prepare(Path(path), options, Path(folder) / "prepared")
            text = "read"
        except UserError as error:
            text = str(error)
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
    sys.stdout.write(ascii(text)[1:-1])


def read_all(arguments: list[str]) -> None:
    for name, path in zip(arguments[::2], arguments[1::2], strict=True):
        sys.stdout.flush()
        child = os.fork()
        if not child:
            limit()
            read(name, path)
            sys.stdout.flush()
            os._exit(0)
        _, status, used = os.wait4(child, 0)
        seconds = used.ru_utime + used.ru_stime
        print(f"\t{seconds:.1f}\t{os.waitstatus_to_exitcode(status)}")


# What mutations put in: commands, and the texts that types are made of.
PIECES = [bytes([i]) for i in b"()}]0123befghijlopqrstuVXBCTUNRLKMJGQSI\x81\x85\x8c\x93\x94\x96"]
PIECES += [b"O8", b"V8", b"|", b">", b"i8", b"K\x00\x85", b"C\x01f", b"\xff" * 4]


def mutated(content: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        start, other = draw.randrange(len(content)), draw.randrange(len(content))
        pieces = (draw.choice(PIECES), content[other : other + 30], draw.randbytes(1 + other % 4))
        piece = draw.choice(pieces)
        # In the place of as many bytes, of none, or of some.
        stop = start + draw.choice((len(piece), len(piece), 0, draw.randrange(30)))
        content = content[:start] + piece + content[stop:]
    return content


def fuzz(count: int, seed: int, paths: list[str]) -> None:
    limit()
    contents = [Path(path).read_bytes() for path in paths]
    draw = random.Random(seed)
    ended = {"read": 0, "refused": 0}
    for _ in range(count):
        content = mutated(draw.choice(contents), draw)
        for reads in (unpickle, unpickle_rows):
            try:
                touch(reads(content, "here"))
                ended["read"] += 1
            except UserError as error:
                assert "\n" not in str(error) and str(error).startswith("here: "), error
                ended["refused"] += 1
    print(ended["read"], ended["refused"])


def touch(found: object) -> None:
    """Reads every number of every array."""
    values = found.values() if isinstance(found, dict) else found
    for value in values if isinstance(values, Iterable) else ():
        if isinstance(value, np.ndarray):
            value.tolist()


if __name__ == "__main__":
    gc.freeze()  # of what is imported nothing is garbage
    if sys.argv[1] == "read":
        read_all(sys.argv[2:])
    else:
        fuzz(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
