"""The stream of images that a reader of some format gives, to prepare a data set of.

A reader decodes a format and does no more. It is called with the place of the files and with
:class:`Options`, and gives a :class:`Reading`: chunks of images in a fixed order. What is the same
for every format (the split, grey levels, checks, files) is in ``prepare.py``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from scoremle.bounded import LARGEST_SIDE
from scoremle.core.arguments import check_choice, check_count, check_number
from scoremle.core.pixels import Pixels
from scoremle.errors import UserError

__all__ = ["ImageReport", "in_levels"]

# As they are kept.
LABELS = np.iinfo(np.int32)
NO_IMAGES = np.zeros((0, 1, 1, 1), np.uint8)


@dataclass(frozen=True)
class Options:
    """Options for making images of a source; 0 or "" keeps what the source has.

    Args:
        size: height and width.
        channels: 1 or 3.
        fit: "crop", "resize" or "pad" for images of other sizes.
        levels: grey levels.
        test_fraction: the share of test images, where the source has no split.
        skip_bad: whether images that can't be used are left out; else they are refused.

    Raises UserError for a size or levels below 0, other channels, another fit, and a fraction that
    is not between 0 and 1.
    """

    size: int = 0
    channels: int = 0
    fit: str = ""
    levels: int = 0
    test_fraction: float = 0.1
    skip_bad: bool = False

    def __post_init__(self) -> None:
        check_count("size", self.size, 0, LARGEST_SIDE)
        for name in ("channels", "levels"):
            check_count(name, getattr(self, name), least=0)
        check_number("test_fraction", self.test_fraction, above=0, below=1)
        if self.channels not in (0, 1, 3):
            raise UserError(f"channels must be 1 or 3, or 0 for any, not {self.channels}")
        if self.fit:
            check_choice("fit", self.fit, ("crop", "resize", "pad"))


class ImageReport(NamedTuple):
    """The report on a picture: its pixels, and how they were changed; or why there are none.

    Args:
        name: of its file.
        pixels: None if it can't be used.
        changes: what was done to it, in words.
        reason: why it can't be used.
    """

    name: str
    pixels: UInt8[np.ndarray, "h w c"] | None = None
    changes: tuple[str, ...] = ()
    reason: str = ""


class UnusableImage(Exception):
    """The image at hand can't be used; the others of its source may be."""


class Chunk(NamedTuple):
    """Some images of a source, in the order that they have there.

    ``split`` is train, test or val, or None if the source does not say; val is the test split of
    a source that has no test. ``labels`` are integers, or names that become their places in the
    sorted list of all names. ``done`` is the share of the source that was read so far.
    """

    images: UInt8[np.ndarray, "k h w c"]
    split: str | None
    done: float
    labels: Sequence[int] | Sequence[str] | np.ndarray | None = None
    unusable: Sequence[ImageReport] = ()
    notes: Mapping[str, int] = {}


@dataclass(frozen=True)
class Reading:
    """A source under way: its images, and ``sha256`` of what was read once all of them are.

    ``levels`` are those that the source states; None: it states none, and they are 256.
    """

    chunks: Iterator[Chunk]
    sha256: Callable[[], str]
    levels: int | None = None
    version: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


Reader = Callable[[Path, Options], Reading]


def as_labels(labels: Any, count: int, where: str) -> np.ndarray:
    """Labels of so many images: names, or whole numbers of 32 bits. UserError for all else."""
    found = np.asarray(labels)
    if found.ndim != 1 or found.dtype.kind not in "iubU":
        raise UserError(
            f"{where}: labels of {found.dtype}, shape {found.shape}, are neither whole numbers nor"
            " names, one for each image; save them as int32"
        )
    if len(found) != count:
        raise UserError(f"{where}: {count} images but {len(found)} labels; fetch or save it again")
    whole = found.dtype.kind in "iub"
    if whole and count and not LABELS.min <= int(found.min()) <= int(found.max()) <= LABELS.max:
        raise UserError(f"{where}: a label is beyond {LABELS.max} or below {LABELS.min}")
    return found.astype(int) if whole else found


def in_levels(pixels: UInt8[np.ndarray, "*n h w c"], levels: int, own: int = 256) -> np.ndarray:
    """Pixels of so many grey levels of their own, as those of a model with ``levels``.

    Args:
        pixels: integers below ``own``.
        levels: of the model.
        own: levels that the pixels have.
    """
    if levels == own:
        return pixels
    return (pixels.astype(np.uint32) * levels // own).astype(Pixels(levels).dtype)
