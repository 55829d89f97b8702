"""The table of scores: a row for each file, in their order; and as a CSV, which has as many digits
as the errors warrant.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer

from scoremle import files
from scoremle.data.readers.base import ImageReport
from scoremle.evaluation.baselines import png_bpd
from scoremle.evaluation.statistics import error_of_few
from scoremle.evaluation.tables import decimals
from scoremle.experiment.reference import ranks
from scoremle.likelihood.profile import Profile
from scoremle.model import Scores
from scoremle.terminal import cell

__all__ = ["ScoreRow", "in_digits", "rows", "write_csv"]

NOT_FINITE = "its bits/dim are not a finite number"
BITS = ("bpd", "error", "png_bpd", "stderr", "probe_stderr", "solver_error")


@dataclass(frozen=True)
class ScoreRow:
    """A file: what it is scored as, or in ``reason`` why it is not.

    Twice the ``error`` covers the truth of about 95 % of images: it is that of a few passes, and
    half of what covers the solver's, together. ``rank`` is the share of the model's own test
    images with less bits/dim, and ``png_bpd`` what the image takes as PNG. ``log_prob`` is in
    nats, all else in bits/dim. Of a file without a score they are NaN.

    Args:
        file: its name.
        changes: what was done to the picture, in words.
        bpd: bits/dim.
        stderr: of a few passes.
        probe_stderr: from random probes.
        solver_error: what covers the solver's error.
        profile: of this image over noise levels, if it was computed.
    """

    file: str
    reason: str = ""
    changes: tuple[str, ...] = ()
    image: Integer[np.ndarray, "h w c"] | None = None
    bpd: float = math.nan
    error: float = math.nan
    log_prob: float = math.nan
    rank: float = math.nan
    png_bpd: float = math.nan
    stderr: float = math.nan
    probe_stderr: float = math.nan
    solver_error: float = math.nan
    profile: Profile | None = None

    @property
    def note(self) -> str:
        """Reason for a missing score, or the changes of the image."""
        return f"not scored: {self.reason}" if self.reason else "; ".join(self.changes)


def rows(
    reports: Sequence[ImageReport],
    images: Integer[np.ndarray, "n h w c"],
    scores: Scores,
    reference: Float[np.ndarray, " m"],
    passes: int,
    profile: Profile | None = None,
) -> list[ScoreRow]:
    """A row for each file.

    Args:
        reports: what became of each file.
        images: of those that have pixels, as the model takes them.
        scores: of these.
        reference: sorted bits/dim of test images; none where they are not known.
        passes: over each image.
        profile: of the images over noise levels, if it was computed.
    """
    columns = {
        "error": np.hypot(error_of_few(scores.stderr, passes), scores.solver_error / 2),
        "rank": ranks(scores.bpd, reference),
        "png_bpd": png_bpd(images),
        **{name: getattr(scores, name) for name in ("log_prob", "bpd", *BITS[3:])},
    }
    found, scored = [], itertools.count()
    for report in reports:
        if report.pixels is None:
            found.append(ScoreRow(report.name, report.reason))
            continue
        i = next(scored)
        values = {name: float(column[i]) for name, column in columns.items()}
        reason, of_row = NOT_FINITE * (not math.isfinite(scores.bpd[i])), profile and profile.of(i)
        row = ScoreRow(report.name, reason, report.changes, images[i], **values, profile=of_row)
        found.append(row)
    return found


def in_digits(row: ScoreRow, dims: int, reference: int) -> dict[str, str]:
    """The numbers of a row with a score, each with as many digits as it warrants.

    Args:
        row: of an image.
        dims: of the image.
        reference: how many test images a rank is among.
    """
    # One pass has no spread: then the known parts of its error give the digits.
    parts = row.probe_stderr, row.solver_error
    error = row.error if math.isfinite(row.error) else math.hypot(*parts)
    digits = {name: decimals(error) for name in BITS}
    digits["log_prob"] = decimals(error * dims * math.log(2))
    if reference:
        digits["rank"] = math.ceil(math.log10(reference))
    values = vars(row)
    if row.solver_error == 0:  # a bound, which has no solver, and so no error of one
        values = values | {"solver_error": math.nan}
    return {name: f"{values[name]:.{places}f}" for name, places in digits.items()}


def _of_profile(profile: Profile | None) -> dict[str, str]:
    """Columns of a profile by their bins and levels, which count from noise to data."""
    if profile is None:
        return {}
    found = {}
    for i, error in enumerate(profile.bits_stderr[0].tolist()):
        found[f"bits_{i + 1}"] = f"{profile.bits[0, i]:.{decimals(error)}f}"
        found[f"bits_stderr_{i + 1}"] = f"{error:.{decimals(error)}f}"
    for i, error in enumerate(profile.trace_stderr[0].tolist()):
        found[f"flipd_{i + 1}"] = f"{profile.flipd[0, i]:.{decimals(error)}f}"
        found[f"flipd_stderr_{i + 1}"] = f"{error:.{decimals(error)}f}"
    return found | {f"norm_{i + 1}": f"{norm:.6g}" for i, norm in enumerate(profile.norms[0])}


def write_csv(
    path: Path, table: Sequence[ScoreRow], *, dims: int, reference: int, estimator: str
) -> None:
    """Writes the CSV.

    Args:
        path: of the file.
        table: a row for each file.
        dims: of an image.
        reference: how many test images a rank is among; for none there is no such column.
        estimator: what the values are, in words. It is in each row that has one, since a
            table may be joined with others.
    """
    columns = ["rank", "bpd", "error", "log_prob", "file", *BITS[2:], "estimator", "note"]
    of_profile = next((_of_profile(row.profile) for row in table if row.profile), {})
    lines = [{"file": cell(row.file), "note": cell(row.note)} for row in table]
    for row, of_row in zip(table, lines, strict=True):
        if not row.reason:
            of_row |= in_digits(row, dims, reference) | _of_profile(row.profile)
            of_row["estimator"] = estimator
    files.write_rows(path, [*columns[0 if reference else 1 :], *of_profile], lines)
