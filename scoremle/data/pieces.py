"""Images of more files than one machine reads: in pieces, each image with an index of its own.

A piece is read by one worker, in any order among the others. An index of 64 bits is given before
anything is left out: to pictures their place in the list of a folder's files; to images in
archives, arrays and parquet files the place of the file in that list, in the upper 32 bits, and
the row in it, in the lower 32. So an image has the same index however many workers read, and
in a single file the index is the row.
"""

from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from scoremle.bounded import MAX_FILE, MAX_PICTURE
from scoremle.data.archive import Source, is_archive, is_hidden, listing
from scoremle.data.readers.arrays import check_images, load_npy
from scoremle.data.readers.base import ImageReport, in_levels
from scoremle.data.readers.decoding import decode_image, is_picture
from scoremle.data.readers.parquet import count_rows, is_parquet, parquet_rows
from scoremle.errors import UserError, by
from scoremle.files import inside, named, read_bytes

__all__ = ["MOST_ROWS", "ImageKind", "Piece", "piece_images", "pieces_of"]

PICTURES, ARCHIVES = "pictures", "archives of pictures"
ARRAYS, PARQUET = "arrays (.npy)", "parquet files"
# Pictures, or rows of an array, in a piece.
RUN, ROWS = 256, 4096
MOST_ROWS = 1 << 32


@dataclass(frozen=True)
class Piece:
    """Some images of a source: files of a folder; of an array, those from row ``start`` of one.

    ``first`` is the index of the first, ``count`` how many they are, as far as is known before an
    archive is read.

    Args:
        kind: pictures, an archive of pictures, or arrays.
        folder: where the files are.
        files: their names in it.
        first: the index of the first image.
        count: how many images there are; None if it is not known yet.
        start: the first row, of an array.
    """

    kind: str
    folder: Path
    files: tuple[str, ...]
    first: int
    count: int | None
    start: int = 0


class ImageKind(NamedTuple):
    """Shape of a model's images (height, width, channels), and their number of grey levels.

    Args:
        shape: (height, width, channels).
        levels: of grey.
    """

    shape: tuple[int, int, int]
    levels: int = 256


def pieces_of(path: Path) -> list[Piece]:
    """The pieces of a file, or of a folder that holds files of one kind.

    Args:
        path: of the source.

    Raises UserError for a folder of several kinds, and for one of none.
    """
    path = named(path)
    folder, files = path if path.is_dir() else path.parent, listing(path)
    kinds = {file: kind for file in files if not is_hidden(file) and (kind := _kind(file))}
    counts = Counter(kinds.values())
    if len(counts) != 1:
        found = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none of them"
        raise UserError(
            f"{path} must hold {PICTURES}, {ARCHIVES}, {ARRAYS} or {PARQUET}, all of one kind; it"
            f" holds {found}"
        )
    (kind,), names = counts, list(kinds)
    if kind == PICTURES:
        runs = [(i, tuple(names[i : i + RUN])) for i in range(0, len(names), RUN)]
        return [Piece(kind, folder, run, first, len(run)) for first, run in runs]
    return [
        piece
        for number, file in enumerate(names)
        for piece in _of_file(kind, folder, file, number * MOST_ROWS)
    ]


def _of_file(kind: str, folder: Path, file: str, first: int) -> Iterator[Piece]:
    if kind == ARRAYS:
        rows = len(_array(inside(folder, file)))
        for start in range(0, rows, ROWS):
            yield Piece(kind, folder, (file,), first + start, min(ROWS, rows - start), start)
    else:
        known = count_rows(inside(folder, file)) if kind == PARQUET else None
        yield Piece(kind, folder, (file,), first, known)


def _kind(file: str) -> str:
    if is_picture(file):
        return PICTURES
    if is_parquet(file):
        return PARQUET
    return ARCHIVES if is_archive(Path(file)) else ARRAYS * file.lower().endswith(".npy")


def piece_images(
    piece: Piece, kind: ImageKind, fit: str = "", without: Container[int] = ()
) -> Iterator[tuple[int, ImageReport]]:
    """Indices and reports of the images of a piece, but for some, as a model takes them.

    Args:
        piece: where they are.
        kind: of the model's images.
        fit: how pictures of other sizes get there; "": they don't.
        without: indices.

    Raises UserError for arrays of another shape, and for archives and files that are damaged.
    """
    for index, (name, content) in enumerate(_contents(piece, kind), piece.first):
        if index in without:
            continue
        if isinstance(content, np.ndarray):
            yield index, ImageReport(name, content)
            continue
        try:
            content = read_bytes(content, MAX_PICTURE) if isinstance(content, Path) else content
            report = decode_image(name, content, kind.shape, fit)
        except UserError as error:  # too large, or gone: the others may do
            report = ImageReport(name, reason=str(error))
        if report.pixels is not None:
            report = report._replace(pixels=in_levels(report.pixels, kind.levels))
        yield index, report


def _contents(piece: Piece, kind: ImageKind) -> Iterator[tuple[str, Path | bytes | np.ndarray]]:
    """Names of images, and their files, contents or pixels, in order."""
    if piece.kind == PICTURES:
        yield from ((file, inside(piece.folder, file)) for file in piece.files)
        return
    (file,) = piece.files
    where = inside(piece.folder, file)
    if piece.kind == ARCHIVES:
        members = Source(where).files(is_picture, MAX_PICTURE)
        yield from ((f"{file}/{name}", content) for name, content in members)
    elif piece.kind == PARQUET:
        rows = enumerate(parquet_rows(read_bytes(where, MAX_FILE), str(where)))
        yield from ((f"{file} row {i}", content) for i, (content, _) in rows)
    else:
        images = _array(where)
        if images.shape[1:] != kind.shape:
            raise UserError(
                f"{where}: arrays are taken as they are: {by(images.shape[1:])}, not"
                f" {by(kind.shape)}"
            )
        rows = enumerate(images[piece.start :][: piece.count], piece.start)
        yield from ((f"{file} row {i}", np.asarray(pixels)) for i, pixels in rows)


def _array(file: Path) -> UInt8[np.ndarray, "n h w c"]:
    return check_images(load_npy(file), str(file))
