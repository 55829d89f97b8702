"""SVHN in format 2: train_32x32.mat and test_32x32.mat with X [32 32 3 n] and y [n 1].

The files are known by their published SHA-256: what others wrote is never given to scipy's reader,
which trusts all sizes in a file. The digit 0 has the label 10 in the files and 0 here. The extra
images are not read.
"""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from posixpath import basename

from scoremle.bounded import MAX_BATCH
from scoremle.data.archive import Source
from scoremle.data.fetch import ORIGINS
from scoremle.data.readers.base import Chunk, Options, Reading
from scoremle.errors import UserError


def read_svhn(path: Path, options: Options) -> Reading:
    source = Source(path)
    return Reading(_chunks(source), source.sha256)


def _chunks(source: Source) -> Iterator[Chunk]:
    from scipy.io import loadmat

    published = ORIGINS["svhn"].files
    missing = set(published)
    for name, content in source.files(lambda name: basename(name) in published, MAX_BATCH):
        file = basename(name)
        if file not in missing:
            raise UserError(f"{source.path}: {file} is in it twice; remove {name}")
        missing.remove(file)
        if hashlib.sha256(content).hexdigest() != published[file][1]:
            raise UserError(
                f"{source.path}: {name} is not the published file, since its SHA-256 differs;"
                " fetch it again"
            )
        found = loadmat(io.BytesIO(content), variable_names=["X", "y"])
        images, labels = found["X"].transpose(3, 0, 1, 2), found["y"].ravel() % 10
        yield Chunk(images, file.split("_")[0], source.done, labels)
    if missing:
        raise UserError(f"{source.path}: no {', '.join(sorted(missing))} in it")
