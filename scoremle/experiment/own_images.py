"""One's own images, as a model takes them: pictures of any kind, or arrays.

Each file that can't be taken is listed with its reason, and refused or left out; each change is
printed.
"""

import logging
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8

from scoremle.data import Options
from scoremle.data.readers.arrays import read_array_files
from scoremle.data.readers.base import ImageReport, in_levels
from scoremle.data.readers.decoding import IMAGE_FORMATS
from scoremle.data.readers.pictures import UNKNOWN, decode_folder
from scoremle.errors import UserError, as_flag, by, in_a_line, named_as
from scoremle.progress import progress
from scoremle.terminal import say

__all__ = ["are_arrays", "images_of_arrays", "read_images", "refuse"]

logger = logging.getLogger(__name__)

ARRAYS = (".npy", ".npz")
SKIP = "--skip-bad continues without such files"
FIT = "--fit=crop, resize or pad where it is the size"


def are_arrays(path: Path) -> bool:
    """Whether a place is a file of arrays, by its name.

    Args:
        path: of arrays or of pictures.
    """
    return path.suffix.lower() in ARRAYS


def read_images(
    path: Path,
    shape: tuple[int, int, int],
    levels: int,
    *,
    fit: str = "",
    skip_bad: bool = False,
    remedy: str = "",
    written: Collection[Path] = (),
) -> tuple[list[ImageReport], Integer[np.ndarray, "n h w c"]]:
    """Reads images; returns a report of each, and the pixels of those that can be taken.

    Args:
        path: of pictures, or of arrays.
        shape: of the model's images.
        levels: of the model's images.
        fit: how pictures of other sizes get there; "": they are refused.
        skip_bad: goes on without what can't be taken.
        remedy: what to do where an image can't be taken; "": to give --skip-bad, or --fit.
        written: files of the command itself, which may lie among the pictures.

    Raises UserError, after all reasons are listed, if an image can't be taken and is not skipped.
    """
    if are_arrays(path):
        return images_of_arrays(path, shape, levels, fit=fit)
    with progress("reading", 1.0) as advance:
        reports, hidden = decode_folder(path, shape, fit, advance, written)
    if hidden:
        say(f"hidden files, which are not looked at: {hidden}")
    bad = [(report.name, report.reason) for report in reports if report.pixels is None]
    if any(reason == UNKNOWN for _, reason in bad):
        say(f"pictures that are read: {IMAGE_FORMATS}")
    if arrays := [name for name, _ in bad if are_arrays(Path(name))]:
        say(f"arrays are read from one file: give {path / arrays[0]}")
    of_size = any(reason.endswith(f", not {shape[0]}x{shape[1]}") for _, reason in bad)
    flags = ", or ".join(
        [SKIP] * (len(bad) < len(reports)) + [FIT] * (of_size and not fit)
    )  # fmt: skip
    refuse(path, bad, len(reports), skip_bad, remedy or flags)
    if len(bad) == len(reports):
        raise UserError(f"{path} holds no picture that can be used")
    changes = Counter(change for report in reports for change in report.changes)
    for what, count in changes.items():
        say(f"{count} of {len(reports) - len(bad)} pictures: {what}")
    if levels != 256:
        say(f"their 256 grey levels become the model's {levels}")
    pixels = [report.pixels for report in reports if report.pixels is not None]
    return reports, in_levels(np.stack(pixels), levels)


def refuse(
    path: Path, bad: list[tuple[str, str]], total: int, skip_bad: bool, remedy: str = SKIP
) -> None:
    """Lists the names of what can't be used, each with its reason; unless skipped, UserError.

    Args:
        path: where they are.
        bad: their names and reasons.
        total: how many files there are.
        skip_bad: goes on.
        remedy: what to do if not; "": nothing.
    """
    if not bad:
        return
    name, first = bad[0]
    if len(bad) > 1 or skip_bad:
        first = f"{len(bad)} of {total} files can't be used"
        for each, reason in bad:
            logger.warning("%s: %s", in_a_line(each), reason)
        first += ", for the reasons above"
    elif name != path.name:
        first = f"{name}: {first}"
    if not skip_bad:
        raise UserError(f"{path}: {first}" + f"; {remedy}" * bool(remedy))


def images_of_arrays(
    path: Path, shape: tuple[int, int, int] | None, levels: int, *, fit: str = ""
) -> tuple[list[ImageReport], UInt8[np.ndarray, "n h w c"]]:
    """Reads images from arrays, by their numbers; those of several splits one after the other.

    Args:
        path: of a .npy or .npz.
        shape: of all images; None: that of the first.
        levels: of grey.
        fit: how pictures of other sizes get there, which is not for arrays.

    Raises UserError for what are no such images.
    """
    with named_as(as_flag, ["fit"]):
        reading = read_array_files(path, Options(fit=fit))
    if reading.levels not in (None, levels):
        raise UserError(
            f"{path} has images of {reading.levels} grey levels, and the model is of {levels}"
        )
    chunks = [chunk for chunk in reading.chunks if len(chunk.images)]  # one of each split
    if not chunks:
        raise UserError(f"{path}: no images in it")
    names = [str(i) for i in range(len(chunks[0].images))]
    if len(chunks) > 1:
        words = ", ".join(f"{len(chunk.images)} of {chunk.split}" for chunk in chunks)
        say(f"{path} holds several splits, which are taken one after the other: {words}")
        names = [f"{chunk.split} {i}" for chunk in chunks for i in range(len(chunk.images))]
    for chunk in chunks:
        own, wanted = chunk.images.shape[1:], shape or chunks[0].images.shape[1:]
        if own != wanted:
            raise UserError(f"{path} has images of {by(own)}, where {by(wanted)} is wanted")
    images = np.concatenate([chunk.images for chunk in chunks])
    if images.max() >= levels:
        raise UserError(
            f"{path} has grey values to {images.max()}, and the model takes 0 to {levels - 1}: of"
            f" 256 grey levels, save (array * ({levels} / 256)).astype(np.uint8)"
        )
    return [ImageReport(name, image) for name, image in zip(names, images, strict=True)], images
