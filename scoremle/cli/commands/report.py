"""``scoremle report WORKDIR...``: a page about a training and its evaluation, to look at.

The page is one file of HTML that needs no network. Its charts are also written beside it, as SVG
and PNG. Of several working directories it shows the results side by side.
"""

from pathlib import Path

from scoremle.cli.commands import Parser
from scoremle.report.write import CHARTS, write_report

__all__ = ["main"]


def main(arguments: list[str]) -> None:
    """Writes the page, and says where it is."""
    parser = Parser(prog="scoremle report", description=__doc__)
    parser.add_argument("workdirs", nargs="+", type=Path, help="one, or several to compare")
    parser.add_argument("--out", type=Path, help="the page to write (WORKDIR/report/index.html)")
    parser.add_argument("--eval_folder", default="eval", help="where the results lie (eval)")
    options = parser.parse_args(arguments)
    out = options.out or options.workdirs[0] / "report" / "index.html"
    write_report(options.workdirs, out, eval_folder=options.eval_folder)
    print(f"report: {out}; its charts as SVG and PNG: {out.parent / CHARTS}")
