"""Pictures of a folder that nobody has tidied: each as a model takes it, or why it can't be.

Every file has a line of its own, also one that is no picture. One convention holds for what must
be changed: it is done in the one usual way, and it is said of each picture. Another size alone is
refused, since no way to fit it is the usual one: ``crop``, ``resize`` or ``pad`` must be named.
"""

import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from scoremle.bounded import MAX_PICTURE
from scoremle.data.archive import Source
from scoremle.data.readers.base import UnusableImage
from scoremle.data.readers.pictures import decoded, in_mode, is_animated, smallest_alpha, strips

__all__ = [
    "ANY_FITS", "KINDS", "UNKNOWN", "Look", "as_taken", "in_levels", "is_heic", "is_known",
    "look_through",
]  # fmt: skip

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
HEIC = (".heic", ".heif")
NEEDS_HEIC = "HEIC needs the extra: pip install 'scoremle[heic]'"
KINDS = "PNG, JPEG, WebP, BMP, GIF, TIFF; HEIC with the extra heic"
UNKNOWN = "its name does not end as that of a picture"
BITS_PER_SAMPLE = 258  # a tag of TIFF
OF_GREY, OF_ALPHA = ("1", "L", "LA", "La"), ("LA", "La", "PA", "RGBA", "RGBa")
USUAL = {*OF_GREY, *OF_ALPHA, "P", "RGB"}

# What is done to a picture, in the words of its row.
TURNED = "turned upright by its EXIF orientation"
FIRST_FRAME = "the first of several frames"
CUT = "cut to 8 bits a channel"
UNPALETTED = "written out of its palette"
OPAQUE = "opaque alpha left out"
ON_WHITE = "put on white where it is transparent"
OTHER_COLOURS = "made RGB of {}, without a profile of its colours"
GREY, RGB = "made grey of colours", "made RGB of grey"
CROPPED, SHRUNK, ENLARGED = "cropped to its centre", "shrunk", "enlarged"
PADDED = "padded with black"

Changes = list[str]


class Look(NamedTuple):
    """What became of a file: pixels, and how they were changed; or why there are none."""

    name: str
    pixels: UInt8[np.ndarray, "h w c"] | None = None
    changes: tuple[str, ...] = ()
    reason: str = ""


def look_through(
    path: Path, shape: tuple[int, int, int], fit: str, tell: Callable[[float], None]
) -> tuple[list[Look], int]:
    """The files of a folder or archive, or that one file; and how many hidden ones there are.

    Args:
        path: of the folder, archive or file.
        shape: height, width and channels of the pictures that are wanted.
        fit: how pictures of other sizes get there; "": they don't.
        tell: is told the share that was read.

    Raises UserError for an archive that is damaged or hostile.
    """
    source, looks = Source(path), list[Look]()

    def wanted(name: str) -> bool:
        if not is_known(name):
            looks.append(Look(name, reason=UNKNOWN))
        return is_known(name)

    def unreadable(name: str, reason: str) -> None:
        looks.append(Look(name, reason=reason))

    for name, content in source.files(wanted, MAX_PICTURE, unreadable):
        try:
            pixels, changes = as_taken(content, shape, fit, heic=is_heic(name))
            looks.append(Look(name, pixels, tuple(changes)))
        except UnusableImage as error:
            looks.append(Look(name, reason=str(error)))
        tell(source.done)
    return looks, source.hidden


def is_known(name: str) -> bool:
    """Is its ending one of those of pictures?"""
    return name.lower().endswith(SUFFIXES) or is_heic(name)


def is_heic(name: str) -> bool:
    return name.lower().endswith(HEIC)


def in_levels(pixels: UInt8[np.ndarray, "*n h w c"], levels: int) -> np.ndarray:
    """Pixels of 256 grey levels, as those of a model with so many."""
    if levels == 256:
        return pixels
    dtype = np.uint8 if levels < 256 else np.uint16
    return (pixels.astype(np.uint32) * levels // 256).astype(dtype)


def as_taken(
    content: bytes, shape: tuple[int, int, int], fit: str = "", *, heic: bool = False
) -> tuple[UInt8[np.ndarray, "h w c"], Changes]:
    """The pixels of a file in this shape, and what was done to them.

    Raises UnusableImage for a file that can't be decoded or whose numbers have no known scale, and
    for one of another size where there is no ``fit``.
    """
    if heic and not _heif():
        raise UnusableImage(NEEDS_HEIC)
    formats = (*FORMATS, "HEIF") if heic else FORMATS
    changes: Changes = []

    def note(image: Image.Image, content: bytes) -> None:
        _note(image, content, changes)

    image, turned = decoded(content, formats, note)
    changes += [TURNED] * turned
    image = _recoloured(_plain(image, changes), shape[2], changes)
    if image.size != (shape[1], shape[0]):
        if not fit:
            raise UnusableImage(f"{image.height}x{image.width}, not {shape[0]}x{shape[1]}")
        image = ANY_FITS[fit](image, (shape[1], shape[0]), changes)
    return np.asarray(image).reshape(shape), changes


@cache
def _heif() -> bool:
    """Is there what reads HEIC? Pillow knows of it from then on."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def _note(image: Image.Image, content: bytes, changes: Changes) -> None:
    """What opening a picture alone does to it: Pillow says nothing of that."""
    changes += [FIRST_FRAME] * is_animated(image)
    depth = max(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,)))
    depth = max(depth, int(image.info.get("bit_depth", 8)))
    if image.format == "PNG":
        depth = max(depth, content[24])  # of the header
    if depth > 16 or image.mode in ("I", "F"):
        raise UnusableImage("it has more than 16 bits a channel, of no known scale")
    changes += [CUT] * (depth > 8)


def _plain(image: Image.Image, changes: Changes) -> Image.Image:
    """Grey or RGB of 8 bits, without alpha."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    changes += [UNPALETTED] * (image.mode in ("P", "PA"))
    changes += [OTHER_COLOURS.format(image.mode)] * (image.mode not in USUAL)
    grey = image.mode in OF_GREY
    try:
        if image.mode in OF_ALPHA or "transparency" in image.info:
            return _on_white(image, "L" if grey else "RGB", changes)
        return in_mode(image, "L" if grey else "RGB")
    except ValueError:
        raise UnusableImage(f"its colours are {image.mode}; save it as RGB") from None


def _on_white(image: Image.Image, mode: str, changes: Changes) -> Image.Image:
    changes.append(OPAQUE if smallest_alpha(image) == 255 else ON_WHITE)
    whole, top = Image.new(mode, image.size), 0
    for part in strips(image):
        white = Image.new("RGBA", part.size, "white")
        white.alpha_composite(part.convert("RGBA"))
        whole.paste(white.convert(mode), (0, top))
        top += part.height
    return whole


def _recoloured(image: Image.Image, channels: int, changes: Changes) -> Image.Image:
    """With so many channels. Colours that are all grey lose nothing."""
    if channels == 1 and image.mode == "RGB":
        parts = map(np.asarray, strips(image))
        changes += [GREY] * (not all((part == part[..., :1]).all() for part in parts))
    changes += [RGB] * (channels == 3 and image.mode == "L")
    return in_mode(image, "L" if channels == 1 else "RGB")


# Other sizes -------------------------------------------------------------------------------------

Size = tuple[int, int]  # width and height, as Pillow has them


def _resize(image: Image.Image, size: Size, changes: Changes) -> Image.Image:
    """The largest centred part of the wanted shape, averaged down or enlarged."""
    scale = min(image.width / size[0], image.height / size[1])
    part = _centre(image, (round(size[0] * scale), round(size[1] * scale)), changes)
    return _scaled(part, size, changes)


def _crop(image: Image.Image, size: Size, changes: Changes) -> Image.Image:
    """The centre, with the pixels as they are; a smaller picture is enlarged."""
    if image.width < size[0] or image.height < size[1]:
        return _resize(image, size, changes)
    return _centre(image, size, changes)


def _pad(image: Image.Image, size: Size, changes: Changes) -> Image.Image:
    """All of it on black; a larger picture is shrunk."""
    scale = min(1.0, size[0] / image.width, size[1] / image.height)
    whole = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    inner = _scaled(image, whole, changes)
    padded = Image.new(image.mode, size)
    padded.paste(inner, ((size[0] - whole[0]) // 2, (size[1] - whole[1]) // 2))
    changes += [PADDED] * (whole != size)
    return padded


Fit = Callable[[Image.Image, Size, Changes], Image.Image]
ANY_FITS: dict[str, Fit] = {"crop": _crop, "resize": _resize, "pad": _pad}


def _centre(image: Image.Image, size: Size, changes: Changes) -> Image.Image:
    if image.size == size:
        return image
    changes.append(CROPPED)
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))


def _scaled(image: Image.Image, size: Size, changes: Changes) -> Image.Image:
    if image.size == size:
        return image
    changes.append(ENLARGED if image.width < size[0] or image.height < size[1] else SHRUNK)
    return image.resize(size, Image.Resampling.BILINEAR)
