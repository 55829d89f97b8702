"""Writes a report: one page of HTML, and beside it each of its charts as SVG and PNG."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import scoremle
from scoremle.report import sections
from scoremle.report.page import Page
from scoremle.report.subject import Subject

__all__ = ["CHARTS", "write_report"]

# The folder of the charts, beside the page.
CHARTS = "charts"


def write_report(folders: Sequence[Path], out: Path, *, eval_folder: str = "eval") -> None:
    """Writes the page about these working directories, and its charts beside it.

    Args:
        folders: one working directory, or several that are compared with the first.
        out: the page to write.
        eval_folder: where the results lie in each of them.

    Raises UserError for a folder that is no working directory, and without matplotlib.
    """
    subjects = [Subject(folder, eval_folder) for folder in folders]
    names = [f"{subject.name} ({subject.config.data.dataset})" for subject in subjects]
    if len(subjects) == 1:
        page = Page(f"Report of {names[0]}", _made())
        drawn = sections.tell(page, subjects[0])
    else:
        page = Page(f"Comparison of {', '.join(names)}", _made())
        drawn = sections.compare(page, subjects)
    for chart in drawn:
        chart.write(out.parent / CHARTS)
    page.write(out)


def _made() -> str:
    return f"Made by scoremle {scoremle.__version__} on {date.today():%d %B %Y}."
