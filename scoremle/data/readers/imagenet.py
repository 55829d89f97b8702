"""ImageNet at 32x32 or 64x64, in one of its two versions, which are never mixed.

*old*: PNG files (van den Oord et al., arXiv 1601.06759), the data set of the published numbers;
its authors withdrew it. *new*: batches as .npz or pickles (Chrabaszcz et al., arXiv 1707.08819),
resized in another way. Bits/dim on one say nothing about the other: the version is found from the
format, and is stored in every result.
"""

import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import basename

from scoremle.data.archive import Source
from scoremle.data.readers.arrays import load_npz
from scoremle.data.readers.base import Chunk, Options, Reading
from scoremle.data.readers.cifar import rows_and_labels, unpickle_rows
from scoremle.data.readers.decoding import is_picture
from scoremle.data.readers.pictures import ImageDecoder, chunked
from scoremle.errors import UserError

BATCH = re.compile(r"(train_data_batch_\d+|val_data)(\.npz)?")
SIZES = (32, 64)
Files = Iterator[tuple[str, bytes]]


def read_imagenet(path: Path, options: Options) -> Reading:
    """A folder with the training and the validation part, as folders or archives."""
    source = Source(path, nested=True)
    files = source.files(lambda name: is_picture(name) or _is_batch(name))
    first = next(files, None)
    if first is None:
        raise UserError(
            f"{path}: no ImageNet in it: neither PNG files (old) nor train_data_batch_* and"
            " val_data (new), as they are or in archives"
        )
    version = "new" if _is_batch(first[0]) else "old"
    checked = _of_version(itertools.chain([first], files), version, path)
    chunks = _new(checked, source) if version == "new" else _old(checked, source)
    return Reading(_of_one_size(chunks, path), source.sha256, version=version)


def _is_batch(name: str) -> bool:
    return BATCH.fullmatch(basename(name)) is not None


def _of_version(files: Files, version: str, path: Path) -> Files:
    for name, content in files:
        if (version == "new") != _is_batch(name):
            raise UserError(
                f"{path} holds both the old ImageNet (PNG files) and the new one (batches, here"
                f" {name}); they are different data sets: keep them in two folders"
            )
        yield name, content


def _split(name: str, path: Path) -> str:
    found = {"train" if part == "train" else "test" for part in re.findall("train|val", name)}
    if len(found) != 1:
        raise UserError(f"{path}: {name} is neither in a train nor in a val part")
    return found.pop()


def _new(files: Files, source: Source) -> Iterator[Chunk]:
    for name, content in files:
        where = f"{source.path}: {name}"
        if name.endswith(".npz"):
            images, labels = rows_and_labels(load_npz(io.BytesIO(content), where), where)
        else:
            images, labels = unpickle_rows(content, where)
        split = "train" if basename(name).startswith("train") else "test"
        yield Chunk(images, split, source.done, labels)


def _old(files: Files, source: Source) -> Iterator[Chunk]:
    decoder = ImageDecoder(Options(channels=3))
    reports = ((_split(name, source.path), "", decoder(name, content)) for name, content in files)
    return chunked(reports, source)


def _of_one_size(chunks: Iterator[Chunk], path: Path) -> Iterator[Chunk]:
    for chunk in chunks:
        shape = chunk.images.shape[1:]
        if len(chunk.images) and (shape[0] != shape[1] or shape[0] not in SIZES):
            raise UserError(f"{path}: images of {shape[0]}x{shape[1]}, not 32x32 or 64x64")
        yield chunk
