"""Pictures (PNG, JPEG, WebP, BMP) from a folder or an archive, made one size and kind.

Nothing is done to a picture that was not named. Without a size, all must be of the first's size;
with one, ``fit`` says how others get there: ``crop`` takes the centre, ``resize`` the largest
centred square, averaged down to size (bilinear with antialiasing). Neither enlarges. Likewise the
first picture's channels are those of all, unless 1 or 3 are asked for.
"""

import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from scoremle.bounded import MAX_PICTURE, MAX_PIXELS, MAX_SCANNED
from scoremle.data.archive import Source
from scoremle.data.readers.base import Chunk, Options, Reading, Unusable, UnusableImage
from scoremle.errors import UserError, first_line

__all__ = [
    "FITS", "Decoder", "chunked", "decoded", "fitted", "in_mode", "is_animated", "is_picture",
    "read_pictures", "smallest_alpha", "split_of", "strips",
]  # fmt: skip

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# What is held in memory at once: so many pictures, or so many bytes of large ones.
CHUNK, CHUNK_BYTES = 512, 64 << 20
# A folder "valley" is no split, but "val", "train_32x32" and "test-00000-of-00001" are.
SPLIT = re.compile(r"(train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?)(?:[^a-z].*)?")
EXIF_ORIENTATION = 0x0112
# How a scan of a JPEG begins: nothing else in its pixels does.
START_OF_SCAN = b"\xff\xda"
# How a TIFF may be packed. Other ways take as much memory as the file claims; of a JPEG in a TIFF
# libtiff reads a hundred scans at most.
IN_TIFF = {
    "raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "tiff_ccitt", "group3",
    "group4", "jpeg",
}  # fmt: skip
TILE = 322, 323  # tags of TIFF: width and height, of which the picture has whole ones
# Pixels that are converted at once.
STRIP = 1 << 22
TURNED = "turned upright by their EXIF orientation"
LEFT_OUT = "files that are no pictures, left out"
RECOLOURED = {"L": "made grey, though they had colours", "RGB": "made RGB, though they were grey"}


def is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def split_of(name: str) -> str | None:
    """What the parts of a name say of its split: train, test or val, and what may follow them."""
    for part in PurePosixPath(name.lower()).parts:
        if match := SPLIT.fullmatch(part):
            return {"tr": "train", "te": "test", "va": "val"}[match[1][:2]]
    return None


def _crop(image: Image.Image, size: int) -> Image.Image:
    left, top = (image.width - size) // 2, (image.height - size) // 2
    whole = image.size == (size, size)
    return image if whole else image.crop((left, top, left + size, top + size))


def _resize(image: Image.Image, size: int) -> Image.Image:
    square = _crop(image, min(image.size))
    return square.resize((size, size), Image.Resampling.BILINEAR)


FITS: dict[str, Callable[[Image.Image, int], Image.Image]] = {"crop": _crop, "resize": _resize}


def fitted(images: UInt8[np.ndarray, "n h w 1"], options: Options) -> UInt8[np.ndarray, "n s s 1"]:
    """Grey images of one size, brought to that of the options as pictures are."""
    shape, size = images.shape[1:3], options.size
    if not size or shape == (size, size):
        return images
    if not options.fit or min(shape) < size:
        way = "smaller" if options.fit else "not that; name a way to fit them, crop or resize"
        raise UserError(f"images of {size}x{size} are asked for, but they are {_by(shape)}: {way}")
    pictures = (FITS[options.fit](Image.fromarray(image[..., 0]), size) for image in images)
    return np.stack([np.asarray(picture) for picture in pictures])[..., None]


class Decoder:
    """Decodes pictures to arrays of one shape: that asked for, or that of the first."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._shape: tuple[int, ...] | None = None
        self._first = ""
        self.notes: Counter[str] = Counter()

    def __call__(self, name: str, content: bytes) -> UInt8[np.ndarray, "h w c"]:
        """Raises UnusableImage for one that is damaged or of a kind that can't be kept."""
        pixels = np.asarray(self._fitted(name, self.image(content)))
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if self._shape is None:
            self._shape, self._first = pixels.shape, name
        if pixels.shape != self._shape:
            raise UserError(
                f"{name} is {_in_words(pixels.shape)} and {self._first} {_in_words(self._shape)};"
                " state one size (and fit=crop or fit=resize) and 1 or 3 channels"
            )
        return pixels

    def image(self, content: bytes) -> Image.Image:
        """A whole picture, grey or RGB with 8 bits, upright."""
        upright, turned = decoded(content, FORMATS, _check_kind)
        opaque = _without_alpha(upright)
        mode = {0: opaque.mode, 1: "L"}.get(self._options.channels, "RGB")
        self.notes[TURNED] += turned
        self.notes[RECOLOURED[mode]] += opaque.mode != mode
        return in_mode(opaque, mode)

    def _fitted(self, name: str, image: Image.Image) -> Image.Image:
        size, fit = self._options.size, self._options.fit
        if not size or image.size == (size, size):
            return image
        if not fit:
            raise UserError(
                f"{name} is {image.height}x{image.width}, not {size}x{size};"
                " name a way to fit it: crop (the centre) or resize (the centred square)"
            )
        if min(image.size) < size:
            raise UnusableImage(f"{image.height}x{image.width} is smaller than {size}x{size}")
        return FITS[fit](image, size)


_TOO_LARGE = f"more than {MAX_PIXELS} pixels: a decompression bomb, or to be cut first"


def decoded(
    content: bytes, formats: tuple[str, ...], check: Callable[[Image.Image, bytes], None]
) -> tuple[Image.Image, bool]:
    """A decoded picture, upright, and whether it was turned to be that.

    Args:
        content: of its file.
        formats: of Pillow, that it may have.
        check: of the picture before it is decoded and of the content; may raise UnusableImage.

    Raises UnusableImage for one that is damaged, or of another format.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of a file that can be decoded
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=formats)
            _check_claims(image, content)
            check(image, content)
            image.load()
            turned = image.getexif().get(EXIF_ORIENTATION, 1) != 1
            return (ImageOps.exif_transpose(image) if turned else image), turned
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UnusableImage(_TOO_LARGE) from error
    except UnusableImage:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        text = first_line(error)
        if isinstance(error, Image.UnidentifiedImageError):
            text = f"it is no {', '.join(formats[:-1])} or {formats[-1]}"
        raise UnusableImage(f"can't be decoded: {text}") from error


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


def _check_kind(image: Image.Image, content: bytes) -> None:
    if is_animated(image):
        raise UnusableImage("it is an animation, not one picture")
    # Pillow reads colour PNGs of 16 bits as 8 bits without a word; this byte is their depth.
    if image.mode.startswith(("I", "F")) or (image.format == "PNG" and content[24] == 16):
        raise UnusableImage("it has 16 bits a channel; save it with 8")
    if image.mode == "CMYK":
        raise UnusableImage("it is CMYK, whose colours depend on a press; save it as RGB")


def is_animated(image: Image.Image) -> bool:
    """Has it more than one frame? They are not counted: a small file may have a million."""
    return getattr(image, "is_animated", False)


def _without_alpha(image: Image.Image) -> Image.Image:
    """Grey or RGB; palettes are written out, and alpha must be opaque everywhere."""
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if smallest_alpha(image) != 255:
            raise UnusableImage("it is partly transparent; put it on a background first")
        image.info.pop("transparency", None)
    return in_mode(image, "L" if grey else "RGB")


def smallest_alpha(image: Image.Image) -> int:
    """The smallest alpha of a picture, from 0 to 255."""
    alphas = (np.asarray(part.convert("RGBA"))[..., 3] for part in strips(image))
    return min(int(alpha.min()) for alpha in alphas)


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The picture in a mode of Pillow; itself where it is in that: Pillow would copy it."""
    return image if image.mode == mode else image.convert(mode)


def strips(image: Image.Image) -> Iterator[Image.Image]:
    """A large picture in pieces from its top to its end: what is made of one is small."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _in_words(shape: tuple[int, ...]) -> str:
    return f"{_by(shape)} {'grey' if shape[2] == 1 else 'RGB'}"


def read_pictures(path: Path, options: Options) -> Reading:
    """A folder, zip or tar of pictures, at any depth.

    Folders named train and test (or val) are the splits, and folders in them labels.
    """
    source = Source(path)
    return Reading(_pictures(source, options), source.sha256)


def _pictures(source: Source, options: Options) -> Iterator[Chunk]:
    decoder = Decoder(options)

    def one_by_one() -> Iterator[tuple[str | None, str, np.ndarray | Unusable]]:
        for name, content in source.files(is_picture, MAX_PICTURE):
            split = split_of(str(PurePosixPath(name).parent))
            try:
                yield split, _label(name), decoder(name, content)
            except UnusableImage as error:
                yield split, "", Unusable(name, str(error))

    yield from chunked(one_by_one(), lambda: source.done)
    none = np.zeros((0, 1, 1, 1), np.uint8)
    notes = {**decoder.notes, LEFT_OUT: source.left_out}
    yield Chunk(none, None, source.done, notes={k: v for k, v in notes.items() if v})


def _label(name: str) -> str:
    """The last folder, if it is not the split's."""
    folder = PurePosixPath(name).parent.name
    return "" if split_of(folder) else folder


def chunked(
    pictures: Iterator[tuple[str | None, str | int, np.ndarray | Unusable]],
    done: Callable[[], float],
) -> Iterator[Chunk]:
    """Split, label and pixels of single pictures, put together to chunks."""
    images: list[np.ndarray] = []
    labels: list = []
    unusable: list[Unusable] = []
    current: str | None = None

    def chunk() -> Chunk:
        stacked = np.stack(images) if images else np.zeros((0, 1, 1, 1), np.uint8)
        return Chunk(stacked, current, done(), labels, unusable)

    for split, label, pixels in pictures:
        size = len(images) * images[0].nbytes if images else 0
        full = len(images) + len(unusable) >= CHUNK or size >= CHUNK_BYTES
        if full or (split != current and images):
            yield chunk()
            images, labels, unusable = [], [], []
        current = split
        if isinstance(pixels, Unusable):
            unusable.append(pixels)
        else:
            images.append(pixels)
            labels.append(label)
    yield chunk()
