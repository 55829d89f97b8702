"""MNIST, Fashion-MNIST and EMNIST from their idx files, plain or gzipped.

An idx file is a big-endian header (magic 0x00000803 for images, 0x00000801 for labels; count; rows
and columns) and then one byte a pixel or label. A file that is not exactly as long as its header
says is an error. The labels may be absent.
"""

import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from scoremle.bounded import MAX_FILE, check_size
from scoremle.data.archive import Source, read_start
from scoremle.data.readers.base import Chunk, Options, Reading
from scoremle.data.readers.fits import fitted
from scoremle.errors import UserError, by
from scoremle.files import inside

IMAGES, LABELS = 0x803, 0x801
# Split -> how its files begin, MNIST's way and EMNIST's.
SPLITS = {"train": ("train",), "test": ("t10k", "test")}


def read_idx(path: Path, options: Options, *, transposed: bool = False) -> Reading:
    """A folder with train-images-idx3-ubyte[.gz], t10k-images-idx3-ubyte[.gz], and labels.

    ``transposed``: its images are stored on their side, as EMNIST's are, and set upright.
    """
    splits = {split: _split(path, split) for split in SPLITS}
    shapes = [images.shape[1:3] for images, _ in splits.values()]
    if shapes[0] != shapes[1]:
        (a, b), (c, d) = shapes
        raise UserError(f"{path}: training images are {a}x{b}, test images {c}x{d}")

    facts = {"orientation": "transposed, which sets EMNIST upright"} if transposed else {}
    sha256 = partial(Source(path).hash, lambda name: "idx" in name)
    return Reading(_chunks(splits, options, transposed), sha256, facts=facts)


def _chunks(
    splits: dict[str, tuple[np.ndarray, np.ndarray | None]], options: Options, transposed: bool
) -> Iterator[Chunk]:
    for number, (split, (images, labels)) in enumerate(splits.items(), 1):
        upright = images.swapaxes(1, 2) if transposed else images
        yield Chunk(fitted(upright, options), split, number / len(splits), labels)


def _split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    of_images = _find(folder, split, "images-idx3-ubyte")
    file = _find(folder, split, "labels-idx1-ubyte")
    if of_images is None:
        name = f"{SPLITS[split][0]}-images-idx3-ubyte"
        raise UserError(f"neither {name} nor {name}.gz in {folder}")
    images = read_idx_images(of_images)
    if file is None:
        return images, None
    labels = _content(file, LABELS)
    if len(labels) != len(images):
        raise UserError(
            f"{file}: {len(labels)} labels, but there are {len(images)} images; fetch it again"
        )
    return images, labels.astype(int)


def _find(folder: Path, split: str, ending: str) -> Path | None:
    found = {
        file
        for start in SPLITS[split]
        for suffix in ("", ".gz")
        for pattern in (f"{start}-{ending}{suffix}", f"*-{start}-{ending}{suffix}")
        for file in (folder.glob(pattern) if folder.is_dir() else ())
        if file.is_file()
    }
    # The same file, plain and gzipped: the plain one.
    names = {file for file in found if file.suffix != ".gz" or file.with_suffix("") not in found}
    if len(names) > 1:
        listing = ", ".join(sorted(file.name for file in names))
        raise UserError(f"{folder} holds several sets ({listing}): keep one in a folder")
    return inside(folder, names.pop().name) if names else None


def read_idx_images(file: Path) -> np.ndarray:
    """The images of one idx file, uint8 [n h w 1]; a name ending in .gz is decompressed."""
    return _content(file, IMAGES)[..., None]


def _content(file: Path, magic: int) -> np.ndarray:
    """The array in an idx file with this magic number, whose last byte counts its axes."""
    what = "images" if magic == IMAGES else "labels"
    header = struct.Struct(f">{1 + (magic & 0xFF)}I")
    start = read_start(file, header.size)
    if len(start) < header.size:
        raise UserError(f"{file}: truncated within its header; fetch the file again")
    found, *shape = header.unpack(start)
    if found != magic:
        raise UserError(
            f"{file}: not an idx file of {what}: its magic number is 0x{found:08x},"
            f" not 0x{magic:08x}"
        )
    expected = header.size + int(np.prod(shape, dtype=object))
    # One byte more than it should hold: enough to see that it is too long, however long it is.
    check_size(file, expected, MAX_FILE)
    content = read_start(file, expected + 1)
    if len(content) != expected or 0 in shape:
        state = "truncated" if len(content) < expected else "inconsistent"
        holds = f"{len(content)}" if len(content) <= expected else "more"
        size = f" of {by(shape[1:])}" * (len(shape) > 1)
        raise UserError(
            f"{file}: {state}: its header promises {shape[0]} {what}{size}, {expected} bytes,"
            f" but it holds {holds}; fetch the file again"
        )
    return np.frombuffer(content, np.uint8, offset=header.size).reshape(shape)
