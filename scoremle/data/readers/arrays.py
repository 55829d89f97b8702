"""Arrays of images: a .npy, a .npz, or a folder with train.npy and test.npy.

An array is uint8, [n h w] or [n h w c] with 1 or 3 channels. A .npz holds ``train`` and ``test``,
or one array to be divided; ``train_labels``, ``test_labels`` or ``labels`` may go with them, and
``levels`` is the number of grey levels if not 256. Of samples with their log p the ``integers``
are taken.
"""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from scoremle.bounded import MAX_ARRAYS, MAX_FILE, File, npy_header
from scoremle.bounded import read_arrays as arrays_of
from scoremle.core.pixels import as_integers
from scoremle.data.archive import Source, listing
from scoremle.data.readers.base import Chunk, Options, Reading, as_labels
from scoremle.errors import UserError, by, damaged
from scoremle.files import named, opened

__all__ = ["load_npy", "read_array_files"]

SPLITS = ("train", "test", "val")
INTEGERS = "integers"
NO_ARRAY = "can't be read as an array"


def read_array_files(path: Path, options: Options) -> Reading:
    """The images of a .npy or .npz, or of the .npy files of a folder, as they are.

    Args:
        path: of the file or the folder.
        options: ways to make images of them.

    Raises UserError for options that arrays don't have, and for arrays of no images.
    """
    if options.fit:
        raise UserError(f"{path}: arrays are taken as they are; fit={options.fit} is for pictures")
    if path.suffix.lower() == ".npz":
        with opened(named(path), MAX_FILE) as file:
            arrays = load_npz(file, str(path))
    else:
        files = {Path(name): file for name, file in listing(path).items()}
        arrays = {
            name.stem: load_npy(file)
            for name, file in files.items()
            if name.suffix.lower() == ".npy" and len(name.parts) == 1
        }  # fmt: skip
    levels = _levels(arrays.pop("levels"), path) if "levels" in arrays else None
    source = Source(path)
    of_folder = partial(source.hash, lambda name: name.lower().endswith(".npy"))
    sha256 = of_folder if path.is_dir() else source.sha256
    return Reading(_chunks(path, arrays, options), sha256, levels)


def _levels(stated: np.ndarray, path: Path) -> int:
    if stated.ndim or stated.dtype.kind not in "iu" or not 2 <= stated <= 256:
        shown = " ".join(str(stated).split())[:40]
        raise UserError(f"{path}: levels is {shown}, but must be one whole number from 2 to 256")
    return int(stated)


def _chunks(path: Path, arrays: Mapping[str, np.ndarray], options: Options) -> Iterator[Chunk]:
    labels = {name: a for name, a in arrays.items() if name.endswith("labels")}
    images = {name: a for name, a in arrays.items() if name not in labels}
    parts: dict[str | None, np.ndarray] = {s: images[s] for s in SPLITS if s in images}
    if not parts:
        images = {INTEGERS: images[INTEGERS]} if INTEGERS in images else images
        if len(images) != 1:
            raise UserError(
                f"{path} holds the arrays {', '.join(images) or 'of nothing'}: name them train"
                " and test, or give one alone"
            )
        parts = {None: next(iter(images.values()))}
    for number, (split, part) in enumerate(parts.items(), 1):
        checked = check_images(part, f"{path}: {split or 'the array'}")
        _check_options(checked, options, path)
        of_part = labels.get(f"{split}_labels" if split else "labels")
        if of_part is not None:
            of_part = as_labels(of_part, len(checked), str(path))
        yield Chunk(checked, split, number / len(parts), of_part)


def _check_options(images: np.ndarray, options: Options, path: Path) -> None:
    height, width, channels = images.shape[1:]
    size = options.size or height
    if (height, width) != (size, options.size or width) or options.channels not in (0, channels):
        raise UserError(
            f"{path}: arrays are taken as they are, and its images are {by(images.shape[1:])}"
        )


def check_images(array: np.ndarray, where: str) -> np.ndarray:
    """Returns the array as uint8 [n h w c], or raises a UserError on how to make it so."""
    if array.dtype != np.uint8:
        raise UserError(f"{where} is {array.dtype}, not uint8{_advice(array)}")
    if array.ndim == 3 and array.shape[2] in (1, 3):
        raise UserError(
            f"{where} has shape {array.shape}: if it is one image, save array[None]; if it is"
            f" {len(array)} of {by(array.shape[1:])} pixels, save array[..., None]"
        )
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3) or 0 in array.shape[1:]:
        first = array.ndim == 4 and array.shape[1] in (1, 3)
        hint = "; its channels come first: save array.transpose(0, 2, 3, 1)" if first else ""
        raise UserError(
            f"{where} has shape {array.shape}, not (n, height, width) or"
            f" (n, height, width, 1 or 3){hint}"
        )
    return array


def _advice(array: np.ndarray) -> str:
    if array.dtype.kind not in "iuf" or not array.size:
        return ": save whole numbers from 0 to 255 as uint8"
    if not (finite := np.isfinite(array)).all():
        place = np.argwhere(~finite)[0]
        value = array[tuple(place)]
        return f", and is {value} at {place.tolist()}: leave that image out, or give it a number"
    made = as_integers(array)
    remedy = f"save {made}" if made else "bring it to 0..255 and save it as uint8"
    return f" (from {array.min():g} to {array.max():g}): {remedy}"


def load_npy(file: Path) -> np.ndarray:
    """A .npy, mapped and not read. Raises UserError for one that is damaged.

    Args:
        file: its path.
    """
    with damaged(file, NO_ARRAY, "; save it again"):
        return map_npy(file)


def map_npy(file: Path) -> np.ndarray:
    """A .npy, mapped and not read; what is wrong with it may raise any exception."""
    with opened(file, MAX_ARRAYS) as stream:
        return np.memmap(stream, mode="r", **npy_header(stream, os.fstat(stream.fileno()).st_size))


def load_npz(file: File, where: str) -> dict[str, np.ndarray]:
    """Loads all arrays of a .npz. Pickled objects and zip bombs are refused."""
    with damaged(where, NO_ARRAY, "; save it again"):
        return arrays_of(file, where)
