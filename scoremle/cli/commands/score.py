"""Computes the likelihood of each of your own images. Writes a CSV with one line for each file, in
their order. After Ctrl-C the same command resumes.

    scoremle score digits my_pictures --fit=resize --page=scores.html
    scoremle score runs/digits images.npy --repeats=8 --out=scores.csv

A page shows the images in the order of their bits/dim. A model without pixels takes points
(``score_points``).
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import scoremle
from scoremle.cli import checks
from scoremle.cli import parts as finished
from scoremle.cli.parser import MODEL, Parser, add_shared
from scoremle.cli.score_words import (
    both_ends,
    error_in_words,
    in_order,
    in_passes,
    mean_in_words,
    verdict,
)
from scoremle.cli.signals import going_on, writing_files
from scoremle.errors import UserError, as_flag
from scoremle.evaluation.tables import wrapped
from scoremle.terminal import counted, is_stream, passing, say

if TYPE_CHECKING:
    from scoremle.experiment.measurement import Measurement
    from scoremle.experiment.score_table import ScoreRow
    from scoremle.likelihood.mean import Mean

logger = logging.getLogger(__name__)
NEEDS = "scoremle.experiment.own_measurement"
TABLE = Path("scores.csv")
# Those of experiment/own_measurement.py, whose import brings JAX.
ESTIMATORS = ("ode", "bound", "steps")
ARRAY = "SLURM_ARRAY_TASK_"
# How clusters number tasks, in variables: the number, the first one, the step, how many there are.
TASKS = (
    (f"{ARRAY}ID", f"{ARRAY}MIN", f"{ARRAY}STEP", f"{ARRAY}COUNT"),
    ("OMPI_COMM_WORLD_RANK", "", "", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "", "", "SLURM_NTASKS"),
)


def arguments(parser: Parser) -> None:
    add = parser.add
    add("model", MODEL)
    add("images", "a picture, a folder or archive of pictures, or a .npy or .npz of uint8; a .npy"
        " of reals [n d] for a model without pixels, whose log p is in nats",
        type=Path)  # fmt: skip
    add("-o --out", "the table to write (scores.csv)", type=Path, default=TABLE,
        metavar="FILE")  # fmt: skip
    add("--page", "a page of HTML to write: the images in the order of their bits/dim", type=Path,
        metavar="FILE")  # fmt: skip
    add("--profile", "also write columns over noise levels: bits, local dimension and norms of the"
        " score of each image; and draw them on the page", action="store_true")  # fmt: skip
    add("--repeats", "passes over each image, whose spread gives its error; each costs the same"
        " (4)", dest="passes", metavar="N", type=checks.at_least(1), default=4)  # fmt: skip
    add("--estimator", "the ODE, the variational bound, or the bound of the model's own steps as"
        " its authors report it (ode)", choices=ESTIMATORS, default="ode")  # fmt: skip
    add("--steps", "for --estimator=steps: number of steps, at most the model's own; a model"
        " without steps of its own gets VDM's; unset: all of its own",
        type=checks.at_least(2))  # fmt: skip
    add("--label", "class of a class-conditional model: a number, or all for the mean over its"
        " classes", default="")  # fmt: skip
    add("--correct", "also correct the mean over images for the solver's error, by more steps on"
        " some images; may take longer than the scores", action="store_true")  # fmt: skip
    add("--seed", "seed of dequantization and probes (0)", type=checks.seed, default=0)
    add_shared(add)
    cluster = parser.add_argument_group("on a cluster")
    shares = cluster.add_mutually_exclusive_group()
    add("--shard", "score the I-th of N shares of the images; without I/N, the share of this"
        " task in an array of SLURM, or among several tasks", group=shares, type=_share,
        metavar="I/N", nargs="?", const="")  # fmt: skip
    add("--merge", "write the table, from the parts that all shares have written", group=shares,
        action="store_true")  # fmt: skip
    add("--engine", "ray: workers of a cluster write Parquet files into the folder --out",
        group=cluster, choices=("ray",), default="")  # fmt: skip
    add("--workers", "number of Ray's workers; unset: one for each GPU, or for four cores",
        group=cluster, type=checks.at_least(1))  # fmt: skip
    add("--address", "address of a running Ray cluster; unset: start Ray on this machine",
        group=cluster, default="")  # fmt: skip


def _share(text: str) -> tuple[int, int]:
    """A share and the number of shares: I/N, or without a text those of a task of a cluster."""
    if not text:
        return _share_of_task()
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text} is not an I/N with I from 1 to N, such as 3/10")
    return int(match[1]), int(match[2])


def _share_of_task() -> tuple[int, int]:
    for names in TASKS:
        unset = "", "0", "1", ""
        found = [os.environ.get(*pair) for pair in zip(names, unset, strict=True)]
        if all(map(str.isdecimal, found)):
            number, least, step, count = map(int, found)
            share, between = divmod(number - least, max(step, 1))
            if not between and 0 <= share < count:
                return share + 1, count
            raise argparse.ArgumentTypeError(
                f"task {number} is not one of {count} from {least} in steps of {step}: give I/N"
            )
    raise argparse.ArgumentTypeError(
        "this is not one of several tasks of SLURM or Open MPI, nor of an array of SLURM: give I/N"
    )


def check(options: Any) -> None:
    checks.exists(options.images)
    if options.steps is not None and options.estimator != "steps":
        raise UserError(f"--steps is of --estimator=steps, not of {options.estimator}")
    if options.profile and options.label == "all":
        raise UserError("--profile is under one label, not under all")
    if options.correct and (options.estimator != "ode" or options.label == "all"):
        raise UserError("--correct is of --estimator=ode, under one label: leave it out")
    (_check_for_ray if options.engine else _check_here)(options)
    checks.model(options)


def _check_here(options: Any) -> None:
    if options.workers or options.address:
        raise UserError("--workers and --address are for --engine=ray: leave them out")
    read = options.model, options.images
    checks.different(read, options.out, _beside(options.out), options.page)
    checks.writable("--out=", options.out, force=options.force, kind=".csv")
    if not is_stream(options.out):
        checks.writable("--out=", _beside(options.out), force=options.force)
    if options.page:
        checks.writable("--page=", options.page, force=options.force, kind=".html")


def _check_for_ray(options: Any) -> None:
    """Refuses what is not for Ray; makes ``--out`` a folder, in which the same command goes on."""
    names = "page", "profile", "shard", "merge", "correct", "force", "skip_bad"
    if given := [as_flag(name) for name in names if getattr(options, name)]:
        raise UserError(f"{given[0]} is not for --engine=ray: leave it out")
    if options.out == TABLE:
        options.out = TABLE.with_suffix("")
    if options.out.is_file() or options.out.suffix == TABLE.suffix:
        raise UserError(f"--out={options.out} must be a folder: workers write files into it")
    out, images = checks.real(options.out), checks.real(options.images)
    if out.is_relative_to(images) or images.is_relative_to(out):
        raise UserError(f"--out={options.out} would be among the images: name a folder elsewhere")
    checks.takes_files(options.out)


def _beside(table: Path) -> Path:
    """The file beside a table, with what is known of it."""
    return Path(f"{table}.json")


def _described(table: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a table, which are written beside it unless it is a stream."""
    if not is_stream(table):
        scoremle.files.write_json(_beside(table), facts)
    return facts


def run(options: Any) -> dict[str, Any]:
    """Scores the images, writes the table, and prints the answer; gives what is beside the table.

    The table and the page are written when the scores are there. To ``--correct`` the mean comes
    after that, and then the page is written again.
    """
    from scoremle.cli.commands import score_on_ray, score_points
    from scoremle.experiment import models, own_images, own_measurement, reference, score_table
    from scoremle.likelihood.score_images import score_images

    if options.engine == "ray":
        return score_on_ray.run(options)
    model = models.load_to_score(options.model, options.checkpoint)
    if model.pixels is None:
        return _described(options.out, score_points.run(model, options))
    if options.profile:
        _check_can_profile(model)
    pixels, shape = models.of_images(model, options.model)
    reports, images = own_images.read_images(
        options.images, shape, pixels.levels, fit=options.fit, skip_bad=options.skip_bad,
        written=[*filter(None, (options.out, _beside(options.out), options.page))],
    )  # fmt: skip
    images = pixels.checked(images, shape)
    known = reference.reference_of(options.model, model, options.estimator, options.label)
    with passing("choosing the solver's steps on a few images"):
        found = own_measurement.prepared(
            known.as_measured(model), images, options.estimator, options.label, options.steps,
            options.passes, options.correct,
        )  # fmt: skip
    say(*wrapped(*found.doubts))
    levels = found.choice and found.choice.levels
    if options.correct and not levels:
        logger.warning("the mean is not corrected: that takes a pilot on four images or more")
    passes = options.passes
    parts = found.parts(finished.above(options.out), options.model, images, options.seed)
    score = partial(
        score_images, found.model, found.estimator, images, dequantizer=found.dequantizer,
        seed=options.seed, passes=passes, parts=parts, label="scores",
    )  # fmt: skip
    if options.shard:
        left_out = len(reports) - len(images)
        return _score_share(score, len(images), options.shard, parts) | {"left_out": left_out}
    if options.merge:
        names = [report.name for report in reports if report.pixels is not None]
        _check_whole(parts, names, passes)
    with finished.kept(parts):
        scored = score()
    if scored.mean is None:
        raise UserError("no image has bits/dim that are a finite number: check the model")
    own, scores = known.values, scoremle.Scores.of_passes(scored.values, model.dims)
    profile = None
    if options.profile:
        profile = found.model.profile(images, seed=options.seed, label="profiles")
    rows = score_table.rows(reports, images, scores, own, passes, profile)
    failed = [(row.file, row.reason) for row in rows if row.image is not None and row.reason]
    own_images.refuse(options.images, failed, len(rows), options.skip_bad)
    no_ranks = reference.how_to_get(
        options.model, model, options.estimator, options.label, options.checkpoint
    )
    words = verdict([row for row in rows if not row.reason], len(own)) or no_ranks
    answer, mean = _Answer(options, found, rows, len(own), words), scored.mean
    _check_here(options)  # another process may have written there
    with writing_files(options.out):
        summary = answer.write(mean, last=not levels)
    if levels:
        with going_on(f"{options.out} is written, and its mean is not corrected: the same command"
                      " with --force resumes"):  # fmt: skip
            mean = cast("Mean", scored.corrected(levels, own_measurement.SOLVER_TOLERANCE).mean)
        summary = answer.write(mean, last=True)
    finished.remove(parts)
    answer.show(mean, summary["left_out"])
    return summary


def _check_can_profile(model: Any) -> None:
    """Raises UserError for a model without one log-SNR for all pixels."""
    if not isinstance(model, scoremle.ScoreModel):
        raise UserError("--profile is for models with noise, and this is a flow: leave it out")
    if model.sde.schedule.per_dimension:
        raise UserError("--profile is over log-SNR: each pixel has its own here; leave it out")


class _Answer(NamedTuple):
    """Writes and prints the scores of images, with a mean that may be corrected later."""

    options: Any
    found: Measurement
    rows: Sequence[ScoreRow]
    reference: int
    verdict: str

    def write(self, mean: Mean, last: bool) -> dict[str, Any]:
        """Writes the table, its facts and the page: a pipe at the ``last`` call alone."""
        from scoremle.experiment import score_table

        options, cost = self.options, in_passes(mean)
        facts = [_mean(mean, self.found), *mean.breakdown(), f"each image: {cost}; "
                 + error_in_words(self.rows, options.passes), *self.found.notes]  # fmt: skip
        summary = _summary(mean, self.found, self.rows, options)
        summary["facts"] = [self.verdict, *facts]
        if last or not is_stream(options.out):
            score_table.write_csv(
                options.out, self.rows, dims=self.found.model.dims, reference=self.reference,
                estimator=f"{self.found.title}; {cost}",
            )  # fmt: skip
        _described(options.out, summary)
        if options.page and (last or not is_stream(options.page)):
            from scoremle.report.scores import write_page

            write_page(
                options.page, f"Scores of {options.images}", options.model, self.rows,
                self.verdict, facts, levels=self.found.model.pixels.levels,
                reference=self.reference,
            )  # fmt: skip
        return summary

    def show(self, mean: Mean, left_out: int) -> None:
        """Prints the verdict, the mean, both ends of the images, and where they are written."""
        options = self.options
        ordered = [*in_order(self.rows, self.found.model.dims, self.reference)]
        say(*wrapped(self.verdict, _mean(mean, self.found), *both_ends(ordered)))
        say(f"written to {' and '.join(map(str, filter(None, (options.out, options.page))))}")
        if left_out:
            say(f"{left_out} of {len(self.rows)} files have no score: their rows say why")


def _score_share(
    score: Callable[..., object], images: int, share: tuple[int, int], parts: Path
) -> dict[str, Any]:
    """Scores a share of the images and writes no table: the command with --merge does."""
    number, count = share
    first, stop = (images * i // count for i in (number - 1, number))
    if stop > first:
        score(share=slice(first, stop))
    say(
        f"share {number} of {count}, {counted(stop - first, 'image')}, is in {parts.parent}; when"
        " all shares are done, the same command with --merge puts them together"
    )
    return {"images": stop - first, "parts": str(parts)}


def _check_whole(parts: Path, names: Sequence[str], passes: int) -> None:
    """Raises UserError if shares left an image without a score."""
    left = scoremle.resumable.missing(len(names), passes=passes, folder=parts)
    if not len(left):
        return
    runs = itertools.groupby(enumerate(left), lambda pair: pair[1] - pair[0])
    numbers = [[int(number) + 1 for _, number in group] for _, group in runs]
    ranges = ", ".join(f"{group[0]} to {group[-1]}" for group in numbers)
    raise UserError(
        f"{len(left)} of {len(names)} images have no score in {parts.parent}: {ranges} (the first"
        f" is {names[left[0]]}); run their shares, or leave out --merge to score them here"
    )


def _mean(mean: Mean, found: Measurement) -> str:
    """The mean with its errors, and what it is."""
    solver = mean.solver_of_mean
    of_solver = f", to which the solver adds at most {solver:.2g}" if solver else ""
    return f"{mean_in_words(mean, 'bits/dim')}{of_solver}; {found.title}"


def _summary(
    mean: Mean, found: Measurement, rows: Sequence[ScoreRow], options: Any
) -> dict[str, Any]:
    facts = mean.to_json()
    if profile := next((row.profile for row in rows if row.profile), None):
        facts["log_snr_edges"] = profile.log_snr_edges.tolist()
        facts["log_snr_of_norms"] = profile.levels.tolist()
    return {
        "unit": "bits/dim",
        **facts,
        "left_out": sum(bool(row.reason) for row in rows),
        "estimator": found.title,
        "model": options.model,
        "table": str(options.out),
        **({"page": str(options.page)} if options.page else {}),
    }
