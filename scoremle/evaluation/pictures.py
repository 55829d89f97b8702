"""Pictures as PNG: grids of images, and which noise levels cost the bits of a bound."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from scoremle.errors import UserError
from scoremle.evaluation import figures
from scoremle.files import write_atomically, write_bytes
from scoremle.terminal import say

__all__ = ["Panel", "as_png", "write_grid", "write_parts", "write_profile"]

GAP = 1
MIN_SIDE = 480
# In pixels: the strip with a line of text, the gap between parts of a picture, the type.
STRIP, PART_GAP, CAPTION_SIZE = 20, 16, 14


class Panel(NamedTuple):
    """Images under a caption of any number of lines, each above its value where there are some.

    Args:
        caption: may have several lines.
        images: [n h w c].
        values: a text for each image, or none.
    """

    caption: str
    images: UInt8[np.ndarray, "n h w c"]
    values: Sequence[str] = ()


def image_grid(images: UInt8[np.ndarray, "n h w c"], levels: int, columns: int) -> np.ndarray:
    """Images in rows, uint8 [H W c], thin white lines between them; levels spread to 0..255."""
    n, h, w, c = images.shape
    rows = -(-n // columns)
    grid = np.full((rows * (h + GAP) + GAP, columns * (w + GAP) + GAP, c), 255, np.uint8)
    for i, picture in enumerate(images):
        top, left = (i // columns) * (h + GAP) + GAP, (i % columns) * (w + GAP) + GAP
        grid[top : top + h, left : left + w] = np.round(picture * (255 / (levels - 1)))
    return grid


def write_grid(
    path: Path, images: UInt8[np.ndarray, "n h w c"], levels: int, *, caption: str = ""
) -> None:
    """Writes as many rows as columns, about, as PNG, enlarged so that small images can be seen.

    Nothing is smoothed.

    Args:
        path: of the PNG.
        images: [n h w c].
        levels: of grey.
        caption: above the grid.
    """
    write_parts(path, [Panel(caption, images)], levels, math.ceil(math.sqrt(len(images))))


def as_png(image: UInt8[np.ndarray, "h w c"], levels: int, longest: int | None = None) -> bytes:
    """An image as PNG; levels spread to 0..255, no side longer than ``longest``.

    Args:
        image: [h w c].
        levels: of grey.
        longest: pixels of the longest side; None: as it is.
    """
    pixels = np.round(image * (255 / (levels - 1))).astype(np.uint8)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if longest:
        picture.thumbnail((longest, longest))
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def write_parts(path: Path, parts: Sequence[Panel], levels: int, columns: int) -> None:
    """Writes grids one below the other as PNG, a gap between them.

    Args:
        path: of the PNG.
        parts: from above to below.
        levels: of grey.
        columns: of each grid.
    """
    blocks: list[Image.Image] = []
    for part in parts:
        rows = [*_rows(part, levels, columns)]
        gap = [Image.new(rows[0].mode, (rows[0].width, PART_GAP), "white")] if blocks else []
        blocks += gap + rows
    picture = Image.fromarray(np.concatenate([np.asarray(block) for block in blocks]))
    with write_atomically(path) as temporary:
        picture.save(temporary, format="PNG")


def _rows(part: Panel, levels: int, columns: int) -> Iterator[Image.Image]:
    """The lines of the caption, then the grid: with values row by row, each above its own."""
    size = columns if part.values else len(part.images)
    starts = range(0, len(part.images), size)
    grids = [_enlarged(part.images[start : start + size], levels, columns) for start in starts]
    for line in part.caption.splitlines():
        yield _line(grids[0], [line], 1)
    for start, grid in zip(starts, grids, strict=True):
        yield grid
        if part.values:
            yield _line(grid, part.values[start : start + size], columns)


def _line(grid: Image.Image, texts: Sequence[str], cells: int) -> Image.Image:
    """A strip as wide as a grid, a text in each cell: in smaller type where there is no room."""
    strip = Image.new(grid.mode, (grid.width, STRIP), "white")
    draw, room = ImageDraw.Draw(strip), grid.width / cells - 2 * GAP
    for i, text in enumerate(texts):
        width = draw.textlength(text, font_size=CAPTION_SIZE)
        size = CAPTION_SIZE * min(1, room / max(width, 1))
        draw.text((GAP + i * grid.width / cells, 0), text, fill="black", font_size=size)
    return strip


def _enlarged(images: UInt8[np.ndarray, "n h w c"], levels: int, columns: int) -> Image.Image:
    grid = image_grid(images, levels, columns)
    factor = max(1, -(-MIN_SIDE // grid.shape[1]))
    return Image.fromarray(grid.repeat(factor, axis=0).repeat(factor, axis=1).squeeze())


def write_profile(
    path: Path, profile: Mapping[str, Sequence[float]], images: int, title: str
) -> None:
    """Draws which noise levels cost the bits of a bound, as PNG; without matplotlib, says so.

    Args:
        path: of the PNG.
        profile: as ``statistics.profile`` gives it.
        images: that it is a mean over.
        title: above the chart.
    """
    try:
        draw = partial(figures.draw_profile, profile=profile, images=images)
        (content,) = figures.drawn(draw, "png", title=title)
    except UserError as error:
        say(f"no picture of the profile: {error}")
        return
    write_bytes(path, content)
