"""Pictures as PNG: grids of images, and which noise levels cost the bits of a bound."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from scoremle.files import write_atomically

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
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture of the profile without matplotlib: pip install 'scoremle[plots]'")
        return
    edges, density = np.asarray(profile["log_snr_edges"]), np.asarray(profile["bits_per_dim"])
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.stairs(density, edges, fill=True, alpha=0.35)
    centres = (edges[:-1] + edges[1:]) / 2
    if profile["stderr"]:
        axis.errorbar(centres, density, profile["stderr"], fmt="none", color="C0", capsize=2)
    # A prediction of zero: half a nat for each dimension.
    axis.axhline(0.5 / np.log(2), color="grey", linestyle="--", label="nothing known of the noise")
    axis.legend(loc="center left")
    axis.set(
        title=f"{title}: diffusion term {np.sum(density * np.diff(edges)):.3f} bits/dim",
        xlabel="log signal-to-noise ratio: from noise (left) to data",
        ylabel="bits/dim for each unit of log-SNR",
        xlim=(edges[0], edges[-1]),
    )
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
