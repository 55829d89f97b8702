"""CelebA (aligned and cropped), prepared as for the published code.

The centre of 140x140 is cut out and averaged down to ``size``. Training images are those of
partition 0 in list_eval_partition.txt, test images those of partition 1, on which the published
code evaluates; partition 2 is left out.
"""

from collections.abc import Iterator
from pathlib import Path
from posixpath import basename

import numpy as np
from PIL import Image

from scoremle.bounded import MAX_PARTITION, MAX_PICTURE
from scoremle.data.archive import Source
from scoremle.data.readers.base import ImageReport, Options, Reading
from scoremle.data.readers.decoding import decode_image, is_picture, not_enlarged
from scoremle.data.readers.fits import FITS
from scoremle.data.readers.pictures import chunked
from scoremle.errors import UserError
from scoremle.files import inside, read_bytes

PARTITION = "list_eval_partition.txt"
SPLITS = {"0": "train", "1": "test"}
CROP = 140


def read_celeba(path: Path, options: Options) -> Reading:
    """A folder with list_eval_partition.txt and img_align_celeba, a folder or a zip."""
    if not options.size or options.size > CROP:
        raise UserError(f"celeba needs a size from 1 to {CROP}, such as 64, not {options.size}")
    source = Source(path, nested=True)
    partition = _partition(path)

    def reports() -> Iterator[tuple[str, str, ImageReport]]:
        for name, content in source.files(is_picture, MAX_PICTURE):
            file = basename(name)
            if file not in partition:
                raise UserError(f"{path}: {name} is not in {PARTITION}")
            if split := SPLITS.get(partition[file]):
                yield split, "", _face(name, content, options.size)

    facts = {"crop": f"centre {CROP}x{CROP}, resized by averaging"}
    return Reading(chunked(reports(), source), source.sha256, facts=facts)


def _face(name: str, content: bytes, size: int) -> ImageReport:
    face = not_enlarged(decode_image(name, content, (CROP, CROP, 3), "crop"))
    if face.pixels is None:
        return face
    small = FITS["resize"](Image.fromarray(face.pixels), (size, size), [])
    return face._replace(pixels=np.asarray(small))


def _partition(path: Path) -> dict[str, str]:
    file = min(path.rglob(PARTITION), default=None)
    if file is None:
        raise UserError(f"{path}: no {PARTITION} in it, which says what is for training")
    content = read_bytes(inside(path, str(file.relative_to(path))), MAX_PARTITION)
    lines = [line.split() for line in content.decode(errors="replace").splitlines() if line]
    if not lines or any(len(line) != 2 or line[1] not in ("0", "1", "2") for line in lines):
        raise UserError(f"{file}: not lines of a file's name and 0, 1 or 2; fetch it again")
    return dict(lines)
