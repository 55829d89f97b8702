"""Writes a page about a training and its evaluation, to look at: one file of HTML that needs no
network. Its charts are also written beside it, as SVG and PNG.

    scoremle report runs/digits
    scoremle report runs/digits runs/other --out=comparison.html
"""

import shlex
from pathlib import Path
from typing import Any

from scoremle.cli import checks
from scoremle.cli.parser import Parser
from scoremle.errors import UserError
from scoremle.experiment.shipped import NAMES
from scoremle.terminal import is_stream, say

NEEDS = "scoremle.report.write"


def arguments(parser: Parser) -> None:
    add = parser.add
    add("workdirs", "the folder of a training and its results; several are compared with the"
        " first", metavar="WORKDIR", nargs="+", type=Path)  # fmt: skip
    add("-o --out", "the page to write (WORKDIR/report/index.html)", type=Path, metavar="FILE")
    add("--eval-folder", "folder in WORKDIR to read (eval)", metavar="NAME", default="eval",
        type=checks.folder_name)  # fmt: skip


def check(options: Any) -> None:
    """Raises UserError for a workdir that is not there, and a page that can't be written.

    What names a model is left to ``run``.
    """
    if options.out:
        checks.writable("--out=", options.out, force=True, kind=".html")
    for place in options.workdirs:
        if ":" not in str(place) and str(place) not in NAMES:
            checks.exists(place)


def run(options: Any) -> None:
    """Writes the page, and says where it is."""
    from scoremle.experiment.models import is_model_alone, is_published
    from scoremle.files import inside
    from scoremle.report.write import charts_of, write_report

    for place in map(str, options.workdirs):
        if is_model_alone(place):
            model = shlex.quote(place)
            make = f"scoremle import {model} WORKDIR makes one of it, and " * is_published(place)
            raise UserError(
                f"{place} is a model, and a report is of a working directory: {make}scoremle score"
                f" {model} IMAGES --page=FILE.html writes a page about images under it"
            )
        if Path(place).is_file():
            raise UserError(f"{place} is a file, and a report is of a working directory")
    out = options.out or inside(options.workdirs[0], "report", writing=True) / "index.html"
    write_report(options.workdirs, out, eval_folder=options.eval_folder)
    charts = "" if is_stream(out) else f"; its charts as SVG and PNG: {charts_of(out)}"
    say(f"report: {out}{charts}")
