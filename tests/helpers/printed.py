"""Numbers as they are printed, with as many digits as their error warrants."""

import csv
import math
from collections.abc import Iterable
from pathlib import Path

__all__ = ["assert_printed", "column"]

# Of what another batch or processor rounds otherwise, before it is printed.
ROUNDING = 1e-5


def column(path: Path, name: str = "bpd") -> list[str]:
    """The texts of a column of a CSV; rows without one are left out."""
    with path.open(newline="") as file:
        return [row[name] for row in csv.DictReader(file) if row[name]]


def assert_printed(texts: Iterable[str], values: Iterable[float]) -> None:
    """Each text is its value, rounded to the digits that the text itself has."""
    for text, value in zip(texts, values, strict=True):
        half = 0.5 * 10.0 ** -len(text.partition(".")[2])
        assert math.isclose(float(text), value, rel_tol=ROUNDING, abs_tol=half * (1 + ROUNDING)), (
            text, value,
        )  # fmt: skip
