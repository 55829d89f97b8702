"""Figures by matplotlib (extra ``plots``), all in one style, whatever the working folder sets.

The colours are those of Okabe and Ito, which people who don't see red or green can distinguish;
the meaning of a colour is shown by a mark or a word, too. Text is drawn unchanged: a ``$`` in a
name begins no formula.
"""

import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scoremle.errors import needing
from scoremle.evaluation.statistics import half_interval

__all__ = ["ABOVE", "COLOURS", "INK", "LINES", "DrawChart", "draw_profile", "drawn"]

SIZE, DPI = (6.4, 3.6), 150  # inches, pixels to an inch
INK, LINES = "#1f2328", "#d0d7de"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "scoremle", "font.family": "sans-serif",
    "font.size": 10, "text.color": INK, "text.parse_math": False, "axes.labelcolor": INK,
    "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "grid.color": LINES,
    "axes.grid": True, "axes.spines.top": False, "axes.spines.right": False,
    "figure.facecolor": "none", "axes.facecolor": "none", "legend.frameon": False,
    "legend.labelcolor": INK,
}  # fmt: skip
# Where a legend covers nothing.
ABOVE: Any = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2}

DrawChart = Callable[[Any], None]  # on axes of matplotlib


def drawn(draw: DrawChart, *kinds: str, title: str = "", background: str = "white") -> list[bytes]:
    """Draws a figure, and gives it as a file of each kind. Raises UserError without matplotlib.

    Args:
        draw: draws on the axes.
        kinds: of the files: "svg" or "png".
        title: above the figure.
        background: a colour, or "none".
    """
    with _style() as figure_of:
        figure = figure_of(figsize=SIZE, layout="constrained", facecolor=background)
        draw(figure.subplots())
        if title:
            figure.suptitle(title)  # above the legend, which is above the axes
        return [_file(figure, kind) for kind in kinds]


def _file(figure: Any, kind: str) -> bytes:
    # By the canvas itself: savefig draws everything twice, the first time for the layout alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    content = io.BytesIO()
    figure.set_dpi(DPI)  # which SVG changes
    if kind == "png":
        FigureCanvasAgg(figure).print_png(content)
    else:
        FigureCanvasSVG(figure).print_svg(content, metadata={"Date": None})
    return content.getvalue()


@contextlib.contextmanager
def _style() -> Iterator[Any]:
    """The class of figures, where our style alone counts."""
    # matplotlib reads a matplotlibrc of the working folder, which may be anybody's.
    elsewhere = contextlib.chdir(Path(__file__).parent)
    place = contextlib.nullcontext() if "matplotlib" in sys.modules else elsewhere
    with place, needing("a report with charts", "plots"):
        import matplotlib
        from matplotlib.figure import Figure
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield Figure


def draw_profile(axes: Any, profile: Mapping[str, Sequence[float]], images: int) -> None:
    """Draws which noise levels cost the bits of a bound, with 95 % intervals.

    Args:
        axes: of matplotlib.
        profile: as ``statistics.profile`` gives it.
        images: that it is a mean over.
    """
    edges, density = np.asarray(profile["log_snr_edges"]), np.asarray(profile["bits_per_dim"])
    axes.stairs(density, edges, fill=True, color=COLOURS[0], alpha=0.35)
    if halves := [half_interval(stderr, images) for stderr in profile["stderr"]]:
        axes.errorbar(
            (edges[:-1] + edges[1:]) / 2, density, halves,
            fmt="none", color=COLOURS[0], capsize=2,
        )  # fmt: skip
    # A prediction of zero: half a nat for each dimension.
    nothing = 0.5 / np.log(2)
    axes.axhline(nothing, color=INK, linestyle="--", label="predicting no noise")
    axes.set(
        xlabel="log signal-to-noise ratio: noise on the left, data on the right",
        ylabel="bits/dim for each unit of log-SNR", xlim=(edges[0], edges[-1]),
    )  # fmt: skip
    axes.legend(**ABOVE)
