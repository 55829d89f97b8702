"""The mean over images of what was measured of each, and its errors part by part.

In results.json the fields have the names that they have here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from scoremle.likelihood.levels import Corrected

__all__ = ["Errors", "Mean", "Values", "standard_error"]

# Columns [passes n] by name; ``profile`` has one more axis, over bins of log-SNR.
Values = dict[str, Float[np.ndarray, "passes _n *more"]]

# Random errors of an image, which shrink with the number of images and passes.
RANDOM = ("probe_stderr", "draw_stderr")


@dataclass(frozen=True)
class Errors:
    """Standard errors of a corrected mean, in bits/dim; None where it takes a second pass to know.

    ``images``, ``probes``, ``draws`` (of dequantization noise) and ``solver`` (of the correction)
    are parts of ``all``; ``this_set`` is that of the mean of this one set of images.
    ``finest_bias`` bounds the error of the finest solver, which is in none of them.
    """

    images: float | None
    probes: float | None
    draws: float | None
    solver: float
    all: float
    this_set: float | None
    finest_bias: float


@dataclass(frozen=True)
class Mean:
    """The mean over images, in the unit of its column: bits/dim, or that of a loss.

    ``stderr`` is over images, after the mean over passes. ``noise_stderr`` is the part of it that
    comes from dequantization and estimation, from the spread over passes; None with a single
    pass. ``columns`` has the means of the other columns, and the random errors of the mean.
    A mean that is corrected for its solver has all fields that follow.
    """

    mean: float
    stderr: float | None
    noise_stderr: float | None
    images: int
    passes: int
    columns: Mapping[str, float | None] = field(default_factory=dict)
    uncorrected_mean: float | None = None
    correction: float | None = None
    errors: Errors | None = None
    level_nodes: tuple[int, ...] = ()
    level_images: tuple[int, ...] = ()

    @classmethod
    def of(cls, values: Values, column: str) -> "Mean":
        """The mean of ``values[column]``."""
        v = values[column]
        passes, n = v.shape
        return cls(
            mean=float(v.mean()),
            stderr=standard_error(v.mean(axis=0).var(ddof=1), n) if n > 1 else None,
            noise_stderr=(
                standard_error(v.var(axis=0, ddof=1).mean(), v.size) if passes > 1 else None
            ),
            images=n,
            passes=passes,
            columns=_columns(values, column),
        )

    def corrected(
        self,
        found: Corrected,
        finest_bias: float,
        steps: Sequence[int],
        differences: Sequence[Float[np.ndarray, " m"]],
    ) -> "Mean":
        """The mean at the finest solver, by differences on some of the images."""
        noise, probes = self.noise_stderr, self.columns.get("probe_stderr_of_mean")
        this_set = None if noise is None else float(np.hypot(noise, found.correction_stderr))
        return replace(
            self,
            mean=found.mean,
            stderr=found.stderr,
            uncorrected_mean=self.mean,
            correction=found.correction,
            errors=Errors(
                images=_without(self.stderr, noise),
                probes=probes,
                draws=_without(noise, probes),
                solver=found.correction_stderr,
                all=found.stderr,
                this_set=this_set,
                finest_bias=finest_bias,
            ),
            level_nodes=tuple(steps),
            level_images=(self.images, *map(len, differences)),
        )

    def to_json(self) -> dict[str, Any]:
        """The fields by their names, those of ``columns`` among them; without what it lacks."""
        own = {name: value for name, value in asdict(self).items() if name != "columns"}
        if self.errors is None:
            names = ("uncorrected_mean", "correction", "errors", "level_nodes", "level_images")
            own = {name: value for name, value in own.items() if name not in names}
        return own | dict(self.columns)


def standard_error(variance: np.floating, count: int) -> float:
    """The standard error of a mean of so many values of this variance."""
    return float(np.sqrt(variance / count))


def _columns(values: Values, column: str) -> dict[str, float | None]:
    """Means of the other columns, and random errors of the mean.

    A solver's errors may all have one sign, and do not shrink with the number of images.
    """
    found: dict[str, float | None] = {}
    for name, v in values.items():
        if name not in (column, "profile"):
            found[f"mean_{name}"] = _finite(v.mean())
    for name in RANDOM:
        if name in values:
            v = values[name]
            found[f"{name}_of_mean"] = _finite(np.sqrt(np.square(v).mean() / v.size))
    return found


def _finite(value: np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None


def _without(whole: float | None, part: float | None) -> float | None:
    """The standard error that is left without a part; zero where the part seems larger."""
    if whole is None or part is None:
        return None
    return float(np.sqrt(max(whole**2 - part**2, 0)))
