"""Patches of photographs: all disjoint squares of a grid that is centred on each.

Patches of one photograph are alike, so a random split would test on what was trained on. The split
is by photograph: ordered by the hash of their files, the first ones (the stated fraction, at least
one) are for testing.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from scoremle.bounded import MAX_PICTURE
from scoremle.data.archive import Source
from scoremle.data.readers.base import NO_IMAGES, Chunk, ImageReport, Options, Reading
from scoremle.data.readers.decoding import decode_image, is_picture
from scoremle.data.readers.pictures import LEFT_OUT
from scoremle.errors import UserError

SIZE = 32


def read_photos(path: Path, options: Options) -> Reading:
    """A folder, zip or tar of photographs; patches of ``size`` (32 if 0)."""
    source = Source(path)
    return Reading(_chunks(source, options), source.sha256)


def _chunks(source: Source, options: Options) -> Iterator[Chunk]:
    # The split must be known before the first patch: the photographs are read twice.
    first = Source(source.path).files(is_picture, MAX_PICTURE)
    hashes = {_hash(content) for _, content in first}
    if len(hashes) < 2:
        raise UserError(
            f"{source.path}: {len(hashes)} different photographs; it takes two or more, since some"
            " are kept for testing"
        )
    count = min(len(hashes) - 1, max(1, round(options.test_fraction * len(hashes))))
    test = set(sorted(hashes)[:count])
    size = options.size or SIZE
    channels = 0
    photographs = {"train": 0, "test": 0}
    for name, content in source.files(is_picture, MAX_PICTURE):
        split = "test" if _hash(content) in test else "train"
        report = decode_image(name, content, (0, 0, options.channels))
        found = NO_IMAGES if report.pixels is None else patches(report.pixels, size)
        if not len(found):
            reason = report.reason or f"it is smaller than a patch of {size}x{size}"
            yield Chunk(NO_IMAGES, split, source.done, unusable=[ImageReport(name, reason=reason)])
            continue
        channels = channels or found.shape[3]
        if found.shape[3] != channels:
            raise UserError(
                f"{source.path}: {name} has {found.shape[3]} channels, others {channels}; state"
                " 1 or 3 channels"
            )
        photographs[split] += 1
        yield Chunk(found, split, source.done, [name] * len(found), notes=Counter(report.changes))
    notes = {f"photographs for {split}ing": n for split, n in photographs.items()}
    notes |= {LEFT_OUT: source.left_out} if source.left_out else {}
    yield Chunk(NO_IMAGES, None, source.done, notes=notes)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def patches(pixels: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "n size size c"]:
    """The whole squares of the centred grid, row by row."""
    rows, columns = pixels.shape[0] // size, pixels.shape[1] // size
    top, left = ((n % size) // 2 for n in pixels.shape[:2])
    grid = pixels[top : top + rows * size, left : left + columns * size]
    grid = grid.reshape(rows, size, columns, size, pixels.shape[2]).swapaxes(1, 2)
    return grid.reshape(rows * columns, size, size, pixels.shape[2])
