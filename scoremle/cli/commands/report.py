"""``scoremle report WORKDIR...``: a page about a training and its evaluation, to look at."""

import shlex
from pathlib import Path
from typing import Any

from scoremle.errors import UserError
from scoremle.experiment.models import is_model_alone, is_published
from scoremle.files import inside, is_stream
from scoremle.report.write import CHARTS, write_report
from scoremle.terminal import say

__all__ = ["run"]


def run(options: Any) -> None:
    """Writes the page, and says where it is."""
    for place in options.workdirs:
        _check(str(place))
    out = options.out or inside(options.workdirs[0], "report", writing=True) / "index.html"
    write_report(options.workdirs, out, eval_folder=options.eval_folder)
    charts = "" if is_stream(out) else f"; its charts as SVG and PNG: {out.parent / CHARTS}"
    say(f"report: {out}{charts}")


def _check(place: str) -> None:
    """Raises UserError for a model that is no working directory, and for any other file."""
    if is_model_alone(place):
        model = shlex.quote(place)
        make = f"scoremle import {model} WORKDIR makes one of it, and "
        raise UserError(
            f"{place} is a model, and a report is of a working directory:"
            f" {make if is_published(place) else ''}scoremle score {model} IMAGES"
            " --page=FILE.html writes a page about images under it"
        )
    if Path(place).is_file():
        raise UserError(f"{place} is a file, and a report is of a working directory")
