"""A picture from the content of its file, as a model takes it: what was done to it, or why not.

One convention holds for what must be changed: it is done in the one usual way, and it is said of
each picture. Another size alone is refused, since no way to fit it is the usual one: ``crop``,
``resize`` or ``pad`` must be named.
"""

import importlib
import io
import math
import warnings
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image, ImageOps

from scoremle.bounded import MAX_PIXELS, MAX_SCANNED
from scoremle.data.readers.base import ImageReport, UnusableImage
from scoremle.data.readers.fits import ENLARGED, FITS, Changes
from scoremle.errors import by, first_line

__all__ = ["EXACT", "IMAGE_FORMATS", "is_picture"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
HEIC = (".heic", ".heif")
NEEDS_HEIC = "HEIC needs the extra: pip install 'scoremle[heic]'"
IMAGE_FORMATS = "PNG, JPEG, WebP, BMP, GIF, TIFF; HEIC with the extra heic"
EXIF_ORIENTATION = 0x0112
# How a scan of a JPEG begins: nothing else in its pixels does.
START_OF_SCAN = b"\xff\xda"
# How a TIFF may be packed. Other ways take as much memory as the file claims; of a JPEG in a TIFF
# libtiff reads a hundred scans at most.
IN_TIFF = {
    "raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "tiff_ccitt", "group3",
    "group4", "jpeg",
}  # fmt: skip
TILE = 322, 323  # tags of TIFF: width and height of a tile; a picture consists of whole tiles
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF, and a value
OF_GREY, OF_ALPHA = ("1", "L", "LA", "La"), ("LA", "La", "PA", "RGBA", "RGBa")
USUAL = {*OF_GREY, *OF_ALPHA, "P", "RGB"}
# Pixels that are converted at once.
STRIP = 1 << 22

# What is done to a picture, in the words of its row.
TURNED = "turned upright by its EXIF orientation"
FIRST_FRAME = "the first of several frames"
CUT = "cut to 8 bits a channel"
UNPALETTED = "written out of its palette"
OPAQUE = "opaque alpha left out"
ON_WHITE = "put on white where it is transparent"
OTHER_COLOURS = "made RGB of {}, without a profile of its colours"
GREY, RGB = "made grey of colours", "made RGB of grey"
# What of it leaves all colours as they were.
EXACT = {TURNED, UNPALETTED, OPAQUE, RGB}

_TOO_LARGE = f"more than {MAX_PIXELS} pixels: a decompression bomb, or to be cut first"


def is_picture(name: str) -> bool:
    """Whether a name ends as that of a picture.

    Args:
        name: of a file.
    """
    return name.lower().endswith(SUFFIXES + HEIC)


def decode_image(
    name: str, content: bytes, shape: tuple[int, int, int], fit: str = ""
) -> ImageReport:
    """The picture in a file, or why there is none.

    Args:
        name: of the file.
        content: of the file.
        shape: height, width and channels that are wanted; 0: as the picture has them.
        fit: how pictures of other sizes get there; "": they don't.
    """
    changes: Changes = []
    try:
        image = _plain(_upright(name, content, changes), changes)
        image = _recoloured(image, shape[2], changes)
        own = image.height, image.width
        wanted = shape[0] or own[0], shape[1] or own[1]
        if own != wanted:
            if not fit:
                raise UnusableImage(f"{by(own)}, not {by(wanted)}")
            image = FITS[fit](image, wanted[::-1], changes)
    except UnusableImage as error:
        return ImageReport(name, reason=str(error))
    return ImageReport(name, np.asarray(image).reshape(*wanted, -1), tuple(changes))


def not_enlarged(report: ImageReport) -> ImageReport:
    """The picture as it is, or why it can't be used where it would be enlarged, for training."""
    if ENLARGED not in report.changes:
        return report
    return ImageReport(report.name, reason="it is too small: it would be enlarged")


def _upright(name: str, content: bytes, changes: Changes) -> Image.Image:
    """The decoded picture. Raises UnusableImage for one that is damaged, or of another format."""
    formats: tuple[str, ...] = FORMATS
    if not content:
        raise UnusableImage("it is empty")
    if name.lower().endswith(HEIC):
        if not _heif():
            raise UnusableImage(NEEDS_HEIC)
        formats = (*FORMATS, "HEIF")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of a file that can be decoded
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=formats)
            _check_claims(image, content)
            _note(image, content, changes)
            # A TIFF is turned as it is loaded, and forgets it then.
            changes += [TURNED] * (image.getexif().get(EXIF_ORIENTATION) in range(2, 9))
            ImageOps.exif_transpose(image, in_place=True)  # loads it, too
            return image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UnusableImage(_TOO_LARGE) from error
    except (UnusableImage, MemoryError):
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        text = first_line(error)
        if isinstance(error, Image.UnidentifiedImageError):
            text = f"it is not {', '.join(formats[:-1])} or {formats[-1]}"
        raise UnusableImage(f"can't be decoded: {text}") from error


@cache
def _heif() -> bool:
    """Whether HEIC can be read; registers it with Pillow."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def _check_claims(image: Image.Image, content: bytes) -> None:
    """Raises UnusableImage for what would take far more memory or time than a picture does."""
    tile = (getattr(image, "tag_v2", {}).get(tag, 1) for tag in TILE)
    pixels = math.prod(-(-side // of) * of for side, of in zip(image.size, tile, strict=True))
    if pixels > MAX_PIXELS:
        raise UnusableImage(_TOO_LARGE)
    if image.format == "TIFF" and image.info["compression"] not in IN_TIFF:
        raise UnusableImage(f"a TIFF of {image.info['compression']}: save it as PNG")
    # An MPO is a JPEG of several frames.
    of_jpeg = image.format in ("JPEG", "MPO")
    if of_jpeg and content.count(START_OF_SCAN) * pixels > MAX_SCANNED:
        raise UnusableImage(f"its pixels are coded more than {MAX_SCANNED} times")


def _note(image: Image.Image, content: bytes, changes: Changes) -> None:
    """Notes what opening a picture alone does to it: Pillow says nothing of that."""
    # Frames are not counted: a small file may have a million.
    changes += [FIRST_FRAME] * getattr(image, "is_animated", False)
    depth = max(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,)))
    depth = max(depth, int(image.info.get("bit_depth", 8)))
    if image.format == "PNG":
        own = content[24]  # of the header
        depth = max(depth, own)
        _in_8_bits(image, own)
    if depth > 16 or image.mode in ("I", "F"):
        raise UnusableImage("it has more than 16 bits a channel, of no known scale")
    changes += [CUT] * (depth > 8)


def _in_8_bits(image: Image.Image, depth: int) -> None:
    """Brings the transparent value of a PNG to 8 bits, to which Pillow brings the pixels alone.

    Raises UnusableImage for one of 16 bits a channel: several colours become one in 8 bits.
    """
    if image.mode == "L" and "transparency" in image.info:
        image.info["transparency"] *= 255 // (2**depth - 1)
    if image.mode == "RGB" and depth == 16 and "transparency" in image.info:
        raise UnusableImage("a colour of 16 bits a channel is transparent: save it with 8 bits")


def _plain(image: Image.Image, changes: Changes) -> Image.Image:
    """Grey or RGB of 8 bits, without alpha."""
    if image.mode.startswith("I;16"):
        image = _cut(image)
    changes += [UNPALETTED] * (image.mode in ("P", "PA"))
    changes += [OTHER_COLOURS.format(image.mode)] * (image.mode not in USUAL)
    mode = "L" if image.mode in OF_GREY else "RGB"
    try:
        if image.mode in OF_ALPHA or "transparency" in image.info:
            return _on_white(image, mode, changes)
        return _in_mode(image, mode)
    except ValueError:
        raise UnusableImage(f"its colours are {image.mode}; save it as RGB") from None


def _cut(image: Image.Image) -> Image.Image:
    """Grey of more bits in 8, with alpha where one of its values is transparent."""
    pixels, tags = np.asarray(image), getattr(image, "tag_v2", {})
    grey = (pixels >> (tags.get(BITS_PER_SAMPLE, (16,))[0] - 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = ~grey
    if "transparency" not in image.info:
        return Image.fromarray(grey)
    alpha = (pixels != image.info["transparency"]) * np.uint8(255)
    return Image.fromarray(np.dstack([grey, alpha]))


def _on_white(image: Image.Image, mode: str, changes: Changes) -> Image.Image:
    whole, top, alpha = Image.new(mode, image.size), 0, 255
    for part in (strip.convert("RGBA") for strip in _strips(image)):
        alpha = min(alpha, np.asarray(part)[..., 3].min())
        white = Image.new("RGBA", part.size, "white")
        white.alpha_composite(part)
        whole.paste(white.convert(mode), (0, top))
        top += part.height
    changes.append(OPAQUE if alpha == 255 else ON_WHITE)
    return whole


def _recoloured(image: Image.Image, channels: int, changes: Changes) -> Image.Image:
    """The picture with so many channels; 0: as it is. Colours that are all grey lose nothing."""
    mode = {0: image.mode, 1: "L", 3: "RGB"}[channels]
    if mode == "L" and image.mode == "RGB":
        parts = map(np.asarray, _strips(image))
        changes += [GREY] * (not all((part == part[..., :1]).all() for part in parts))
    changes += [RGB] * (mode == "RGB" and image.mode == "L")
    return _in_mode(image, mode)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The picture in a mode of Pillow; itself where it is in that: Pillow would copy it."""
    return image if image.mode == mode else image.convert(mode)


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """A large picture in pieces from its top to its end: what is made of one is small."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))
