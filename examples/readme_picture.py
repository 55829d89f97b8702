"""The picture at the top of README.md: digits in order of likelihood, and what an error costs.

    python examples/readme_picture.py

Left: test digits under the model that the package ships, each with twice the standard error of
four passes. Right: the error of an image against what it costs, from the table that
benchmarks/likelihood.py printed into benchmarks/README.md. It needs the extras digits and plots.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

import scoremle

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "img" / "likelihood.png"
# | method | NFE | cost | ... | total error |, of the first of the benchmark's networks
ROW = re.compile(r"(?m)^\| (published|ours), ([^|]*) \| \d+ \| (\d+) \|.*\| ([\d.]+) \|$")


def main() -> None:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    draw_order(left)
    draw_cost(right, (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"))
    figure.savefig(OUT, dpi=110)
    print(f"drawn: {OUT}")


def draw_order(axis: Any) -> None:
    """Bits/dim of every fourth test digit, in order, with digits along the curve."""
    images = scoremle.data.load("digits").test[::4]
    scores = scoremle.load("digits").score(images, passes=4, label="digits")
    print(scores)
    order = np.argsort(scores.bpd)
    rank = np.arange(len(order))
    axis.errorbar(
        rank, scores.bpd[order], 2 * scores.stderr[order], fmt=".", ms=4, lw=0.8, color="C0"
    )
    for place in np.linspace(0, len(order) - 1, 12).round().astype(int):
        picture = OffsetImage(16 - images[order[place], :, :, 0], zoom=2.6, cmap="gray")
        at, up = (place, scores.bpd[order[place]]), 34 if place < len(order) / 2 else -38
        box = AnnotationBbox(
            picture, at, (0, up), boxcoords="offset points", pad=0.1,
            arrowprops={"arrowstyle": "-", "lw": 0.4},
        )  # fmt: skip
        axis.add_artist(box)
    axis.set(
        title="Test digits in order of likelihood, ± 2 standard errors",
        xlabel="rank, the likeliest first", ylabel="bits/dim",
    )  # fmt: skip
    axis.margins(0.05, 0.12)


def draw_cost(axis: Any, text: str) -> None:
    """The total error of an image against its cost: ours by steps, and as published."""
    first = text[text.index("\nDigits, VP:") : text.index("\nFashion-MNIST 14x14, VP:")]
    rows = [(who, what, int(cost), float(error)) for who, what, cost, error in ROW.findall(first)]
    for who, marker in (("ours", "o-"), ("published", "s")):
        points = [(cost, error) for name, _, cost, error in rows if name == who]
        axis.plot(*zip(*points, strict=True), marker, ms=4, label=who)
    axis.set(
        xscale="log", yscale="log", ylim=(0.01, 1), title="Error of an image against its cost",
        xlabel="cost, in forward passes of the network", ylabel="bits/dim, root mean square",
    )  # fmt: skip
    axis.legend(frameon=False)


if __name__ == "__main__":
    main()
