"""SVHN in format 2: train_32x32.mat and test_32x32.mat with X [32 32 3 n] and y [n 1].

The digit 0 has the label 10 in the files and 0 here. The extra images are not read.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from scoremle.data.archive import Source, check_ratio
from scoremle.data.readers.base import Chunk, Options, Reading
from scoremle.errors import UserError

__all__ = ["read_svhn"]

FILES = {"train_32x32.mat": "train", "test_32x32.mat": "test"}


def read_svhn(path: Path, options: Options) -> Reading:
    source = Source(path)
    return Reading(_chunks(source), source.sha256)


def _chunks(source: Source) -> Iterator[Chunk]:
    missing = set(FILES)
    for name, content in source.files(lambda name: name.rsplit("/", 1)[-1] in FILES):
        file = name.rsplit("/", 1)[-1]
        missing.remove(file)
        images, labels = _read(content, f"{source.path}: {name}")
        yield Chunk(images, FILES[file], source.done, labels)
    if missing:
        raise UserError(f"{source.path}: no {', '.join(sorted(missing))} in it")


def _read(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    from scipy.io import loadmat, whosmat

    try:
        # The shapes first: an array that is far larger than its file is not unpacked.
        shapes = {name: shape for name, shape, _ in whosmat(io.BytesIO(content))}
        check_ratio(where, int(np.prod([float(n) for n in shapes.get("X", ())])), len(content))
        found = loadmat(io.BytesIO(content), variable_names=["X", "y"])
    except UserError:
        raise
    except Exception as error:  # scipy raises many kinds for damaged files
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{where}: truncated or no .mat file ({text}); fetch it again") from error
    x, y = found.get("X"), found.get("y")
    if x is None or y is None or x.dtype != np.uint8 or x.shape[:3] != (32, 32, 3) or x.ndim != 4:
        raise UserError(f"{where}: lacks X, uint8 of shape (32, 32, 3, n), or y")
    if y.size != x.shape[3]:
        raise UserError(f"{where}: {x.shape[3]} images but {y.size} labels; fetch it again")
    return x.transpose(3, 0, 1, 2), y.ravel().astype(int) % 10
