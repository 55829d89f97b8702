"""Pictures from a folder or an archive: as a data set of one size and kind, or each for itself.

Nothing is done to the pictures of a data set that was not named. Without a size, all must be of
the first's size; with one, ``fit`` says how others get there, and none is enlarged. Likewise the
first picture's channels are those of all, unless 1 or 3 are required.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from scoremle.bounded import MAX_PICTURE
from scoremle.data.archive import Source
from scoremle.data.readers.base import NO_IMAGES, Chunk, ImageReport, Options, Reading
from scoremle.data.readers.decoding import decode_image, is_picture, not_enlarged
from scoremle.data.readers.fits import FITS
from scoremle.errors import UserError, by

__all__ = ["UNKNOWN", "decode_folder"]

# What is held in memory at once: so many pictures, or so many bytes of large ones.
CHUNK, CHUNK_BYTES = 512, 64 << 20
# A folder "valley" is not a split, but "val", "train_32x32" and "test-00000-of-00001" are.
SPLIT = re.compile(r"(train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?)(?:[^a-z].*)?")
LEFT_OUT = "files that are not pictures, left out"
UNKNOWN = "its name does not end as that of a picture"


def split_of(name: str) -> str | None:
    """The split that the parts of a name give: train, test or val, and what may follow them."""
    for part in PurePosixPath(name.lower()).parts:
        if match := SPLIT.fullmatch(part):
            return {"tr": "train", "te": "test", "va": "val"}[match[1][:2]]
    return None


class ImageDecoder:
    """Decodes pictures to arrays of one shape: the given one, or that of the first."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._first: tuple[str, tuple[int, ...]] | None = None

    def __call__(self, name: str, content: bytes) -> ImageReport:
        size, fit, channels = self._options.size, self._options.fit, self._options.channels
        side = size if fit else 0
        report = not_enlarged(decode_image(name, content, (side, side, channels), fit))
        if report.pixels is None:
            return report
        shape = report.pixels.shape
        if size and shape[:2] != (size, size):
            raise UserError(
                f"{name} is {by(shape[:2])}, not {size}x{size}; name a way to fit it:"
                f" {', '.join(FITS)}"
            )
        self._first = self._first or (name, shape)
        if shape != self._first[1]:
            other, of_other = self._first
            same = shape[:2] == of_other[:2]
            remedy = "1 or 3 channels" if same else "one size, and fit=crop or fit=resize"
            raise UserError(
                f"{name} is {_in_words(shape)} and {other} {_in_words(of_other)}; state {remedy}"
            )
        return report


def _in_words(shape: tuple[int, ...]) -> str:
    return f"{by(shape[:2])} {'grey' if shape[2] == 1 else 'RGB'}"


def read_pictures(path: Path, options: Options) -> Reading:
    """A folder, zip or tar of pictures, at any depth.

    Folders named train and test (or val) are the splits, and folders in them labels.
    """
    source = Source(path)
    return Reading(_pictures(source, options), source.sha256)


def _pictures(source: Source, options: Options) -> Iterator[Chunk]:
    decoder = ImageDecoder(options)
    files = source.files(is_picture, MAX_PICTURE)
    reports = ((*_split_and_label(name), decoder(name, content)) for name, content in files)
    yield from chunked(reports, source)
    notes = {LEFT_OUT: source.left_out} if source.left_out else {}
    yield Chunk(NO_IMAGES, None, source.done, notes=notes)


def _split_and_label(name: str) -> tuple[str | None, str]:
    """The label is the last folder, if it is not the split's."""
    folder = PurePosixPath(name).parent
    return split_of(str(folder)), "" if split_of(folder.name) else folder.name


def chunked(
    reports: Iterable[tuple[str | None, str | int, ImageReport]], source: Source
) -> Iterator[Chunk]:
    """Split, label and report of single pictures, put together to chunks."""
    rows: list[tuple[str | int, ImageReport]] = []
    size, current = 0, None
    for split, label, report in reports:
        if rows and (split != current or len(rows) >= CHUNK or size >= CHUNK_BYTES):
            yield _chunk(rows, current, source.done)
            rows, size = [], 0
        current = split
        rows.append((label, report))
        size += 0 if report.pixels is None else report.pixels.nbytes
    yield _chunk(rows, current, source.done)


def _chunk(rows: list[tuple[str | int, ImageReport]], split: str | None, done: float) -> Chunk:
    images = [report.pixels for _, report in rows if report.pixels is not None]
    labels: list = [label for label, report in rows if report.pixels is not None]
    unusable = [report for _, report in rows if report.pixels is None]
    notes = Counter(change for _, report in rows for change in report.changes)
    return Chunk(np.stack(images) if images else NO_IMAGES, split, done, labels, unusable, notes)


def decode_folder(
    path: Path,
    shape: tuple[int, int, int],
    fit: str,
    advance: Callable[[float], None],
    written: Collection[Path] = (),
) -> tuple[list[ImageReport], int]:
    """The files of a folder or archive, or that one file; and how many hidden ones there are.

    Every file has a report, also one that is not a picture.

    Args:
        path: of the folder, archive or file.
        shape: height, width and channels of the pictures that are wanted.
        fit: how pictures of other sizes get there; "": they don't.
        advance: is called with the share that was read.
        written: files of the command itself, which are left out.

    Raises UserError for an archive that is damaged or hostile.
    """
    source, reports = Source(path), list[ImageReport]()

    def unreadable(name: str, reason: str) -> None:
        reports.append(ImageReport(name, reason=reason))

    own = {os.path.relpath(os.path.realpath(file), os.path.realpath(path)) for file in written}

    def wanted(name: str) -> bool:
        if not is_picture(name) and name not in own:
            unreadable(name, UNKNOWN)
        return is_picture(name)

    for name, content in source.files(wanted, MAX_PICTURE, unreadable):
        reports.append(decode_image(name, content, shape, fit))
        advance(source.done)
    return reports, source.hidden
