"""``scoremle report WORKDIR...``: a page about a training and its evaluation, to look at."""

from typing import Any

from scoremle.report.write import CHARTS, write_report
from scoremle.terminal import say

__all__ = ["run"]


def run(options: Any) -> None:
    """Writes the page, and says where it is."""
    out = options.out or options.workdirs[0] / "report" / "index.html"
    write_report(options.workdirs, out, eval_folder=options.eval_folder)
    say(f"report: {out}; its charts as SVG and PNG: {out.parent / CHARTS}")
