"""Tables of results, as text, no wider than the screen where there is one."""

import math
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence

from scoremle.errors import in_a_line

__all__ = ["decimals", "difference_in_cells", "screen_width", "table", "wrapped"]

MOST_DECIMALS = 6
# Those of a mean: a difference of two has no fewer.
DECIMALS_OF_MEANS = 4


def decimals(error: float) -> int:
    """Decimals of a value with this error: those of two digits of the error.

    Args:
        error: of the value.
    """
    if not (math.isfinite(error) and error > 0):
        return MOST_DECIMALS
    return min(MOST_DECIMALS, max(0, 1 - math.floor(math.log10(error))))


def difference_in_cells(mean: float, stderr: float) -> tuple[str, str]:
    """The difference of two means with its sign, and its standard error.

    Both have as many decimals as the error warrants: that of image by image may be far smaller
    than those of the means.

    Args:
        mean: in bits/dim.
        stderr: its standard error, or half of its interval; NaN where it is unknown.
    """
    warranted = 0 if math.isnan(stderr) else decimals(stderr)
    places = max(DECIMALS_OF_MEANS, warranted)
    return f"{mean:+z.{places}f}", f"{stderr:.{places}f}"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, spare: Sequence[str] = ()
) -> str:
    """Columns of text, aligned.

    On a screen that is too narrow, columns of ``spare`` are left out, the first of them first, and
    a line says which.

    Args:
        header: of the columns.
        rows: of texts, one for each column.
        spare: columns that may be left out.
    """
    lines = [[in_a_line(cell) for cell in line] for line in (header, *rows)]
    widths = {name: max(len(line[i]) for line in lines) for i, name in enumerate(header)}
    left_out = _too_much(widths, spare)
    kept = [i for i, name in enumerate(header) if name not in left_out]
    text = ["  ".join(line[i].ljust(widths[header[i]]) for i in kept) for line in lines]
    rule = "  ".join("-" * widths[header[i]] for i in kept)
    note = [f"no room for: {', '.join(left_out)}"] if left_out else []
    return "\n".join(line.rstrip() for line in [text[0], rule, *text[1:], *note])


def _too_much(widths: Mapping[str, int], spare: Sequence[str]) -> list[str]:
    """The columns that do not fit the screen."""
    left_out: list[str] = []
    room = screen_width()
    for name in spare:
        kept = [width + len("  ") for other, width in widths.items() if other not in left_out]
        if room is None or sum(kept) - len("  ") <= room:
            break
        left_out.append(name)
    return left_out


def screen_width() -> int | None:
    """Columns of the terminal; None where the output is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrapped(*texts: str) -> list[str]:
    """Lines that fit the screen: each text is cut between words, and its later lines are set in.

    Args:
        texts: one line each.
    """
    lines, width = [*map(in_a_line, texts)], screen_width()
    if width is None:
        return lines
    return [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent="  ")]
