"""The user's own encoders: ``FILE.py:function``, which makes vectors of images."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from scoremle.bounded import MAX_TEXT
from scoremle.core.arguments import as_array, shown
from scoremle.errors import UserError
from scoremle.experiment.own_code import called, is_own
from scoremle.files import named, sha256_of

__all__ = ["encoded", "file_hash"]


def file_hash(place: str) -> str:
    """SHA-256 of the file of an encoder, or of another function.

    Args:
        place: ``FILE.py:function``.

    Raises UserError for a name of another form, and where there is no such file.
    """
    if not is_own(place):
        raise UserError(f"{place} is not a function of a file: name it FILE.py:function")
    return sha256_of(named(_file(place)), MAX_TEXT)


def encoded(
    place: str, sha256: str, images: UInt8[np.ndarray, "n h w c"]
) -> Float[np.ndarray, "n d"]:
    """Vectors of images by an encoder.

    Args:
        place: ``FILE.py:function``, whose file is Python, and is run.
        sha256: of the file.
        images: uint8, channels last.

    Raises UserError for another file, for a mistake in it, and for what are not vectors of reals.
    """
    if file_hash(place) != sha256:
        raise UserError(f"{_file(place)} is not as it was when the detector was fitted: fit anew")
    found = as_array(called(place, images), f"what {place} gives")
    if found.shape[:1] != (len(images),) or found.ndim != 2 or found.dtype.kind != "f":
        raise UserError(f"{place} must give reals [{len(images)} d], not {shown(found)}")
    return np.asarray(found, np.float32)


def _file(place: str) -> Path:
    return Path(place.rpartition(":")[0])
