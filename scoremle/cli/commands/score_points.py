"""``scoremle score MODEL points.npy``: log p of points, where the model has no pixels.

The points are reals, [n d] of vectors. The table is a CSV of one line a point, in their order, in
nats.
"""

import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

import scoremle
from scoremle.cli import checks
from scoremle.cli import parts as finished
from scoremle.cli.score_words import both_ends, in_passes, mean_in_words
from scoremle.core.arguments import shown
from scoremle.core.bijectors import in_all_digits
from scoremle.core.keys import image_keys, key_of
from scoremle.data.readers.arrays import load_npy
from scoremle.errors import UserError, as_flag
from scoremle.evaluation import tables
from scoremle.evaluation.statistics import error_of_few
from scoremle.experiment.measurement import facts_of
from scoremle.files import named
from scoremle.likelihood.mean import Mean, over_passes
from scoremle.likelihood.ode import warn_of_rows
from scoremle.model import ScoreModel
from scoremle.numerics import power_of_two
from scoremle.resumable import Arrays, facts_of_data, parts_in, resumable_map
from scoremle.terminal import counted, say

POINTS_AT_ONCE = 1024
TRACE = "U99"  # the type of the words for a trace
OF_IMAGES = ("page", "profile", "steps", "label", "fit", "shard", "merge", "correct")

Columns = dict[str, Float[np.ndarray, " n"]]
Values = dict[str, Float[np.ndarray, "passes n"]]


def run(model: Any, options: Any) -> dict[str, Any]:
    """Finds log p of the points, writes the table, and prints the mean and both ends of it."""
    if not isinstance(model, ScoreModel):
        raise UserError(
            f"{options.model} is a flow of reals, whose log_prob(x) is exact: images need"
            " from_flow(..., pixels=...)"
        )
    given = [as_flag(name) for name in OF_IMAGES if getattr(options, name)]
    if given or options.estimator != "ode":
        flag = [*given, "--estimator"][0]
        raise UserError(f"{flag} is for models of images, and {options.model} has no pixels")
    points = read_points(options.images, model.shape)
    reasons = _reasons(model, points)
    _refuse(options, reasons, len(points))
    known = np.setdiff1d(np.arange(len(points)), [*reasons])
    say(f"log p of {counted(len(known), 'point')} of {options.images}")
    facts = facts_of(model, options.model, options.seed) | facts_of_data(points)
    parts = parts_in(finished.above(options.out), facts)
    with finished.kept(parts):
        values, estimator = _values(model, points[known], known, options, parts)
    finite = np.isfinite(values["log_prob"]).all(axis=0)
    reasons |= dict.fromkeys(known[~finite].tolist(), "has no finite log p: check the model")
    _refuse(options, reasons, len(points))
    values, known = {name: column[:, finite] for name, column in values.items()}, known[finite]
    mean, columns = Mean.of(values, "log_prob"), _of_points(values)
    rows = {i: {"point": str(i), "note": f"not scored: it {why}"} for i, why in reasons.items()}
    for k, i in enumerate(known.tolist()):
        # As many digits as the error warrants.
        digits = tables.decimals(float(columns["error"][k]))
        numbers = {name: f"{column[k]:.{digits}f}" for name, column in columns.items()}
        rows[i] = {"point": str(i), **numbers, "estimator": estimator}
    header = ["point", *columns, "estimator", "note"]
    # Another process may have written there.
    checks.writable("--out=", options.out, force=options.force, kind=".csv")
    scoremle.files.write_rows(options.out, header, [rows[i] for i in sorted(rows)])
    finished.remove(parts)
    said = mean_in_words(mean, "nats a point", "points")
    say(*tables.wrapped(f"{said}; {estimator}; {in_passes(mean)}"))
    order = known[np.argsort(-columns["log_prob"], kind="stable")].tolist()
    in_order = [f"point {i} {rows[i]['log_prob']} +- {rows[i]['error']}" for i in order]
    say(*tables.wrapped(*both_ends(in_order)), f"written to {options.out}")
    if reasons:
        say(f"{len(reasons)} of {len(points)} points have no log p: their rows say why")
    return {
        "unit": "nats", **mean.to_json(), "points": mean.images, "left_out": len(reasons),
        "estimator": estimator, "model": options.model, "table": str(options.out),
    }  # fmt: skip


def read_points(path: Path, shape: tuple[int, ...] | None) -> Float[np.ndarray, "n *d"]:
    """The points of a .npy. Raises UserError unless of this shape; None: unless vectors."""
    of_shape = f"({', '.join(map(str, ('n', *(shape or 'd'))))})"
    wanted = f"the model has no pixels, and takes a .npy of reals of shape {of_shape}"
    if path.suffix.lower() != ".npy":
        raise UserError(f"{path}: {wanted}")
    array = load_npy(named(path))
    fits = array.ndim == 2 if shape is None else array.shape[1:] == shape
    if array.dtype.kind != "f" or not fits or not array.size:
        raise UserError(f"{path} holds {shown(array)}: {wanted}")
    return np.asarray(array, np.float64)


def _reasons(model: ScoreModel, points: Float[np.ndarray, "n *d"]) -> dict[int, str]:
    """The points that have no log p, by number, and why."""
    axes = tuple(range(1, points.ndim))
    with np.errstate(over="ignore"):  # what is infinite in float32 is not a point
        finite = np.isfinite(points.astype(np.float32)).all(axis=axes)
    reasons = {int(i): "has a number that is not finite" for i in np.flatnonzero(~finite)}
    if model.bijector is not None:
        inside = np.isfinite(in_all_digits(model.bijector, points)).all(axis=axes)
        for i in np.flatnonzero(finite & ~inside):
            reasons[int(i)] = "lies where the model's bijector is not defined"
    return reasons


def _refuse(options: Any, reasons: dict[int, str], total: int) -> None:
    """Raises UserError for points without log p, unless they are skipped and others are there."""
    if not reasons or (options.skip_bad and len(reasons) < total):
        return
    first = min(reasons)
    hint = "" if len(reasons) == total else "; --skip-bad continues without such points"
    raise UserError(
        f"{options.images}: {len(reasons)} of {total} points have no log p: point {first}"
        f" {reasons[first]}{hint}"
    )


def _values(
    model: ScoreModel,
    points: Float[np.ndarray, "n *d"],
    numbers: Int[np.ndarray, " n"],
    options: Any,
    parts: Path,
) -> tuple[Values, str]:
    """Columns [passes n], and what they are. A point's randomness belongs to its number."""
    key = key_of(options.seed)

    def work(number: int, indices: Int[np.ndarray, " size"]) -> Arrays:
        keys = image_keys(jax.random.fold_in(key, number), numbers[indices])
        found = model.log_prob(points[indices], keys)
        columns = {"probe_stderr": found.probe_stderr, "solver_error": found.solver_error}
        columns |= {"log_prob": found.log_prob, "nfe": found.evaluations}
        values = {name: np.asarray(column, np.float64) for name, column in columns.items()}
        return values | {"trace": np.full(len(indices), found.trace, TRACE)}

    size = min(POINTS_AT_ONCE, power_of_two(len(points)))
    with warnings.catch_warnings():  # they count the rows that fill a batch up
        warnings.filterwarnings("ignore", "log p of |the solver's error ", UserWarning)
        values = resumable_map(
            work, len(points), size=size, passes=options.passes, folder=parts, label="log p",
            unit="point",
        )  # fmt: skip
    traces = np.unique(values.pop("trace"))
    warn_of_rows(*(values[name].max(axis=0) for name in ("solver_error", "probe_stderr")))
    return values, f"log p by the ODE, trace {' and '.join(traces)}"


def _of_points(values: Values) -> Columns:
    """Means over passes, and their errors: the double of ``error`` covers the truth of about 95 %.

    It is that of a few passes, or of one pass its own, and half of what covers the solver's.
    """
    passes, found = len(values["log_prob"]), over_passes(values, "log_prob")
    noise = error_of_few(found["stderr"], passes) if passes > 1 else found["probe_stderr"]
    error = np.hypot(noise, found["solver_error"] / 2)
    return {"log_prob": found["log_prob"], "error": error, **found}
