"""Pictures as PNG: grids of images, and which noise levels cost the bits of a bound."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from scoremle.errors import UserError
from scoremle.evaluation import figures
from scoremle.files import write_atomically
from scoremle.terminal import say

__all__ = ["image_grid", "write_captioned", "write_grid", "write_profile"]

GAP = 1
MIN_SIDE = 480
# In pixels: the strip with a caption, the gap between parts of a picture, the type.
STRIP, PART_GAP, CAPTION_SIZE = 20, 16, 14


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
    path: Path,
    images: UInt8[np.ndarray, "n h w c"],
    levels: int,
    columns: int | None = None,
    *,
    caption: str = "",
) -> None:
    """Writes a grid as PNG, enlarged without smoothing so that small images can be seen."""
    write_captioned(path, {caption: images}, levels, columns or math.ceil(math.sqrt(len(images))))


def write_captioned(
    path: Path, parts: Mapping[str, UInt8[np.ndarray, "n h w c"]], levels: int, columns: int
) -> None:
    """Writes grids one below the other as PNG, a gap between them, each under its caption."""
    grids = [_enlarged(images, levels, columns) for images in parts.values()]
    strips = [STRIP if caption else 0 for caption in parts]
    height = sum(strips) + sum(grid.height + PART_GAP for grid in grids) - PART_GAP
    picture = Image.new(grids[0].mode, (grids[0].width, height), "white")
    draw, top = ImageDraw.Draw(picture), 0
    for caption, strip, grid in zip(parts, strips, grids, strict=True):
        _write_line(draw, caption, top, picture.width - 2 * GAP)
        picture.paste(grid, (0, top + strip))
        top += strip + grid.height + PART_GAP
    with write_atomically(path) as temporary:
        picture.save(temporary, format="PNG")


def _write_line(draw: ImageDraw.ImageDraw, text: str, top: int, room: int) -> None:
    """In smaller type where there is no room for it."""
    width = draw.textlength(text, font_size=CAPTION_SIZE)
    size = CAPTION_SIZE * min(1, room / max(width, 1))
    draw.text((GAP, top), text, fill="black", font_size=size)


def _enlarged(
    images: UInt8[np.ndarray, "n h w c"], levels: int, columns: int
) -> Image.Image:
    grid = image_grid(images, levels, columns)
    factor = max(1, -(-MIN_SIDE // grid.shape[1]))
    return Image.fromarray(grid.repeat(factor, axis=0).repeat(factor, axis=1).squeeze())


def write_profile(path: Path, profile: Mapping[str, Sequence[float]], title: str) -> None:
    """Draws which noise levels cost the bits of a bound, as PNG; without matplotlib, says so."""
    whole = float(np.dot(profile["bits_per_dim"], np.diff(profile["log_snr_edges"])))
    title = f"{title}: diffusion term {whole:.3f} bits/dim"
    try:
        content = figures.drawn(partial(figures.draw_profile, profile=profile), "png", title=title)
    except UserError as error:
        say(f"no picture of the profile: {error}")
        return
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
