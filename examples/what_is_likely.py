"""Which pictures a model of digits finds likely: digits, a black one, inverted ones, noise.

    python examples/what_is_likely.py --out=what_is_likely.png

The model is the one that ships with the package. It prints bits/dim, ranks among the model's
own test images, and p-values by other test digits, and draws the pictures in the order of their
bits/dim, with their errors.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

import scoremle
from scoremle.anomaly import Detector
from scoremle.evaluation.baselines import png_bpd
from scoremle.evaluation.statistics import error_of_few
from scoremle.evaluation.tables import table
from scoremle.experiment.reference import ranks, reference_of
from scoremle.files import write_atomically

COLOURS = {"digit": "#0072b2", "black": "#000000", "upside down": "#009e73",
           "inverted": "#d55e00", "noise": "#cc79a7"}  # fmt: skip


def kinds(count: int) -> dict[str, UInt8[np.ndarray, "n h w c"]]:
    """So many test digits, and what else a messy folder may hold."""
    digits = scoremle.data.load("digits").test[:count]
    noise = np.random.default_rng(0).integers(0, 17, digits.shape, np.uint8)
    return {
        "digit": digits,
        "black": np.zeros_like(digits[:1]),
        "upside down": digits[:, ::-1],
        "inverted": 16 - digits,
        "noise": noise,
    }


def draw(
    path: Path, images: np.ndarray, names: list[str], bpd: np.ndarray, errors: np.ndarray
) -> None:
    """The images in the order of their bits/dim; below each its value and its interval."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    order, top = np.argsort(bpd), int(np.ceil(np.max(bpd + 2 * errors)))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, i in enumerate(order):
        colour = COLOURS[names[i]]
        axes.errorbar(place, bpd[i], 2 * errors[i], fmt="o", color=colour, capsize=2, markersize=4)
        shown = axes.inset_axes((place - 0.45, top + 0.2, 0.9, 0.9), transform=axes.transData)
        shown.imshow(images[i, ..., 0], cmap="gray", vmin=0, vmax=16)
        shown.set(xticks=[], yticks=[])
        shown.spines[:].set(color=colour, linewidth=2)
    axes.set(
        xlim=(-0.8, len(order) - 0.2), ylim=(1, top + 1.2), xticks=[], ylabel="bits/dim",
        xlabel="from likely to unlikely", yticks=range(1, top + 1),
        title="What a model of digits finds likely (bars: 95 %)",
    )  # fmt: skip
    handles = [Line2D([], [], marker="o", ls="", color=c, label=n) for n, c in COLOURS.items()]
    axes.legend(handles=handles, loc="center left", frameon=False)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def measure(
    found: Mapping[str, np.ndarray], passes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bits/dim, errors and ranks of all images."""
    model, _ = scoremle.load("digits").calibrated(found["digit"])
    scores = model.score(np.concatenate(list(found.values())), passes=passes)
    reference = reference_of("digits", model, "ode").values
    errors = np.hypot(error_of_few(scores.stderr, passes), scores.solver_error / 2)
    return scores.bpd, errors, ranks(scores.bpd, reference)


def p_values(found: Mapping[str, np.ndarray]) -> np.ndarray:
    """p-values of all images, by other test digits."""
    model, shown = scoremle.load("digits"), len(found["digit"])
    detector = Detector.fit(model, scoremle.data.load("digits").test[shown:])
    return detector.score(model, np.concatenate(list(found.values()))).p


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("what_is_likely.png"))
    parser.add_argument("--images", type=int, default=6, help="of each kind")
    parser.add_argument("--passes", type=int, default=4)
    options = parser.parse_args()
    found = kinds(options.images)
    names = [name for name, images in found.items() for _ in images]
    bpd, errors, rank = measure(found, options.passes)
    png, p = png_bpd(np.concatenate(list(found.values()))), p_values(found)
    rows = []
    for name in found:
        of = np.array([other == name for other in names])
        ends = [f"{values[of].min():.{d}f} to {values[of].max():.{d}f}"
                for values, d in ((bpd, 2), (rank, 3), (png, 1), (p, 3))]  # fmt: skip
        rows.append((name, str(of.sum()), *ends))
    print(table(("kind", "images", "bits/dim", "rank", "PNG", "p"), rows))
    draw(options.out, np.concatenate(list(found.values())), names, bpd, errors)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
