"""Writes a report: one page of HTML, and beside it each of its charts as SVG and PNG."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import scoremle
from scoremle.bounded import MAX_TEXT
from scoremle.errors import UserError
from scoremle.experiment.workdir import Workdir
from scoremle.files import inside, named, read_bytes
from scoremle.report import sections
from scoremle.report.page import Page
from scoremle.report.subject import Subject, names_of
from scoremle.terminal import is_stream

__all__ = ["charts_of", "write_report"]

# Every report says so.
MADE_BY = "Made by scoremle "


def write_report(folders: Sequence[Path], out: Path, *, eval_folder: str = "eval") -> None:
    """Writes the page about these working directories, and its charts beside it.

    Args:
        folders: one working directory, or several that are compared with the first.
        out: the page to write.
        eval_folder: the folder of the results in each of them.

    Raises UserError for a folder that is not a working directory, for another file
    in its place, and without matplotlib.
    """
    check_own(out)
    subjects = [Subject(Workdir(folder), eval_folder) for folder in folders]
    of_each = zip(names_of(subjects), subjects, strict=True)
    names = [f"{name} ({subject.config.data.dataset})" for name, subject in of_each]
    alone = len(subjects) == 1
    title = f"Report of {names[0]}" if alone else f"Comparison of {', '.join(names)}"
    page = Page(title, f"{MADE_BY}{scoremle.__version__} on {date.today():%d %B %Y}.")
    drawn = sections.describe_one(page, subjects[0]) if alone else sections.compare(page, subjects)
    page.write(out)  # first: it is the sign that the charts beside it may be written over
    if not is_stream(out):
        for chart in drawn:
            chart.write(inside(out.parent, charts_of(out).name, writing=True))


def charts_of(out: Path) -> Path:
    """The folder of a page's charts, beside it: each page has its own.

    Args:
        out: the page.
    """
    return out.with_name(f"{out.stem}_charts")


def check_own(out: Path) -> None:
    """Raises UserError for a page, and for charts beside none, that no report has written."""
    if is_stream(out):
        return
    if out.exists() and not _is_own(out):
        raise UserError(f"{out} is there, and is not a report of scoremle: name another --out")
    if not out.exists() and (charts := charts_of(out)).exists():
        raise UserError(
            f"{charts} is there without a report, which would write its charts there: name"
            " another --out"
        )


def _is_own(page: Path) -> bool:
    return page.is_file() and MADE_BY.encode() in read_bytes(named(page), MAX_TEXT)
