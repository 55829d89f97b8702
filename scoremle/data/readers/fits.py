"""Functions that bring an image to another size, each with a record of what it did."""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from scoremle.data.readers.base import Options
from scoremle.errors import UserError, by

CROPPED, SHRUNK, ENLARGED = "cropped to its centre", "shrunk", "enlarged"
PADDED = "padded with black"

Changes = list[str]
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
    """The whole picture on black; a larger one is shrunk."""
    scale = min(1.0, size[0] / image.width, size[1] / image.height)
    whole = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    inner = _scaled(image, whole, changes)
    padded = Image.new(image.mode, size)
    padded.paste(inner, ((size[0] - whole[0]) // 2, (size[1] - whole[1]) // 2))
    changes += [PADDED] * (whole != size)
    return padded


Fitter = Callable[[Image.Image, Size, Changes], Image.Image]
FITS: dict[str, Fitter] = {"crop": _crop, "resize": _resize, "pad": _pad}


def _centre(image: Image.Image, size: Size, changes: Changes) -> Image.Image:
    if image.size == size:
        return image
    changes.append(CROPPED)
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))


def _scaled(image: Image.Image, size: Size, changes: Changes) -> Image.Image:
    """The image in another size of nearly the same shape: no side grows as the other shrinks."""
    if image.size == size:
        return image
    changes.append(ENLARGED if sum(image.size) < sum(size) else SHRUNK)
    return image.resize(size, Image.Resampling.BILINEAR)


def fitted(images: UInt8[np.ndarray, "n h w 1"], options: Options) -> UInt8[np.ndarray, "n s s 1"]:
    """Grey images of one size, brought to that of the options as pictures are."""
    shape, size = images.shape[1:3], options.size
    if not size or shape == (size, size):
        return images
    way, changes = f"not that; name a way to fit them: {', '.join(FITS)}", Changes()
    if options.fit:
        grey = (Image.fromarray(image[..., 0]) for image in images)
        pictures = [FITS[options.fit](image, (size, size), changes) for image in grey]
        if ENLARGED not in changes:
            return np.stack([np.asarray(picture) for picture in pictures])[..., None]
        way = "smaller"
    raise UserError(f"images of {size}x{size} are required, but they are {by(shape)}: {way}")
