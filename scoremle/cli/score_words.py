"""Sentences about scores, as the commands print them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from scoremle.terminal import counted

if TYPE_CHECKING:
    from scoremle.experiment.score_table import ScoreRow
    from scoremle.likelihood.mean import Mean

# Images that are shown of either end of the list.
SHOWN = 3
# The number of test images with which 1 in 20 images of the same kind lies beyond all of them by
# chance: 2 / (39 + 1).
FEWEST = 39


def verdict(rows: Sequence[ScoreRow], reference: int) -> str:
    """Counts the images that lie beyond all test images of the model; "" without such images.

    Of images of their kind, 2 in ``reference`` + 1 lie there by chance.
    """
    if not reference:
        return ""
    chance = 2 / (reference + 1)
    if reference < FEWEST:
        return (
            f"no verdict: with {reference} test images of the model, {chance:.0%} of such images"
            f" lie beyond all of them by chance; at least {FEWEST} are needed"
        )
    beyond = {"likelier": 0.0, "unlikelier": 1.0}
    counts = {word: sum(row.rank == end for row in rows) for word, end in beyond.items()}
    found = " and ".join(f"{count} {word}" for word, count in counts.items() if count)
    beyond_all, expected = sum(counts.values()), chance * len(rows)
    stand = "stands" if beyond_all == 1 else "stand"
    line = f"{beyond_all:,} of {counted(len(rows), 'image')} {stand} out"
    if not beyond_all:
        return f"{line}: each lies within the {reference:,} test images of the model"
    return (
        f"{line} (about {expected:.{'1g' if expected < 1 else '0f'}} expected by chance): {found}"
        f" than all {reference:,} test images of the model"
    )


def mean_in_words(mean: Mean, unit: str, of: str = "images") -> str:
    """The mean over images, with its standard error."""
    error = "" if mean.stderr is None else f" +- {mean.stderr:.4f} (over {of})"
    return f"mean {mean.mean:.4f}{error} {unit}"


def in_passes(mean: Mean) -> str:
    """The passes over an image, and the evaluations of the network in each, if known."""
    cost = counted(mean.passes, "pass")
    if mean.evaluations is not None:
        cost += f" of {mean.evaluations:.0f} network evaluations"
    return cost


def error_in_words(rows: Sequence[ScoreRow], passes: int) -> str:
    """The standard error of an image, in the median of rows with a score."""
    if passes == 1:
        return "one pass has no spread and so no error: use --repeats=2 or more"
    known = [row.error for row in rows if math.isfinite(row.error)]
    if not known:
        return "the solver states no error, so that the error of an image is not known"
    median = statistics.median(known)
    return (
        f"the median standard error is {median:.2g}; four times as many passes halve all of it but"
        " the solver's part"
    )


def in_order(rows: Sequence[ScoreRow], dims: int, reference: int) -> Iterator[str]:
    """Each image with its bits/dim and their error, the likeliest first."""
    from scoremle.experiment.score_table import in_digits

    for row in sorted((row for row in rows if not row.reason), key=lambda row: row.bpd):
        numbers = in_digits(row, dims, reference)
        error = f" +- {numbers['error']}" * math.isfinite(row.error)
        yield f"{row.file} {numbers['bpd']}{error}"


def both_ends(shown: Sequence[str]) -> Iterator[str]:
    """A line for each end of what is in the order of likelihood: a few, the outermost first."""
    likely, rest = shown[:SHOWN], shown[SHOWN:]
    for word, end in (("likeliest", likely), ("unlikeliest", rest[-SHOWN:][::-1])):
        if end:
            yield f"{word}: {', '.join(end)}"
