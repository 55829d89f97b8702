"""What a person looks at: tables of results, and pictures as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from scoremle.files import write_atomically

__all__ = [
    "image_grid",
    "quality_table",
    "results_table",
    "table",
    "write_captioned",
    "write_grid",
    "write_profile",
]

GAP = 1
MIN_SIDE = 480
UPPER = "* an upper estimate, from few draws: it is a part of the standard error"
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
    path: Path, images: UInt8[np.ndarray, "n h w c"], levels: int, columns: int | None = None
) -> None:
    """Writes a grid as PNG, enlarged without smoothing so that small images can be seen."""
    picture = _enlarged(images, levels, columns or int(np.ceil(np.sqrt(len(images)))))
    with write_atomically(path) as temporary:
        picture.save(temporary, format="PNG")


def write_captioned(
    path: Path, parts: Mapping[str, UInt8[np.ndarray, "n h w c"]], levels: int, columns: int
) -> None:
    """Writes grids one below the other as PNG, a gap between them, each under its caption."""
    grids = [_enlarged(images, levels, columns) for images in parts.values()]
    heights = [STRIP + grid.height + PART_GAP for grid in grids]
    size = (grids[0].width, sum(heights) - PART_GAP)
    picture = Image.new(grids[0].mode, size, "white")
    draw, top = ImageDraw.Draw(picture), 0
    for caption, grid, height in zip(parts, grids, heights, strict=True):
        draw.text((GAP, top), caption, fill="black", font_size=CAPTION_SIZE)
        picture.paste(grid, (0, top + STRIP))
        top += height
    with write_atomically(path) as temporary:
        picture.save(temporary, format="PNG")


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


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, aligned."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines
    ]
    rule = "  ".join("-" * w for w in widths)
    return "\n".join(line.rstrip() for line in [text[0], rule, *text[1:]])


def _number(value: float | None, digits: int = 4) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"


def _what(r: Mapping[str, Any]) -> str:
    """What a number is: estimator, its form, noise, images."""
    facts = [r["estimator"]]
    if "matching" in r:
        facts.append(f"{r['matching']} score matching")
    if "divergence" in r:
        probes = r["probes"]
        facts.append("exact trace" if probes is None else _counted(probes, "probe"))
    if choice := r.get("solver_choice"):
        bias = f"{choice['solver_bias']:+.4f} +- {choice['solver_bias_stderr']:.4f}"
        facts.append(f"solver off by {bias} in the mean of {choice['images']} images")
    if "dequantizer" in r:  # a loss has a dequantization of its own, that of training
        kind = r["dequantizer"]
        facts.append(f"{'no' if kind == 'none' else kind} dequantization")
    part = "" if r["full_pass"] else " (not the whole split)"
    facts.append(f"{r['images']} {r['split']} images{part}, {_counted(r['passes'], 'pass')}")
    return "; ".join(facts)


def _counted(count: int, word: str) -> str:
    plural = "es" if word.endswith("s") else "s"
    return f"{count} {word}{plural * (count != 1)}"


def _from_draws(r: Mapping[str, Any]) -> float | None:
    random = r.get("probe_stderr_of_mean", r.get("draw_stderr_of_mean"))
    return r.get("noise_stderr") if random is None else random


def _is_upper(r: Mapping[str, Any]) -> bool:
    random, whole = _from_draws(r), r["stderr"]
    return random is not None and whole is not None and random > whole


def results_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for each result: its value and errors; and under them, what each of them is.

    The standard error is over images; "from draws" is the part of it that comes from probes or
    Monte-Carlo draws. The solver's error is the mean over images of what covers it: it has a sign
    of its own and does not shrink with their number.
    """
    header = (
        "result", "value", "std. error", "from draws", "solver, 95%", "NFE", "s/image",
    )  # fmt: skip
    rows = []
    for name, r in results.items():
        nfe = r.get("mean_nfe")
        rows.append(
            (
                name,
                _number(r["mean"]) + (" bits/dim" if r["unit"] == "bits/dim" else ""),
                _number(r["stderr"]),
                _number(_from_draws(r), 5) + "*" * _is_upper(r),
                "" if "mean_solver_error" not in r else _number(r["mean_solver_error"], 5),
                "" if nfe is None else f"{nfe:.0f}",
                f"{seconds:.2g}" if (seconds := r.get("seconds_per_image")) else "",
            )
        )
    footnotes = [UPPER] if any(map(_is_upper, results.values())) else []
    what = (f"{name}: {_what(r)}" for name, r in results.items())
    return "\n".join([table(header, rows), *footnotes, *what])


def quality_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for each measure of sample quality, and under them what they are measured with."""
    header = ("result", "measure", "value", "std. error", "samples", "reference images")
    rows = [
        (
            name,
            measure,
            f"{m['value']:.5g}",
            "" if m["stderr"] is None else f"{m['stderr']:.2g}",
            str(m["samples"]),
            str(m["reference_images"] or ""),
        )
        for name, r in results.items()
        for measure, m in r["measures"].items()
    ]
    return "\n".join([table(header, rows), *dict.fromkeys(map(_measured_with, results.values()))])


def _measured_with(r: Mapping[str, Any]) -> str:
    reference = r["reference"]
    what = f"origin {reference['origin']}"
    if "dataset" in reference:
        what = f"{reference['split']} images of {reference['dataset']}"
    return f"features: {r['features']}; reference: {reference['path']}, {what}"
