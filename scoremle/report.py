"""What a person looks at: tables of results, and pictures as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from scoremle.files import write_atomically

__all__ = ["image_grid", "quality_table", "results_table", "table", "write_grid", "write_profile"]

GAP = 1
MIN_SIDE = 480


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
    grid = image_grid(images, levels, columns or int(np.ceil(np.sqrt(len(images)))))
    factor = max(1, -(-MIN_SIDE // grid.shape[1]))
    grid = grid.repeat(factor, axis=0).repeat(factor, axis=1)
    with write_atomically(path) as temporary:
        Image.fromarray(grid.squeeze()).save(temporary, format="PNG")


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
    part = "" if r["full_pass"] else " (not the whole split)"
    passes = "1 pass" if r["passes"] == 1 else f"{r['passes']} passes"
    # A loss has a dequantization of its own, that of training.
    how = f"; {r['dequantizer']} dequantization" if "dequantizer" in r else ""
    return f"{r['estimator']}{how}; {r['images']} {r['split']} images{part}, {passes}"


def results_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for each result: its value, errors, and what it is.

    The standard error is over images; "from draws" is the part of it that comes from probes or
    Monte-Carlo draws. The solver's error is the mean over images of its estimate: it has a sign of
    its own and does not shrink with their number.
    """
    header = (
        "result", "value", "std. error", "from draws", "solver error", "NFE", "s/image", "what",
    )  # fmt: skip
    rows = []
    for name, r in results.items():
        random = r.get("probe_stderr_of_mean", r.get("draw_stderr_of_mean"))
        if random is None:
            random = r.get("noise_stderr")
        nfe = r.get("mean_nfe")
        rows.append(
            (
                name,
                f"{_number(r['mean'])} {r['unit']}",
                _number(r["stderr"]),
                _number(random, 5),
                "" if "mean_solver_error" not in r else _number(r["mean_solver_error"], 5),
                "" if nfe is None else f"{nfe:.0f}",
                f"{seconds:.2g}" if (seconds := r.get("seconds_per_image")) else "",
                _what(r),
            )
        )
    return table(header, rows)


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
