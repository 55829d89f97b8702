"""The mean over images of what was measured of each, and its errors part by part.

In results.json the fields have the names that they have here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

__all__ = ["CORRECTION", "Mean", "PassValues", "over_passes", "standard_error"]

# Columns [passes n] by name; ``profile`` has one more axis, over bins of log-SNR.
PassValues = dict[str, Float[np.ndarray, "passes _n *more"]]

# The column of each image's contribution to the correction of the mean, in every pass.
CORRECTION = "correction"
# Random errors of an image, which shrink with the number of images and passes.
RANDOM = ("probe_stderr", "draw_stderr")
# Fields of a mean, and those of one that is corrected for its solver.
MEAN = ("mean", "stderr", "noise_stderr", "images", "passes")
CORRECTED = ("uncorrected_mean", "correction", "errors", "level_nodes", "level_images")
# Parts of the error of such a mean, as they are printed.
PARTS = ("images", "probes", "draws", "solver")


@dataclass(frozen=True)
class MeanErrors:
    """Standard errors of a corrected mean, in bits/dim; None where it takes a second pass.

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

    Args:
        uncorrected_mean: the mean at the fewest steps.
        correction: what was added to it.
        errors: the parts of its error.
        level_nodes: numbers of steps, rising.
        level_images: numbers of images at each.
    """

    mean: float
    stderr: float | None
    images: int
    passes: int
    noise_stderr: float | None = None
    columns: Mapping[str, float | None] = field(default_factory=dict)
    uncorrected_mean: float | None = None
    correction: float | None = None
    errors: MeanErrors | None = None
    level_nodes: tuple[int, ...] = ()
    level_images: tuple[int, ...] = ()

    @classmethod
    def of(cls, values: PassValues, column: str) -> "Mean":
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
        values: Float[np.ndarray, " n"],
        contributions: Float[np.ndarray, " n"],
        steps: Sequence[int],
        sizes: Sequence[int],
        finest_bias: float,
    ) -> "Mean":
        """The mean at the finest solver, by the contributions of images to its correction.

        Args:
            values: of all images, by the fewest steps.
            contributions: of the same images.
            steps: numbers of steps, rising.
            sizes: number of images whose difference from each of these to the next was measured.
            finest_bias: a bound on the error of the finest solver.
        """
        noise, probes = self.noise_stderr, self.columns.get("probe_stderr_of_mean")
        correction = float(contributions.mean())
        solver, everything = (
            standard_error(v.var(ddof=1), len(v)) for v in (contributions, values + contributions)
        )
        return replace(
            self,
            mean=float(values.mean()) + correction,
            stderr=everything,
            uncorrected_mean=self.mean,
            correction=correction,
            errors=MeanErrors(
                images=_without(self.stderr, noise),
                probes=probes,
                draws=_without(noise, probes),
                solver=solver,
                all=everything,
                this_set=None if noise is None else float(np.hypot(noise, solver)),
                finest_bias=finest_bias,
            ),
            level_nodes=tuple(steps),
            level_images=(self.images, *sizes),
        )

    def to_json(self) -> dict[str, Any]:
        """The fields by their names, those of ``columns`` among them; without what it lacks."""
        known, found = (*MEAN, *CORRECTED) if self.errors else MEAN, asdict(self)
        return {name: found[name] for name in known} | dict(self.columns)

    @staticmethod
    def of_json(facts: Mapping[str, Any]) -> "Mean":
        """The mean that ``to_json`` gave.

        Args:
            facts: a record of results.json.
        """
        columns = {
            name: value for name, value in facts.items()
            if name.startswith("mean_") or name.endswith("_of_mean")
        }  # fmt: skip
        own = {name: facts[name] for name in (*MEAN, *CORRECTED) if name in facts}
        own |= {name: tuple(value) for name, value in own.items() if isinstance(value, list)}
        if errors := facts.get("errors"):
            own["errors"] = MeanErrors(**{f.name: errors[f.name] for f in fields(MeanErrors)})
        return Mean(**own, columns=columns)

    @property
    def evaluations(self) -> float | None:
        """Evaluations of the network for an image, if that is known."""
        return self.columns.get("mean_nfe")

    @property
    def solver_error(self) -> float | None:
        """The bound on the error of an ODE's solver, in the mean over single images."""
        return self.columns.get("mean_solver_error")

    @property
    def solver_of_mean(self) -> float | None:
        """The bound on the solver's error of the mean, or else as far as known of an image."""
        errors = self.errors
        return 2 * errors.solver + errors.finest_bias if errors else self.solver_error

    @property
    def from_draws(self) -> float | None:
        """The part of ``stderr`` that random probes or times leave, or else all that is random."""
        kind = next((kind for kind in RANDOM if f"{kind}_of_mean" in self.columns), "")
        found = self.columns.get(f"{kind}_of_mean")
        return self.noise_stderr if found is None else found

    def breakdown(self) -> list[str]:
        """Lines about a corrected mean: its making, and the parts of its error; else none."""
        if (errors := self.errors) is None:
            return []
        steps, images = self.level_nodes, self.level_images
        differences = ", ".join(
            f"{coarse} to {fine} steps on {m} images"
            for m, (coarse, fine) in zip(images[1:], pairwise(steps), strict=True)
        )
        known = {name: error for name in PARTS if (error := getattr(errors, name)) is not None}
        parts = [f"{name} {error:.5f}" for name, error in known.items()]
        parts.append(f"all together {errors.all:.5f}")
        if errors.this_set is not None:
            parts.append(f"without that of the images {errors.this_set:.5f}")
        unknown = " and ".join(name for name in PARTS if name not in known)
        corrected = (
            f"mean over images {self.mean:.5f} = {self.uncorrected_mean:.5f} at {steps[0]} steps"
            f" {self.correction:+.5f} of correction, by differences of {differences}"
        )
        uncorrected = f"mean over images {self.mean:.5f}, all at {steps[0]} steps"
        return [
            corrected if steps[1:] else uncorrected,
            f"standard error of this mean by source: {', '.join(parts)}"
            + f"; the parts of {unknown} can't be found from so few passes" * bool(unknown),
            f"the solver's error with {steps[-1]} steps comes on top: at most"
            f" {errors.finest_bias:.5f} bits/dim",
        ]


def over_passes(values: PassValues, column: str) -> dict[str, Float[np.ndarray, " n"]]:
    """The mean over passes of each example, and its errors; the spread of one pass is NaN.

    Args:
        values: of each pass and example.
        column: the name of what is averaged.
    """
    v = values[column]
    passes, nothing = len(v), 0 * v  # NaN where a pass failed
    noise = values.get("probe_stderr", values.get("draw_stderr", nothing))
    return {
        column: v.mean(axis=0),
        "stderr": v.std(axis=0, ddof=1) / np.sqrt(passes) if passes > 1 else np.nan * v[0],
        "probe_stderr": np.sqrt(np.square(noise).sum(axis=0)) / passes,
        "solver_error": values.get("solver_error", nothing).mean(axis=0),
    }


def standard_error(variance: np.floating, count: int) -> float:
    """The standard error of a mean of so many values of this variance.

    Args:
        variance: of one value.
        count: of the values that the mean is over.
    """
    return float(np.sqrt(variance / count))


def _columns(values: PassValues, column: str) -> dict[str, float | None]:
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
