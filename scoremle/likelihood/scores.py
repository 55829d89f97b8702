"""Scores of integer images: log P and bits/dim of each, with their errors."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from scoremle.core.arguments import check_count
from scoremle.errors import UserError, needing
from scoremle.likelihood.mean import Mean, over_passes
from scoremle.likelihood.pilot import Choice
from scoremle.terminal import html_table

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["INDEX", "SCORE_COLUMNS", "Scores"]

# Columns of a table of scores: the index of an image, and the fields of its Scores.
INDEX = "index"
SCORE_COLUMNS = ("log_prob", "bpd", "stderr", "probe_stderr", "solver_error")

# Rows of each end that a notebook shows.
SHOWN = 5
# In bits/dim: a solver's error above this is worth a line.
LARGE = 0.01


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Scores of each image: log P(x) of its integers in nats, bits/dim, and errors in bits/dim.

    ``log_prob`` and ``bpd`` are means over independent passes, each with its own dequantization
    noise and probes. ``stderr`` is the standard error of that mean, by the spread of the passes.
    It contains all that is random; it is NaN for one pass.

    The other two are estimated within each pass. ``probe_stderr`` is the error of the mean by the
    random probes, or by the random times of a bound. The dequantization noise, often the larger
    part, is not in it. From a single probe it is estimated along the path: it may be far too large
    where steps are few, and it is NaN where the probe stays the same. ``solver_error`` should
    cover the ODE solver's error, as a mean over passes. The solver's error is not random: it is
    not in ``stderr``, and does not shrink with more passes. A bound has none.

    ``mean`` is that over images, with its errors part by part; None where it was not computed.
    ``choice`` is the pilot's, of the solver, if a tolerance was given: ``mean`` is then corrected.
    ``estimator`` says whether the number is exact or a bound, and names the dequantization noise.

    Example:
        >>> bpd = np.asarray([[3.0], [5.0]])  # of two passes over one image
        >>> scores = scoremle.Scores.of_passes({"bpd": bpd}, dims=10)
        >>> print(len(scores), scores.bpd, scores.stderr, scores.log_prob / np.log(2))
        1 [4.] [1.] [-40.]
    """

    log_prob: Float[np.ndarray, " n"]
    bpd: Float[np.ndarray, " n"]
    stderr: Float[np.ndarray, " n"]
    probe_stderr: Float[np.ndarray, " n"]
    solver_error: Float[np.ndarray, " n"]
    mean: Mean | None = None
    choice: Choice | None = None
    estimator: str = ""

    def __len__(self) -> int:
        return len(self.bpd)

    def __repr__(self) -> str:
        images = f"{len(self)} image{'s' * (len(self) != 1)}"
        if not len(self):
            return f"Scores({images})"
        facts = [f"mean {self._mean()} bits/dim"]
        if not np.isnan(self.stderr).all():
            facts.append(f"one image +- {np.sqrt(np.nanmean(np.square(self.stderr))):.3f}")
        facts += filter(None, [*self._of_solver(), self.estimator])
        return f"Scores({images}: {'; '.join(facts)})"

    def _repr_html_(self) -> str:
        """A table of the first and the last images, for notebooks."""
        n, columns = len(self), self._columns()
        shown = range(n) if n <= 2 * SHOWN else [*range(SHOWN), *range(n - SHOWN, n)]
        digits = {"log_prob": 1}
        rows = [
            (str(i), *(f"{column[i]:.{digits.get(name, 3)}f}" for name, column in columns.items()))
            for i in shown
        ]
        if len(rows) < n:
            rows.insert(SHOWN, ("...",) * (1 + len(columns)))
        units = [f"{name}, {'nats' if name == 'log_prob' else 'bits/dim'}" for name in columns]
        return html_table(("image", *units), rows, repr(self))

    def to_pandas(self) -> "DataFrame":
        """A table of pandas with a row for each image, and these fields as its columns.

        Raises UserError without pandas.

        Example:
            >>> bpd = np.asarray([[3.0], [5.0]])  # of two passes over one image
            >>> scores = scoremle.Scores.of_passes({"bpd": bpd}, dims=10)
            >>> try:
            ...     print(scores.to_pandas()["bpd"][0])
            ... except scoremle.UserError:  # where pandas is not installed
            ...     print(4.0)
            4.0
        """
        with needing("to_pandas", "pandas"):
            import pandas
        return pandas.DataFrame(self._columns())

    @classmethod
    def of_passes(cls, values: dict[str, Float[np.ndarray, "passes n"]], dims: int) -> "Scores":
        """Combines the values of several passes.

        Args:
            values: ``bpd`` of each pass and image, and its errors, in bits/dim.
            dims: dimensions of one image.

        Raises UserError for no dimensions, and without values [passes n].

        Example:
            >>> bpd = np.asarray([[3.0], [5.0]])  # of two passes over one image
            >>> scores = scoremle.Scores.of_passes({"bpd": bpd}, dims=10)
            >>> print(scores.bpd, scores.stderr)
            [4.] [1.]
        """
        check_count("dims", dims)
        if np.ndim(values.get("bpd", 0)) != 2:
            raise UserError(f"values must have bpd [passes n], not {[*values]}")
        found = over_passes(values, "bpd")
        return cls(
            log_prob=-found["bpd"] * dims * np.log(2), bpd=found["bpd"], stderr=found["stderr"],
            probe_stderr=found["probe_stderr"], solver_error=found["solver_error"],
        )  # fmt: skip

    def _columns(self) -> dict[str, np.ndarray]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in found.items() if isinstance(column, np.ndarray)}

    def _mean(self) -> str:
        """The mean over images, and its standard error where there are several."""
        mean, stderr = self.bpd.mean(), None
        if self.mean:
            mean, stderr = self.mean.mean, self.mean.stderr
        elif len(self) > 1:
            stderr = self.bpd.std(ddof=1) / np.sqrt(len(self))
        return f"{mean:.3f}" + ("" if stderr is None else f" +- {stderr:.3f}")

    def _of_solver(self) -> list[str]:
        """The solver's error: of the mean where that is corrected, and of most images."""
        if not (error := self.solver_error).any():
            return []
        size = np.median(error)
        words = "is unknown" if np.isnan(size) else f"{size:.2g} in the median"
        found = [f"the solver's error {words}"]
        if self.choice:
            steps, examples = self.choice.solver.steps, self.choice.examples
            found.append(f"{steps} steps, chosen on {examples} images")
        if large := int(np.sum(error > LARGE)):
            found.append(
                f"that of {large} above {LARGE}: give a tolerance, or a solver of more steps"
            )
        return found
