"""The user's own encoders: ``FILE.py:function``, which makes vectors of images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from scoremle.bounded import MAX_TEXT
from scoremle.core.arguments import as_array, shown
from scoremle.core.outputs import OutputSums, agree, projected
from scoremle.errors import UserError
from scoremle.experiment.own_code import calls, is_own
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
    facts: Mapping[str, str], images: UInt8[np.ndarray, "n h w c"]
) -> tuple[Float[np.ndarray, "n d"], str]:
    """Vectors of images by an encoder, and numbers of its vector of a picture of noise.

    Args:
        facts: of the encoder: ``encoder``, a FILE.py:function, whose file is Python, and is run;
            ``encoder_sha256``, that of the file; and ``encoder_outputs``, these numbers when the
            detector was fitted, by which the weights show that the file reads.
        images: uint8, channels last.

    Raises UserError for another encoder, for a mistake in it, and for what are not vectors of
    reals.
    """
    place, rng = facts["encoder"], np.random.default_rng(0)
    if file_hash(place) != facts["encoder_sha256"]:
        raise UserError(f"{_file(place)} is not as it was when the detector was fitted: fit anew")
    noise = rng.integers(0, 256, (1, *images.shape[1:]), np.uint8)
    vectors, of_noise = (
        _checked(found, place, len(each))
        for found, each in zip(calls(place, (images,), (noise,)), (images, noise), strict=True)
    )
    outputs = projected(of_noise, rng)
    kept = facts.get("encoder_outputs")
    if kept is not None and not agree(outputs, _numbers(kept)):
        raise UserError(f"{place} gives other vectors than when the detector was fitted: fit anew")
    return vectors, " ".join(map(repr, outputs))


def _checked(found: Any, place: str, n: int) -> Float[np.ndarray, "n d"]:
    found = as_array(found, f"what {place} gives")
    if found.shape[:1] != (n,) or found.ndim != 2 or found.dtype.kind != "f":
        raise UserError(f"{place} must give reals [{n} d], not {shown(found)}")
    return np.asarray(found, np.float32)


def _numbers(text: str) -> OutputSums:
    """The numbers in a detector of others, which may be any text."""
    try:
        return tuple(map(float, text.split()))
    except ValueError:
        return ()


def _file(place: str) -> Path:
    return Path(place.rpartition(":")[0])
