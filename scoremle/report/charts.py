"""The charts of a report: each a figure with its title, its caption and its alternative text.

On a page a chart is SVG whose ink and colours follow the page's own, light or dark. Its name, of
files and in identifiers, is ours: nothing that a file says is in it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from scoremle.evaluation import figures
from scoremle.evaluation.figures import ABOVE, COLOURS, INK, LINES, DrawChart
from scoremle.evaluation.statistics import Difference, half_interval
from scoremle.evaluation.tables import difference_in_cells
from scoremle.files import write_bytes
from scoremle.terminal import counted
from scoremle.training.writers import LoggedRow

# In the page's style sheet: --ink, --lines, --c0, --c1, ...
VARIABLES = {INK: "ink", LINES: "lines"} | {c: f"c{i}" for i, c in enumerate(COLOURS)}
# Rows of the log on each side that are averaged for a line; one more for so many rows.
MOST_NEIGHBOURS, ROWS_FOR_A_NEIGHBOUR = 10, 8
BINS = 40
Z95 = 1.96
# Characters of a name beside a row.
LONGEST_NAME = 40
# So few points of a line are marked: of one there would be nothing to see.
FEW = 10
# On a logarithmic scale.
LOG_TICKS = [digit * 10.0**power for power in range(-8, 2) for digit in (1, 2, 5)]
# The corners of a box in turn: lower or upper side, of x and of y.
ROUND = ((0, 1, 1, 0, 0), (0, 0, 1, 1, 0))


@dataclass(frozen=True)
class Chart:
    """A figure that is drawn when it is written.

    Args:
        name: of its files and in identifiers: letters, digits and underscores.
        title: what it shows, above it.
        caption: how to read it, below it.
        alt: what it shows, for those who can't see it.
        draw: draws on the axes.
    """

    name: str
    title: str
    caption: str
    alt: str
    draw: DrawChart

    def svg(self) -> str:
        """An ``svg`` element for a page: colours by the page, identifiers of its own."""
        (content,) = figures.drawn(self.draw, "svg", background="none")
        body = content[content.index(b"<svg") :].decode()
        for colour, variable in VARIABLES.items():
            body = body.replace(colour, f"var(--{variable})")
        body = re.sub(r'\bid="', f'id="{self.name}-', body)
        return re.sub(r'(url\(#|href="#)', rf"\g<1>{self.name}-", body)

    def write(self, folder: Path) -> None:
        """Writes NAME.svg and NAME.png, with the title, on white."""
        kinds = "svg", "png"
        files = figures.drawn(self.draw, *kinds, title=self.title)
        for kind, content in zip(kinds, files, strict=True):
            write_bytes(folder / f"{self.name}.{kind}", content)


def _columns(rows: Sequence[LoggedRow], *names: str) -> list[Float[np.ndarray, " n"]]:
    """Steps and columns of the rows that have finite numbers in all of them."""
    table = [[row.get(name) for name in ("step", *names)] for row in rows]
    complete = [values for values in table if None not in values]
    return list(np.array(complete, float).reshape(-1, 1 + len(names)).T)


def _window(count: int) -> Float[np.ndarray, " rows"]:
    """Weights of a row and of its neighbours on both sides, of so many rows."""
    return np.ones(2 * min(MOST_NEIGHBOURS, count // ROWS_FOR_A_NEIGHBOUR) + 1)


def _sums(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The sum of each value and its neighbours, of which there are fewer at the ends."""
    return np.convolve(values, _window(len(values)), "same") if len(values) else values


def _smooth(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The mean of each value and its neighbours."""
    return _sums(values) / _sums(np.ones_like(values))


def columns(
    name: str, title: str, rows: Sequence[LoggedRow], labels: Mapping[str, str], *,
    log: bool = False,
) -> Chart:  # fmt: skip
    """Columns of the log over the steps, with a label each; logarithmic with ``log``."""
    found = [_columns(rows, column) for column in labels]

    def draw(axes: Any) -> None:
        from matplotlib.ticker import LogFormatter  # its usual one writes formulas

        for i, ((steps, values), label) in enumerate(zip(found, labels.values(), strict=True)):
            if len(steps):
                axes.plot(steps, values, ".", color=COLOURS[i], alpha=0.25, markersize=3)
                line = ("-", "--")[i] + "o" * (len(values) < FEW)
                axes.plot(
                    steps, _smooth(values), line, color=COLOURS[i], label=label, markersize=4
                )
        axes.set(xlabel="step", ylabel=title.lower())
        if log:
            axes.set_yscale("log")
            axes.yaxis.set(major_formatter="{x:g}", minor_formatter=LogFormatter())
        axes.legend(**ABOVE)

    (_, first), *_ = found
    return Chart(
        name, title,
        "Points: one logged row each. Lines: the mean over neighbouring rows.",
        f"{title} over the steps; {first[0]:.3g} at first, {first[-1]:.3g} at last.",
        draw,
    )  # fmt: skip


def training_bpd(rows: Sequence[LoggedRow], uniform: float) -> Chart:
    """bits/dim of test images while training, with its error; from where it beats ``uniform``.

    Before, the averaged parameters are mostly those of the beginning, and their bits/dim mean
    nothing. Rows on the same images have a common error, which their mean does not lessen. So may
    all rows of a log that does not state how many windows there are.
    """
    steps, values, errors = _columns(rows, "eval_bpd", "eval_bpd_stderr")
    kept = np.maximum.accumulate(values < uniform)
    steps, values, errors = (column[kept] for column in (steps, values, errors))
    mean, averaged = _smooth(values), len(_window(len(values)))
    windows = max((row.get("eval_windows") or 1.0 for row in rows), default=1.0)
    others = np.minimum(_sums(np.ones_like(values)), windows)  # rows on other images
    band = Z95 * np.sqrt(_smooth(np.square(errors)) / others)

    def draw(axes: Any) -> None:
        if not len(mean):
            axes.text(0.5, 0.5, final, ha="center", transform=axes.transAxes)
            axes.set(xticks=[], yticks=[])
        axes.fill_between(steps, mean - band, mean + band, color=COLOURS[0], alpha=0.25, lw=0)
        axes.plot(steps, mean, "o-" if len(mean) < FEW else "-", color=COLOURS[0], markersize=4)
        axes.plot(steps, values, ".", color=COLOURS[0], alpha=0.25, markersize=3)
        axes.set(xlabel="step", ylabel="bits/dim")

    final, how = "no row beats a uniform distribution yet", ""
    if len(mean):
        line = f" Line: the mean of {averaged} neighbouring rows." * (averaged > 1)
        how = f" Points: one logged row each.{line} Band: its 95 % interval."
        final = f"{mean[-1]:.3f} ± {band[-1]:.3f} at last"
    return Chart(
        "training_bpd", "Bits/dim while training",
        f"The variational bound on a window of test images that moves, few draws each.{how} Rows"
        " before the averaged parameters beat a uniform distribution are left out.",
        f"bits/dim of test images over the steps: {final}.",
        draw,
    )  # fmt: skip


def learning_rate(
    rate: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " n"]], steps: int
) -> Chart:
    """The learning rate over the steps."""
    step = np.linspace(0, steps, 200)

    def draw(axes: Any) -> None:
        axes.plot(step, rate(step), color=COLOURS[0])
        axes.set(xlabel="step", ylabel="learning rate", ylim=(0, None))

    words = f"The learning rate over {steps:,} steps, {rate(step)[-1]:.2g} at last."
    caption = "What Adam multiplies its step with."
    return Chart("learning_rate", "Learning rate", caption, words, draw)


def histogram(name: str, bpd: Float[np.ndarray, " n"], baselines: Mapping[str, float]) -> Chart:
    """bits/dim of the images of a split; lines where simple densities lie in the mean."""

    def draw(axes: Any) -> None:
        axes.hist(bpd, bins=min(BINS, max(5, len(bpd) // 5)), color=COLOURS[0], alpha=0.5)
        axes.axvline(bpd.mean(), color=COLOURS[0], label=f"model, mean {bpd.mean():.3f}")
        for (label, value), style in zip(baselines.items(), ("--", ":", "-."), strict=False):
            axes.axvline(value, color=INK, linestyle=style, label=f"{label}, mean {value:.3f}")
        axes.set(xlabel="bits/dim", ylabel="images")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.legend(**ABOVE)

    beside = "".join(f"; {label} {value:.3f}" for label, value in baselines.items())
    return Chart(
        "histogram", f"Bits/dim of each image: {name}",
        "Lower is likelier." + (
            " Dashed and dotted lines: the means of the uniform density, and of simple densities"
            " that are fitted to the training images. A useful model has a lower mean than each."
        ) * bool(baselines),
        f"Histogram of bits/dim of {counted(len(bpd), 'image')}: mean {bpd.mean():.3f}, from"
        f" {bpd.min():.3f} to {bpd.max():.3f}{beside}.",
        draw,
    )  # fmt: skip


def profile_chart(
    number: int, name: str, found: Mapping[str, Sequence[float]], mean: float, images: int
) -> Chart:
    """Bits that each noise level costs in a bound of this mean; charts are numbered."""
    edges, density = np.asarray(found["log_snr_edges"]), np.asarray(found["bits_per_dim"])
    centres, whole = (edges[:-1] + edges[1:]) / 2, float(np.sum(density * np.diff(edges)))
    back = (
        f" The reconstruction term, below zero, gives back {whole - mean:.3f} or more: at the"
        " right end the noise is finer than the dequantization, and nothing can be known of it."
    ) * (mean < whole)  # not in a bound on integers
    return Chart(
        f"profile_{number}", f"Which noise levels cost the bits: {name}",
        f"The area is the diffusion term of the bound, {whole:.3f} bits/dim.{back} Bars: 95 %"
        " intervals over the images. Dashed: a network that predicts no noise at all.",
        f"bits/dim for each unit of log-SNR; most at log-SNR {centres[density.argmax()]:.1f}.",
        partial(figures.draw_profile, profile=found, images=images),
    )  # fmt: skip


def course(found: Mapping[str, Sequence[float]]) -> Chart:
    """The log-SNR of a learned schedule over t, beside the fixed one."""
    t, learned, fixed = (np.asarray(found[name]) for name in ("t", "learned", "fixed"))
    apart, by_number, words = np.abs(learned - fixed).max(), "least" in found, ""
    if by_number:
        wide = np.max(np.subtract(found["most"], found["least"]))
        words = f" Those of the numbers of images are at most {wide:.2f} apart."

    def draw(axes: Any) -> None:
        if by_number:
            band: Any = found["least"], found["most"]
            axes.fill_between(t, *band, color=COLOURS[0], alpha=0.3, label="all numbers")
        axes.plot(t, learned, color=COLOURS[0], label="learned" + ", mean" * by_number)
        axes.plot(t, fixed, color=INK, linestyle="--", label="fixed")
        axes.set(xlabel="time t: data on the left, noise on the right", ylabel="log-SNR")
        axes.legend(**ABOVE)

    return Chart(
        "schedule", "The learned schedule",
        "How fast the signal-to-noise ratio falls. Where the line is steep, training draws few"
        " times for each unit of log-SNR. Its ends are nearly pure data and pure noise.",
        f"The learned log-SNR falls from {learned[0]:.2f} to {learned[-1]:.2f}, the fixed one from"
        f" {fixed[0]:.2f} to {fixed[-1]:.2f}; they are at most {apart:.2f} apart.{words}",
        draw,
    )  # fmt: skip


def solver_steps(tried: Sequence[Sequence[float]], chosen: int, images: int) -> Chart:
    """The solver's error an image against its steps, as a pilot measured it."""
    steps, errors = np.array(tried, float).T

    def draw(axes: Any) -> None:
        axes.loglog(steps, errors, "o-", color=COLOURS[0])
        axes.axvline(chosen, color=COLOURS[1], linestyle="--", label=f"chosen: {chosen} steps")
        axes.set_xticks(steps, [f"{n:.0f}" for n in steps])
        low, high = errors.min(), errors.max()
        axes.set_yticks([y for y in LOG_TICKS if low / 2 <= y <= 2 * high])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set(xlabel="steps", ylabel="error of an image, bits/dim")
        axes.legend(**ABOVE)

    text = "; ".join(f"{n:.0f} steps {error:.2g}" for n, error in tried)
    return Chart(
        "solver_steps", "The solver's error against its steps",
        f"The root mean square over {images} images of a pilot, against the solution at many"
        " steps. The doubt of that solution is counted in. It is left where the curve flattens.",
        f"The solver's error in bits/dim: {text}; chosen were {chosen}.",
        draw,
    )  # fmt: skip


def latents(
    square: Float[np.ndarray, " n"],
    neighbours: Float[np.ndarray, " n"],
    shape: tuple[int, int, int],
) -> Chart:
    """Whether the latents of images are white noise, by two numbers of each image."""
    height, width, channels = shape
    pairs = max(channels * (height * (width - 1) + width * (height - 1)), 1)
    of_square = Z95 * np.sqrt(2 / (height * width * channels))
    of_neighbours = Z95 / np.sqrt(pairs)
    # Of draws with a mean of zero the mean product is their correlation times the mean square.
    correlation = neighbours / square
    inside = (np.abs(square - 1) <= of_square) & (np.abs(correlation) <= of_neighbours)

    def draw(axes: Any) -> None:
        axes.plot(square, correlation, ".", color=COLOURS[0], alpha=0.5, markersize=4)
        sides = (1 - of_square, 1 + of_square), (-of_neighbours, of_neighbours)
        x, y = ([side[i] for i in order] for side, order in zip(sides, ROUND, strict=True))
        axes.plot(x, y, "--", color=COLOURS[1], label="white noise: 95 % either way")
        axes.set(xlabel="mean square of the latent", ylabel="correlation of neighbours")
        axes.legend(**ABOVE)

    return Chart(
        "latents", "Are the latents white noise?",
        "Each point is the latent of an image, which the ODE makes of it. If the images are like"
        " samples of the model, latents are draws of the prior, and nine of ten points lie in the"
        " dashed box. Left of it, they lie nearer to zero than such draws; right of it, farther.",
        f"{inside.mean():.0%} of {len(square)} latents lie where 90 % of white noise does; their"
        f" mean square is {square.mean():.3f}, of white noise 1; the correlation of neighbours"
        f" {correlation.mean():+.3f}, of white noise 0.",
        draw,
    )  # fmt: skip


def estimators(results: Mapping[str, tuple[float, float, bool]]) -> Chart:
    """Means of several estimators; (mean, half of its 95 % interval, is it a bound?) by name."""
    parts = (f"{name} {mean:.4f} ± {half:.4f}" for name, (mean, half, _) in results.items())
    return Chart(
        "estimators", "Exact values and bounds of the same images",
        "Bars: 95 % intervals over the images. The images are the same, so the difference of two"
        " results is more certain than the bars show. Round: the likelihood of the ODE. Triangle:"
        " a bound. The likelihood of the SDE is left of it, that of the ODE on either side.",
        f"bits/dim by estimator: {'; '.join(parts)}.",
        partial(_draw_intervals, rows=results, label="bits/dim"),
    )  # fmt: skip


def differences(found: Mapping[str, Difference]) -> Chart:
    """Paired differences of bits/dim, by the name of the second."""
    rows = {
        name: (gap.mean, half_interval(gap.stderr, gap.images), False)
        for name, gap in found.items()
    }

    def draw(axes: Any) -> None:
        _draw_intervals(axes, rows, "difference, bits/dim")
        axes.axvline(0, color=INK, linestyle="--")

    gaps = "; ".join(
        f"{name} {' ± '.join(difference_in_cells(mean, half))}"
        for name, (mean, half, _) in rows.items()
    )
    return Chart(
        "differences", "Difference from the first, image by image",
        "Left of zero is better than the first. Bars: 95 % intervals of the mean difference over"
        " the same images.",
        f"Paired differences of bits/dim: {gaps}.",
        draw,
    )  # fmt: skip


def _draw_intervals(axes: Any, rows: Mapping[str, tuple[float, float, bool]], label: str) -> None:
    """A row for each name: its mean and half an interval, as a triangle if it is a bound."""
    for i, (mean, half, bound) in enumerate(rows.values()):
        axes.errorbar(mean, i, xerr=half, fmt="o<"[bound], color=COLOURS[bound], capsize=3)
    # The ends of long paths, which differ: whole ones would leave no room for the chart.
    names = [name if len(name) <= LONGEST_NAME else f"...{name[-LONGEST_NAME:]}" for name in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
