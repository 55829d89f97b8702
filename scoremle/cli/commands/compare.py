"""The difference of bits/dim between two models, image by image, with its error: B minus A.

    scoremle compare runs/vp runs/subvp
    scoremle compare before.csv after.csv --json

What makes an image likely or unlikely under both cancels: the standard error is that of the mean
difference, and contains all random errors. The means of evaluations are corrected for the ODE's
solver, as in their results. Its error of single images is not random: it is printed beside.
"""

import csv
import io
import logging
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import scoremle
from scoremle.cli import checks
from scoremle.cli.parser import Parser
from scoremle.errors import UserError
from scoremle.evaluation.tables import difference_in_cells, table, wrapped
from scoremle.terminal import say

if TYPE_CHECKING:
    from scoremle.evaluation.result import Result

NEEDS = "scoremle.evaluation.statistics"
logger = logging.getLogger(__name__)

PLACES = (
    "a working directory that was evaluated, the folder of an evaluation in it, a .npz in that"
    " folder, or a .csv of scoremle score"
)


# The end of a name of what was measured on other images than those of the working directory.
OF_OTHERS = re.compile(r"_of_[0-9a-f]{8}$")
# Of a table of scores, those that are compared.
COLUMNS = ("bpd", "solver_error", "png_bpd", "file", "image", "estimator")


class ComparedMeasurement(NamedTuple):
    """Bits/dim of images, and evidence whether others are the same images, where it is known.

    ``bpd``: an array [n]. ``png``: what they take as PNG, as a table has it, and as a number.
    ``estimator``: what the values are, in words, if the table says so.
    """

    bpd: Any
    images: Any
    solver_error: float | None
    png: Sequence[tuple[str, float]] = ()
    estimator: str = ""


def arguments(parser: Parser) -> None:
    parser.add("first", PLACES, metavar="A", type=Path)
    parser.add("second", PLACES, metavar="B", type=Path)
    parser.add("--json", "print the result as JSON", action="store_true")


def run(options: Any) -> dict[str, dict[str, Any]]:
    """Prints the differences of all that was measured of both, and gives them."""
    first, second = _read(options.first), _read(options.second)
    if not (pairs := _pairs(first, second)):
        has = (f"{place} has {', '.join(found)}" for place, found in
               ((options.first, first), (options.second, second)))  # fmt: skip
        raise UserError(f"nothing was measured of both: {'; '.join(has)}")
    found = {kind: _compared(kind, *pair) for kind, pair in pairs.items()}
    rows = [(kind, *_in_words(facts)) for kind, facts in found.items()]
    say(f"A: {options.first}", f"B: {options.second}", *table(HEADER, rows).splitlines())
    say(*wrapped(WORDS))
    return found


WORDS = (
    "bits/dim; below zero, B finds the images likelier. A and B are means over images; those of"
    " evaluations are corrected for the solver, as in their results. The standard error is over"
    " images: the solver's error of an image, which is printed beside it, is not in it"
)
HEADER = ("measured", "A", "B", "B - A", "std. error", "images", "solver, A", "solver, B")


def _pairs(
    first: Mapping[str, ComparedMeasurement], second: Mapping[str, ComparedMeasurement]
) -> dict[str, tuple[ComparedMeasurement, ComparedMeasurement]]:
    """Measurements of one kind by A and by B: those of the same images, if any are known to be.

    The name of one on another data set than the model's own ends with the images' hash, which
    stays where there are several of a kind.
    """
    pairs = defaultdict(list)
    for (name, a), (other, b) in product(first.items(), second.items()):
        if (kind := OF_OTHERS.sub("", name)) == OF_OTHERS.sub("", other):
            pairs[kind].append((max(name, other, key=len), (a, b)))
    found: dict[str, tuple[ComparedMeasurement, ComparedMeasurement]] = {}
    for kind, each in pairs.items():
        same = {name: (a, b) for name, (a, b) in each if a.images == b.images}
        _, some = each[0]
        found |= same if len(same) > 1 else {kind: next(iter(same.values()), some)}
    return found


def _compared(kind: str, a: ComparedMeasurement, b: ComparedMeasurement) -> dict[str, Any]:
    """Raises UserError if they are not of the same images."""
    from scoremle.evaluation.statistics import paired_difference

    known, b = None not in (a.images, b.images), _in_order_of(a, b)
    if len(a.bpd) != len(b.bpd) or (known and a.images != b.images):
        named = known and kind == "scores"  # a table has the name of each
        first = f"; the first are named {a.images[0]} and {b.images[0]}" if named else ""
        raise UserError(
            f"{kind}: A and B are not of the same images ({len(a.bpd)} and {len(b.bpd)}){first}"
        )
    if others := sum(not _agree(*pair) for pair in zip(a.png, b.png, strict=False)):
        logger.warning(
            "%d of %d images take other bits/dim as PNG in A than in B: are these the same images,"
            " of one size?", others, len(a.bpd),
        )  # fmt: skip
    if a.estimator and b.estimator:
        if a.estimator != b.estimator:
            logger.warning(
                "%s: A is %s, and B is %s: what they differ by is in the difference",
                kind, a.estimator, b.estimator,
            )  # fmt: skip
    elif (a.solver_error is None) != (b.solver_error is None):
        logger.warning(
            "%s: of A and B one has the error of an ODE's solver, and %s has none: if that is a"
            " bound, its gap is in the difference", kind, "A" if a.solver_error is None else "B",
        )  # fmt: skip
    found = paired_difference(a.bpd, b.bpd)
    return {
        "a": float(a.bpd.mean()),
        "b": float(b.bpd.mean()),
        "difference": found.mean,
        "stderr": found.stderr if found.images > 1 else None,
        "images": found.images,
        "a_solver_error": a.solver_error,
        "b_solver_error": b.solver_error,
    }


def _in_order_of(a: ComparedMeasurement, b: ComparedMeasurement) -> ComparedMeasurement:
    """B in the order of A, where both have the same names of files, each once."""
    if not isinstance(a.images, list) or not isinstance(b.images, list):
        return b
    index = {name: i for i, name in enumerate(b.images)}
    if len(index) != len(b.images) or sorted(a.images) != sorted(b.images):
        return b
    order = [index[name] for name in a.images]
    png = [b.png[i] for i in order] if b.png else b.png
    return b._replace(bpd=b.bpd[order], images=a.images, png=png)


def _agree(one: tuple[str, float], other: tuple[str, float]) -> bool:
    """Whether two numbers may be one, which was written with more or fewer digits."""
    unit = max(10.0 ** -len(text.partition(".")[2]) for text, _ in (one, other))
    return abs(one[1] - other[1]) < 1.01 * unit


def _in_words(facts: dict[str, Any]) -> list[str]:
    errors = [facts[name] for name in ("a_solver_error", "b_solver_error")]
    known = facts["stderr"] is not None
    gap, stderr = difference_in_cells(facts["difference"], facts["stderr"] if known else math.nan)
    return [
        *(f"{facts[name]:.4f}" for name in ("a", "b")),
        gap,
        stderr if known else "not measured",
        str(facts["images"]),
        *("" if error is None else f"{error:.5f}" for error in errors),
    ]


# What was measured -------------------------------------------------------------------------------


def _read(place: Path) -> dict[str, ComparedMeasurement]:
    """Reads results by kind: of a folder those of the newest checkpoint, of a file its content."""
    from scoremle.experiment import results

    checks.exists(place)
    if place.suffix.lower() == ".csv" and place.is_file():
        return {"scores": _of_scores(place)}
    if place.suffix.lower() == ".npz" and place.is_file():
        found = next((r for r in results.measured(place.parent) if r.name == place.stem), None)
        return {_kind(place.stem): _of_arrays(scoremle.files.named(place), found)}
    for folder in (place, place / "eval"):
        if (folder / results.RESULTS).is_file():
            of_bits = [r for r in results.measured(folder) if r.metric == "bpd"]
            return {
                _kind(r.name): _of_arrays(scoremle.files.inside(folder, f"{r.name}.npz"), r)
                for r in results.of_newest(of_bits)
            }
    raise UserError(f"{place} holds no results: name {PLACES}")


def _kind(name: str) -> str:
    """The name of a result without that of its checkpoint."""
    return name.rpartition("_ckpt_")[0] or name


def _of_arrays(path: Path, result: "Result | None") -> ComparedMeasurement:
    from scoremle.evaluation.result import column_of

    if result:
        bpd = result.corrected_values if result.metric == "bpd" else None
        known = result.data_hash or None, result.solver_error
    else:
        values, known = column_of(scoremle.files.read_npz(path), "bpd"), (None, None)
        bpd = None if values is None else values.astype(float).mean(axis=0)
    if bpd is None:
        raise UserError(f"{path} has no bits/dim of images")
    return _checked(path, bpd, *known)


def _of_scores(path: Path) -> ComparedMeasurement:
    import numpy as np

    content = scoremle.files.read_bytes(scoremle.files.named(path), scoremle.bounded.MAX_TEXT)
    try:
        cells = _rows(content.decode())
        rows = [row for row in cells if row["bpd"]]  # a file that was left out has none
        bpd, errors = (
            np.array([float(row[name]) for row in rows]) for name in ("bpd", "solver_error")
        )
        # "image" is of 0.1; a tar that was made of "." has "./" before each name.
        names = [row.get("file", row.get("image", "")).removeprefix("./") for row in rows]
        png = [(row["png_bpd"], float(row["png_bpd"])) for row in rows if "png_bpd" in row]
        estimators = {(row.get("estimator") or "").partition(";")[0] for row in rows}
    except (KeyError, TypeError, ValueError, csv.Error):
        raise UserError(f"{path} is not a table of images from scoremle score") from None
    known = errors.size and np.isfinite(errors).all()  # a bound has none
    found = _checked(path, bpd, names, float(errors.mean()) if known else None)
    return found._replace(png=png, estimator=" or ".join(sorted(estimators)))


def _rows(text: str) -> list[dict[str, str]]:
    """The cells of the known columns alone: a stranger's table may have very many others."""
    rows = csv.reader(io.StringIO(text, newline=""))
    header = next(rows, [])
    index = {name: header.index(name) for name in COLUMNS if name in header}
    return [
        {name: row[i] if i < len(row) else "" for name, i in index.items()} for row in rows if row
    ]


def _checked(path: Path, bpd: Any, images: Any, solver_error: float | None) -> ComparedMeasurement:
    """Raises UserError where there is no image, or one without a finite number."""
    if not (bpd.size and math.isfinite(bpd.sum())):
        raise UserError(f"{path} has no bits/dim of images, or some that are not finite numbers")
    return ComparedMeasurement(bpd, images, solver_error)
