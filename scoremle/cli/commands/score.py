"""``scoremle score MODEL IMAGES``: the likelihood of each of one's own images, as a table.

IMAGES is a picture, a folder or archive of pictures, or a .npy or .npz of uint8; for a model
without pixels, a .npy of reals (``score_points``). The table is a CSV of one line a file, in their
order; a page shows the images in the order of their bits/dim.
"""

import itertools
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from scoremle.cli.commands import Partly, score_on_ray, score_points
from scoremle.errors import UserError
from scoremle.evaluation import tables
from scoremle.experiment import score_table
from scoremle.experiment.models import load, of_images
from scoremle.experiment.own_images import read_images, refuse
from scoremle.experiment.reference import how_to_get, reference_of
from scoremle.experiment.score_table import Row, in_digits
from scoremle.experiment.scoring import Prepared, prepared
from scoremle.files import is_stream
from scoremle.likelihood.score_images import Scored
from scoremle.model import Scores
from scoremle.report.scores import MEANING, About, write_page
from scoremle.resumable import missing
from scoremle.terminal import say

__all__ = ["run"]

# Images that are shown of either end of the list.
SHOWN = 3


def run(options: Any) -> dict[str, Any] | Partly:
    """Scores the images, writes the table, and prints its mean and its ends; gives the mean."""
    if options.engine == "ray":
        return score_on_ray.run(options)
    model = load(options.model, options.checkpoint)
    if model.pixels is None:
        return score_points.run(model, options)
    pixels, shape = of_images(model, options.model)
    looks, images = read_images(
        options.images, shape, pixels.levels, fit=options.fit, skip_bad=options.skip_bad
    )
    images = pixels.checked(images, shape)
    say(f"scoring {len(images)} images of {options.images}")
    say("looking at a few of them first: is the model what it says, and which nodes do they need")
    reference = reference_of(options.model, model, options.estimator, options.label)
    found = prepared(
        reference.as_measured(model), images, options.estimator, options.label, options.steps,
        options.repeats,
    )  # fmt: skip
    for note in found.notes:
        say(*tables.wrapped(note))
    beside = Path() if is_stream(options.out) else options.out.parent
    above = beside / f"{options.out.name}.parts"
    parts = found.parts(above, options.model, images, options.seed)
    if options.shard:
        return _score_share(found, images, options, parts)
    if options.merge:
        names = [look.name for look in looks if look.pixels is not None]
        _check_whole(parts, names, options.repeats)
    scored = _scored(found, images, options, parts)
    own, scores = reference.values, Scores.of_passes(scored.values, model.dims)
    rows = score_table.rows(looks, images, scores, own, options.repeats)
    failed = [(row.file, row.reason) for row in rows if row.image is not None and row.reason]
    refuse(options.images, failed, len(rows), options.skip_bad)
    about = About(
        options.model, str(options.images), pixels.levels, model.dims, len(own),
        _facts(scored, scores, found, options.repeats),
    )  # fmt: skip
    _write(rows, about, f"{found.words}; {_cost(scored, options.repeats)}", options)
    _remove(parts)
    no_ranks = how_to_get(
        options.model, model, options.estimator, options.label, options.checkpoint
    )
    _tell(rows, about, no_ranks)
    say(f"written to {' and '.join(map(str, filter(None, (options.out, options.page))))}")
    summary = _summary(scored, found, rows, options)
    if not (left_out := summary["left_out"]):
        return summary
    say(f"{left_out} of {len(rows)} files have no score: their rows say why")
    return Partly(summary)


def _write(rows: Sequence[Row], about: About, estimator: str, options: Any) -> None:
    """The table, and the page if one is asked for."""
    score_table.write(
        options.out, rows, dims=about.dims, reference=about.reference, estimator=estimator
    )
    if options.page:
        write_page(options.page, rows, about)


def _score_share(
    found: Prepared, images: Integer[np.ndarray, "n h w c"], options: Any, parts: Path
) -> dict[str, Any]:
    """Scores a share of the images and writes no table: the command with --merge does."""
    number, count = options.shard
    first, stop = (len(images) * i // count for i in (number - 1, number))
    if stop > first:
        found.score(
            images, seed=options.seed, passes=options.repeats, parts=parts, label="scores",
            share=slice(first, stop),
        )  # fmt: skip
    say(
        f"share {number} of {count}, {stop - first} images, is in {parts.parent}; when all shares"
        " are done, the same command with --merge puts them together"
    )
    return {"images": stop - first, "parts": str(parts)}


def _check_whole(parts: Path, names: Sequence[str], passes: int) -> None:
    """Raises UserError if shares left an image without a score."""
    left = missing(len(names), passes=passes, folder=parts)
    if not len(left):
        return
    ends = np.flatnonzero(np.diff(left, prepend=-2, append=len(names) + 1) != 1)
    ranges = [f"{left[i] + 1} to {left[j - 1] + 1}" for i, j in itertools.pairwise(ends)]
    raise UserError(
        f"{len(left)} of {len(names)} images have no score in {parts.parent}: {', '.join(ranges)}"
        f" (the first is {names[left[0]]}); run their shares, or leave out --merge to score them"
        " here"
    )


def _scored(
    found: Prepared, images: Integer[np.ndarray, "n h w c"], options: Any, parts: Path
) -> Scored:
    try:
        scored = found.score(
            images, seed=options.seed, passes=options.repeats, parts=parts, label="scores",
            levels=found.levels,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"finished batches are in {parts.parent}: the same command goes on"
        ) from None
    if scored.mean is None:
        raise UserError("no image has bits/dim that are a finite number: check the model")
    return scored


def _remove(parts: Path) -> None:
    """Finished parts, once all that is made of them is written."""
    shutil.rmtree(parts, ignore_errors=True)
    with suppress(OSError):  # those of an interrupted run of other images may be there
        parts.parent.rmdir()


def _facts(scored: Scored, scores: Scores, found: Prepared, passes: int) -> list[str]:
    """The mean, how it is made, and what an image costs."""
    facts = scored.facts
    error = "" if facts["stderr"] is None else f" +- {facts['stderr']:.4f} (over images)"
    lines = [f"mean {facts['mean']:.4f}{error} bits/dim; {found.words}"]
    lines += tables.mean_in_parts(facts)
    told = "one pass can't tell its error: --repeats=2 or more can"
    if passes > 1:
        median = np.nanmedian(scores.stderr)
        told = f"the median standard error is {median:.2g}; four times as many passes halve it"
    return [*lines, f"each image: {_cost(scored, passes)}; {told}"]


def _cost(scored: Scored, passes: int) -> str:
    cost = "1 pass" if passes == 1 else f"{passes} passes"
    if (evaluations := scored.facts.get("mean_nfe")) is not None:
        cost += f" of {evaluations:.0f} network evaluations"
    return cost


def _tell(rows: Sequence[Row], about: About, no_ranks: str) -> None:
    """Prints both ends of the list, the mean, and what the numbers mean."""
    order = sorted((row for row in rows if not row.reason), key=lambda row: row.bpd)
    ends = [*order[:SHOWN], *order[max(SHOWN, len(order) - SHOWN) :]]
    header = ("rank", "bits/dim", "error", "log P, nats", "PNG", "file")
    lines = []
    for row in ends:
        numbers = in_digits(row, about.dims, about.reference)
        columns = ("rank", "bpd", "error", "log_prob", "png_bpd")
        lines.append((*(numbers.get(name, "") for name in columns), row.file))
    shown = slice(0 if about.reference else 1, None)
    say("likeliest, then unlikeliest:")
    text = tables.table(
        header[shown], [line[shown] for line in lines], spare=("PNG", "log P, nats")
    )
    say(*text.splitlines())
    for line in about.facts:
        say(*tables.wrapped(line))
    for line in _outside(order, about.reference) if about.reference else (no_ranks,):
        say(*tables.wrapped(line))
    say(*tables.wrapped(MEANING[0]))


def _outside(rows: Sequence[Row], reference: int) -> Iterator[str]:
    """A line for each end of the test images beyond which images lie."""
    for word, end in (("likelier", 0.0), ("unlikelier", 1.0)):
        if beyond := sum(row.rank == end for row in rows):
            yield f"suspicious: {word} than all {reference} test images of the model: {beyond}"


def _summary(
    scored: Scored, found: Prepared, rows: Sequence[Row], options: Any
) -> dict[str, Any]:
    facts = scored.mean.to_json() if scored.mean else {}
    return {
        "unit": "bits/dim",
        **facts,
        "left_out": sum(bool(row.reason) for row in rows),
        "estimator": found.words,
        "model": options.model,
        "table": str(options.out),
        **({"page": str(options.page)} if options.page else {}),
    }
