"""A result of an evaluation: one record for all that read results.json."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from jaxtyping import Float

from scoremle.errors import UserError
from scoremle.evaluation.tables import table, wrapped
from scoremle.files import inside, read_npz
from scoremle.likelihood.images import in_words
from scoremle.likelihood.mean import CORRECTION, Mean
from scoremle.records import Count, Error, Name, Number, check_record
from scoremle.terminal import counted
from scoremle.training.checksums import tree_hash

__all__ = ["Result", "check_facts", "column_of", "results_table"]


class _Choice(TypedDict):
    """Findings of a pilot about a solver: nothing finite where too few steps fail."""

    nodes: Count
    images: Count
    solver_bias: Number
    solver_bias_stderr: Number
    tried: NotRequired[list[tuple[Count, Number]]]


class _Profile(TypedDict):
    """Bits that each noise level costs."""

    log_snr_edges: list[float]
    bits_per_dim: list[float]
    stderr: list[Error]


class _Course(TypedDict):
    """The log-SNR of a schedule that is learned, and of the fixed one.

    Where each number of an image has its own, their mean, the least and the most.
    """

    t: list[float]
    learned: list[float]
    fixed: list[float]
    least: NotRequired[list[float]]
    most: NotRequired[list[float]]


class TrainingProgress(TypedDict):
    """Progress of a training."""

    steps: Count
    newest_step: Count
    finished: bool


class _Cost(TypedDict):
    """Cost of less than float32."""

    mean: float
    stderr: Error | None
    largest: float
    images: Count


@dataclass(frozen=True, kw_only=True)
class Result(Mean):
    """A mean over images with its protocol, by the names of its fields in results.json.

    ``name`` is that of the result there, and of its files in ``folder``. ``model`` is "ODE" of a
    likelihood, "SDE" or "chain" of a bound. What is written and read nowhere else is ``more``.

    Args:
        kind: of the measurement, such as "exact" or "bound".
        metric: the column that the mean is of.
        unit: that of the mean.
        estimator: in words.
        checkpoint: its number.
        step: of the training.
        split: of the images.
        full_pass: whether all images of the split were measured.
        augmentation: of the images.
        eps: the smallest time.
        matching: of a bound: "denoising" or "sliced".
        divergence: of a likelihood: how the trace is taken.
        probes: of the trace.
        dequantizer: of the images.
        importance_samples: draws of dequantization noise for each image.
        label: of the images, or "all".
        decoder_scale: of the informed decoder, in units of the data, or "learned".
        seconds_per_image: without compilation.
        solver_choice: findings of the pilot.
        profile: bits over noise levels.
        log_snr: of a learned schedule over t, and of the fixed one.
        precision_cost: the error that less than float32 makes, in bits/dim.
        flags: of the command line that made it.
        data_flags: those of the data.
        deq_folder: of the flow dequantizer, if one took part.
        values_hash: of the arrays of single images.
        dataset: by its name.
        data_hash: of the data set.
        ema_hash: of the averaged parameters.
        precision: of the network.
        seed: of all randomness.
        version: of scoremle.
        training: its progress.
        dequantizer_step: of the flow's training.
        dequantizer_training: the flow's progress.
        more: facts of the data, the estimator and the network.
    """

    name: str
    folder: Path
    kind: Name
    metric: str
    unit: str
    estimator: str
    checkpoint: Count
    step: Count
    split: Name
    full_pass: bool
    augmentation: str
    eps: float
    model: str = ""
    matching: str = ""
    divergence: str | dict[str, Any] = ""
    probes: Count | None = None
    dequantizer: str = ""
    importance_samples: Count | None = None
    label: str = ""
    decoder_scale: float | str = ""
    seconds_per_image: float = 0.0
    solver_choice: _Choice | None = None
    profile: _Profile | None = None
    log_snr: _Course | None = None
    precision_cost: _Cost | None = None
    flags: dict[Name, Any] = field(default_factory=dict)
    data_flags: dict[Name, Any] = field(default_factory=dict)
    deq_folder: str = ""
    values_hash: str = ""
    dataset: str = ""
    data_hash: str = ""
    ema_hash: str = ""
    precision: str = ""
    seed: Count | None = None
    version: str = ""
    training: TrainingProgress | None = None
    dequantizer_step: Count | None = None
    dequantizer_training: TrainingProgress | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, name: str, facts: Mapping[str, Any], folder: Path) -> "Result":
        """The result of this name, whose files are in a folder, by its entry in results.json.

        Args:
            name: of the result.
            facts: its entry in results.json.
            folder: of its files.

        Raises UserError for one that lacks what is said wherever it is shown.
        """
        if lacking := [each for each in NEEDED if each not in facts]:
            where = folder / "results.json"
            raise UserError(f"{where}: {name} lacks {lacking[0]}; evaluate again")
        own = {each: facts[each] for each in OWN if each in facts}
        more = {each: fact for each, fact in facts.items() if each not in own}
        return cls(**vars(Mean.of_json(facts)), name=name, folder=folder, **own, more=more)

    def to_json(self) -> dict[str, Any]:
        """The entry in results.json, without the fields that are unset."""
        own = {each: getattr(self, each) for each in OWN}
        own = {each: value for each, value in own.items() if value not in ("", None)}
        return {**self.more, **own, **super().to_json()}

    @property
    def is_bpd(self) -> bool:
        """Whether it is bits/dim."""
        return self.unit == "bits/dim"

    @property
    def is_bound(self) -> bool:
        """Whether it is an upper bound on bits/dim by design."""
        return "bound" in self.kind or (self.importance_samples or 1) > 1

    @property
    def noised(self) -> str:
        """The estimator, and the noise that it is given."""
        return in_words(self.estimator, self.dequantizer)

    @property
    def kind_in_words(self) -> str:
        """The kind, and the split unless that is the test images."""
        return self.kind if self.split == "test" else f"{self.kind}, {self.split}"

    @property
    def images_in_words(self) -> str:
        """The images that it is a mean over."""
        part = "" if self.full_pass else " (not the whole split)"
        images, passes = counted(self.images, f"{self.split} image"), counted(self.passes, "pass")
        return f"{images}{part}, {passes}"

    def in_cells(self) -> tuple[str, str, str, str]:
        """The mean, its standard error, evaluations of the network, and the solver's error."""
        return (
            f"{self.mean:.4f}",
            "" if self.stderr is None else f"{self.stderr:.4f}",
            "" if self.evaluations is None else f"{self.evaluations:.0f}",
            "" if self.solver_error is None else f"{self.solver_error:.4f}",
        )

    def in_words(self) -> str:
        """The number in words: estimator, its form, noise, images, the step of the training."""
        facts = [self.noised]
        if self.matching:
            facts.append(f"{self.matching} score matching")
        if self.divergence:
            probes = self.probes
            facts.append("exact trace" if probes is None else counted(probes, "probe"))
        if choice := self.solver_choice:
            bias = f"{choice['solver_bias']:+z.4f} +- {choice['solver_bias_stderr']:.4f}"
            where = f"in the mean of {counted(choice['images'], 'image')}"
            facts.append(f"solver: estimate minus truth {bias} {where}")
        steps = at_step(self.step, self.training)
        if self.dequantizer_step is not None:
            steps += f", flow at {at_step(self.dequantizer_step, self.dequantizer_training)}"
        return "; ".join([*facts, self.images_in_words, steps])

    @cached_property
    def values(self) -> Float[np.ndarray, " n"] | None:
        """Values of images, averaged over the passes; None where there is no such file."""
        values = self.column(self.metric)
        return None if values is None else values.mean(axis=0, dtype=np.float64)

    @cached_property
    def corrected_values(self) -> Float[np.ndarray, " n"] | None:
        """Values of images with their contributions to the correction: their mean is the result's.

        None where there is no file of them. Raises UserError for one without contributions to the
        mean that was corrected.
        """
        values = self.values
        if values is None or self.correction is None:
            return values
        correction = self.column(CORRECTION)
        if correction is None:
            raise UserError(f"{self._path} has no {CORRECTION}: evaluate again")
        return values + correction[0]

    def column(self, name: str) -> Float[np.ndarray, "passes n"] | None:
        """An array beside the result; None where there is none.

        Args:
            name: of the array.

        Raises UserError for one of other images than the result, or with no finite number, and for
        arrays that were not written with the result.
        """
        values, wanted = column_of(self.arrays(), name), (self.passes, self.images)
        if values is not None and (values.shape != wanted or not np.isfinite(values).all()):
            raise UserError(
                f"{self._path}: {name} has no finite number for each of {wanted[1]} images in each"
                f" of {wanted[0]} passes, as {self.folder / 'results.json'} says: evaluate again"
            )
        return values

    def arrays(self) -> dict[str, np.ndarray] | None:
        """The arrays beside the result; None where there are none that can be read.

        Raises UserError for those of another evaluation.
        """
        found = read_npz(self._path)
        if found is not None and self.values_hash not in ("", tree_hash(found)):
            raise UserError(
                f"{self._path} is not of the result in {self.folder / 'results.json'}: evaluate"
                " again; finished parts are kept"
            )
        return found

    @property
    def _path(self) -> Path:
        return inside(self.folder, f"{self.name}.npz")


# The columns that a narrow screen leaves out first; results.json has them.
SPARE = ("s/image", "NFE", "probe/draw")
UPPER = "* an upper estimate, from few draws: it is a part of the standard error"
# The kind of each field in results.json, and those that a result has beside a mean.
KINDS: dict[str, Any] = {
    **{each.name: each.type for each in fields(Result)},
    "stderr": Error | None,
    "noise_stderr": Error | None,
}
PLACE = {"name", "folder", "more"}
OWN = {each.name for each in fields(Result)} - {each.name for each in fields(Mean)} - PLACE
NEEDED = [
    each.name for each in fields(Result)
    if each.default is each.default_factory is MISSING and each.name not in PLACE
]  # fmt: skip


def check_facts(facts: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a field of another kind than it must be.

    Args:
        facts: an entry of results.json.
        where: its name, for the error.
    """
    for name, value in facts.items():
        of_column = Error if name.endswith("_of_mean") else float
        column = of_column | None if name.startswith("mean_") or of_column is Error else Any
        check_record(value, KINDS.get(name, column), f"{where}: {name}")
    for name in ("profile", "log_snr", "level_nodes"):
        if facts.get(name) is not None and not _has_lengths(name, facts):
            raise UserError(f"{where}: {name} has lists of other lengths; evaluate again")


def _has_lengths(name: str, facts: Mapping[str, Any]) -> bool:
    """Whether lists that belong together are as long as each other."""
    if name == "level_nodes":
        return len(facts[name]) == len(facts.get("level_images", ())) > 0
    form: Any = _Profile if name == "profile" else _Course
    given = facts[name]
    lengths = {each: len(given[each]) for each in form.__annotations__ if each in given}
    bins = lengths.pop("log_snr_edges") - 1 if name == "profile" else lengths["t"]
    alone = {0} if lengths.get("stderr") == 0 else set()  # the errors of one image
    return bins > 0 and {*lengths.values()} - alone == {bins}


def column_of(
    arrays: Mapping[str, np.ndarray] | None, name: str
) -> Float[np.ndarray, "passes n"] | None:
    """A column of the arrays of a result; None where there is none.

    Args:
        arrays: by their names; None: there are none.
        name: of the array.
    """
    values = (arrays or {}).get(name, np.zeros(0))
    return values if values.ndim == 2 and values.dtype.kind == "f" else None


def at_step(step: int, training: TrainingProgress | None) -> str:
    """The step of a training that a number is of, and whether it goes on."""
    if not training or step >= training["steps"]:
        return f"step {step}"
    unfinished = "" if training["finished"] else ": training is not finished"
    return f"step {step} of {training['steps']}{unfinished}"


# Tables ------------------------------------------------------------------------------------------


def _number(value: float | None, digits: int = 4) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"


def _is_upper(r: Result) -> bool:
    random, whole = r.from_draws, r.stderr
    return random is not None and whole is not None and random > whole


def _precision_cost(r: Result) -> list[str]:
    """Lines about the cost of computing in less than float32; none for another."""
    if not (cost := r.precision_cost):
        return []
    images, error = counted(cost["images"], "image"), _number(cost["stderr"], 5)
    return [
        f"in {r.precision} bits/dim of {images} are off from those in float32, of the same"
        f" noise, by {cost['mean']:+.5f} in the mean, with a standard error of {error}, and by"
        f" {cost['largest']:+.5f} at most"
    ]


def results_table(results: Sequence[Result]) -> str:
    """One line for each result: its value and errors; and under them, what each of them is.

    The standard error is over images; "probe/draw" is the part of it that comes from probes or
    Monte-Carlo draws. The solver's error is the mean over images of what covers it: it has a sign
    of its own and does not shrink with their number. Of a corrected mean it is twice its standard
    error and what the finest level may be off.

    Args:
        results: in the order of the lines.
    """
    header = ("result", "value", "std. error", "probe/draw", "solver, 95%", "NFE", "s/image")
    rows = [
        (
            r.name,
            _number(r.mean) + " bits/dim" * r.is_bpd,
            _number(r.stderr),
            _number(r.from_draws, 5) + "*" * _is_upper(r),
            _number(r.solver_of_mean, 5) if "mean_solver_error" in r.columns else "",
            "" if r.evaluations is None else f"{r.evaluations:.0f}",
            f"{r.seconds_per_image:.2g}" if r.seconds_per_image else "",
        )
        for r in results
    ]
    footnotes = [UPPER] if any(map(_is_upper, results)) else []
    what = (
        line
        for r in results
        for text in (r.in_words(), *r.breakdown(), *_precision_cost(r))
        for line in wrapped(f"{r.name}: {text}")
    )
    return "\n".join([table(header, rows, spare=SPARE), *footnotes, *what])
