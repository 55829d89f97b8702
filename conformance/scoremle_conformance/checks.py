"""Checks: what an adapter is asked, what the answer should be, and the verdict.

A check asks for several cases. What it needs and the adapter does not declare is not applicable.
"""

import itertools
import math
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scoremle_conformance import subjects
from scoremle_conformance.adapter import ABILITIES, Adapter, Ask
from scoremle_conformance.fields import Field
from scoremle_conformance.images import Images
from scoremle_conformance.paths import PATHS, Path, cut
from scoremle_conformance.subjects import Subject

__all__ = ["CHECKS", "FAIL", "NOT_APPLICABLE", "PASS", "Case", "allowed", "examine"]

PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not applicable"
# A value is right within so many nats and bits/dim together.
NATS, BITS_PER_DIM = 0.01, 1e-3
# How many standard errors an average of random values may be off.
SIGMAS = 4.5
# Beyond so many dimensions traces are by probes.
EXACT_DIMS = 32


def allowed(dims: int) -> float:
    """The error of a right value, in nats."""
    return NATS + BITS_PER_DIM * dims * math.log(2)


@dataclass
class Case:
    """One thing that was asked, the answer, and the verdict.

    ``error`` is what the check measures, and ``limit`` what it allows; ``words`` say what they
    are. What signatures of faults look at is beside them: the answers and the truth of each
    example, and what they are of.
    """

    check: str
    name: str
    verdict: str = PASS
    error: float = math.nan
    limit: float = math.nan
    words: str = "nats"
    answers: Any = None
    truth: Any = None
    field: Field | None = None
    x: Any = None
    ask: Ask | None = None
    kind: Images | None = None
    images: Any = None

    def judged(self, error: float, limit: float, words: str = "nats") -> "Case":
        """With a verdict: an error that is not finite fails."""
        self.error, self.limit, self.words = float(error), float(limit), words
        self.verdict = PASS if self.error <= self.limit else FAIL
        return self


Question = Callable[[], Case]


def _path(adapter: Adapter, name: str, subject: Subject, output: str) -> Path:
    """Without its open ends where the subject or the output needs it."""
    path = PATHS[name]
    free = subject.has_density and output in ("v", "velocity")
    return path if free else cut(path)


def _field(
    adapter: Adapter, subject: Subject, path: str | None = None, output: str | None = None
) -> Field:
    output = output or adapter.outputs[0]
    return Field(subject, _path(adapter, path or adapter.paths[0], subject, output), output)


def _seed(*numbers: int) -> np.random.Generator:
    return np.random.default_rng([7, *numbers])


def _needs(adapter: Adapter, *abilities: str) -> str:
    """What the adapter does not declare of these, in words."""
    return ", ".join(ABILITIES[a] for a in abilities if a not in adapter.can)


def _absent(check: str, name: str, lacking: str) -> Case:
    return Case(check, name, NOT_APPLICABLE, words=f"needs {lacking}")


def _of_value(adapter: Adapter, check: str, field: Field, n: int = 8, **more: Any) -> Case:
    """log p of a few draws against the closed form; a mean over them, where probes are random."""
    subject, path = field.subject, field.path
    name = f"{subject.name}, D = {field.dims}, {field.output}, {path}"
    by_probes = field.dims > EXACT_DIMS or "exact" not in adapter.can
    lacking = _needs(
        adapter,
        *(["probes"] if by_probes else []),
        *(["noise"] if cut(PATHS[path.name]) == path != PATHS[path.name] else []),
    )
    if lacking:
        return _absent(check, name, lacking)
    ask = Ask(exact=not by_probes, **more)
    x = subject.draw(_seed(field.dims), n, path, ask.labels)
    truth = subject.log_model(x, path, ask.labels)
    answers = np.asarray(adapter.log_prob(field, x, ask).log_prob, np.float64)
    case = Case(check, name, answers=answers, truth=truth, field=field, x=x, ask=ask)
    limit = allowed(field.dims)
    if answers.shape != truth.shape:
        return case.judged(math.inf, 0, f"{answers.shape} values of {len(x)} examples")
    if by_probes:
        noise = math.sqrt(subject.probe_variance(path, adapter.probe) / n)
        return case.judged(abs(np.mean(answers - truth)), limit + SIGMAS * noise)
    return case.judged(np.abs(answers - truth).max(), limit)


def value(adapter: Adapter, quick: bool) -> Iterator[Question]:
    """log p of subjects, outputs and paths, and of 1 to 3,072 dimensions."""
    every = [
        subjects.standard(4), subjects.anisotropic(4), subjects.mixture(3),
        subjects.point_mass(4), subjects.low_rank(4),
    ]  # fmt: skip
    fields = [_field(adapter, subject) for subject in every]
    for path, output in itertools.product(adapter.paths, adapter.outputs):
        if not quick or path == adapter.paths[0] or output == adapter.outputs[0]:
            fields.append(_field(adapter, subjects.anisotropic(3), path, output))
    large = [784] if quick else [784, 3072]
    fields += [_field(adapter, subjects.anisotropic(d)) for d in (1, 32, *large)]
    fields += [_field(adapter, subjects.point_mass(d)) for d in large]
    for field in fields:
        yield lambda field=field: _of_value(adapter, "value", field)


def conditional(adapter: Adapter, quick: bool) -> Iterator[Question]:
    """log p under a class for each example."""

    def ask() -> Case:
        if lacking := _needs(adapter, "classes"):
            return _absent("classes", "three classes", lacking)
        labels = np.array([0, 1, 2, 0, 2, 1, 1, 0])
        return _of_value(adapter, "classes", _field(adapter, subjects.classes(3)), labels=labels)

    yield ask


def _of_images(adapter: Adapter, kind: Images, copies: int, **more: Any) -> Case:
    """The mean over ``copies`` of each of three images, against its closed form."""
    ask = Ask(exact=kind.dims <= EXACT_DIMS, **more)
    name = f"{kind.subject.name}, D = {kind.dims}, {ask.draws} draws, {ask.dequantizer} noise"
    lacking = _needs(
        adapter,
        "images",
        *(["several draws"] if ask.draws > 1 else []),
        *(["dequantizer"] if ask.dequantizer != "uniform" else []),
        *(["probes"] if not ask.exact else []),
    )
    if lacking:
        return _absent("images", name, lacking)
    field = _field(adapter, kind.subject)
    images = kind.draw(_seed(kind.dims), 3)
    many = np.repeat(images, copies, axis=0)
    answers = np.asarray(adapter.log_prob_images(field, many, kind, ask), np.float64)
    truth = kind.expected(images, field.path, draws=ask.draws, dequantizer=ask.dequantizer)
    case = Case("images", name, field=field, ask=ask, kind=kind, images=images, truth=truth)
    each = answers.reshape(3, copies)
    case.answers = each.mean(1)
    noise = each.std(1, ddof=1).max() / math.sqrt(copies)
    limit = allowed(kind.dims) + SIGMAS * noise
    return case.judged(np.abs(case.answers - truth).max(), limit)


def of_images(adapter: Adapter, quick: bool) -> Iterator[Question]:
    """log P of integers: constants, dequantization noise, several draws of it."""
    small = (2, 2, 1)
    asked: list[tuple[Images, int, dict]] = [
        (Images(small, 256), 32, {}),
        (Images(small, 8), 256, {}),
        (Images(small, 256), 256, {"dequantizer": "beta"}),
        (Images(small, 8), 64, {"draws": 8}),
        *([] if quick else [(Images((32, 32, 3), 256), 4, {})]),
    ]
    for kind, copies, more in asked:
        yield lambda kind=kind, copies=copies, more=more: _of_images(
            adapter, kind, copies, **more
        )


PROBE_DIMS, PROBE_COUNT = 6, 512


def _by_probes(adapter: Adapter, probes: int) -> Case:
    """Answers by random probes for many draws of one Gaussian, whose probe variance is known."""
    field = _field(adapter, subjects.anisotropic(PROBE_DIMS))
    name = f"{field.subject.name}, D = {PROBE_DIMS}, {probes} probe{'s' * (probes > 1)}"
    x = field.subject.draw(_seed(3), PROBE_COUNT, field.path)
    ask = Ask(exact=False, probes=probes, seed=probes)
    answer = adapter.log_prob(field, x, ask)
    case = Case("", name, answers=np.asarray(answer.log_prob, np.float64), field=field, x=x)
    case.truth, case.ask = field.subject.log_model(x, field.path), ask
    return case


def mean(adapter: Adapter, quick: bool) -> Iterator[Question]:
    """The mean over probes is the value, for one probe and for three."""
    for probes in (1, 3):
        yield lambda probes=probes: _mean(adapter, probes)


def _mean(adapter: Adapter, probes: int) -> Case:
    name = f"{probes} probe{'s' * (probes > 1)}"
    if lacking := _needs(adapter, "probes", *(["several probes"] if probes > 1 else [])):
        return _absent("mean", name, lacking)
    case = _by_probes(adapter, probes)
    case.check = "mean"
    assert case.field is not None
    variance = case.field.subject.probe_variance(case.field.path, adapter.probe)
    noise = math.sqrt(variance / probes / PROBE_COUNT)
    error = abs(np.mean(case.answers - case.truth))
    return case.judged(error, allowed(PROBE_DIMS) + SIGMAS * noise)


def variance(adapter: Adapter, quick: bool) -> Iterator[Question]:
    """The variance over probes is that of the estimator; smaller, if each step has its own."""

    def ask() -> Case:
        if lacking := _needs(adapter, "probes"):
            return _absent("variance", "1 probe", lacking)
        case = _by_probes(adapter, 1)
        case.check = "variance"
        assert case.field is not None
        known = case.field.subject.probe_variance(case.field.path, adapter.probe)
        ratio = float(np.var(case.answers - case.truth) / known)
        case.answers = ratio
        words = f"|log2| of a variance {ratio:.3g} times that of one {adapter.probe} probe"
        off = abs(math.log2(ratio)) if ratio > 0 else math.inf
        if adapter.fresh:
            off = max(math.log2(ratio), 0.0) if ratio > 0 else math.inf
        return case.judged(off, 1.0, words)

    yield ask


def calibration(adapter: Adapter, quick: bool) -> Iterator[Question]:
    """Stated errors are those that are made."""
    yield lambda: _of_probe_error(adapter)
    yield lambda: _of_solver_error(adapter)


def _of_probe_error(adapter: Adapter) -> Case:
    several = "several probes" in adapter.can
    if lacking := _needs(adapter, "probes", "probe error"):
        return _absent("calibration", "error by the probes", lacking)
    case = _by_probes(adapter, 6 if several else 1)
    stated = np.asarray(
        adapter.log_prob(case.field, case.x, case.ask).probe_error, np.float64  # type: ignore[arg-type]
    )
    ratio = float(np.square(case.answers - case.truth).mean() / np.square(stated).mean())
    case.check, case.name = "calibration", f"error by the probes, {case.name}"
    words = f"|log2| of squared errors {ratio:.3g} times those stated"
    return case.judged(abs(math.log2(ratio)) if ratio > 0 else math.inf, 1.0, words)


SOLVER_COUNT, UNCOVERED = 64, 0.1


def _of_solver_error(adapter: Adapter) -> Case:
    if lacking := _needs(adapter, "exact", "solver error"):
        return _absent("calibration", "error of the solver", lacking)
    field = _field(adapter, subjects.mixture(3))
    x = field.subject.draw(_seed(5), SOLVER_COUNT, field.path)
    truth = field.subject.log_model(x, field.path)
    answer = adapter.log_prob(field, x, Ask())
    stated = np.asarray(answer.solver_error, np.float64)
    made = np.abs(np.asarray(answer.log_prob, np.float64) - truth)
    case = Case("calibration", "error of the solver, mixture", field=field, x=x, ask=Ask())
    rounding = 1e-5 * (1 + np.abs(truth))
    words = f"of errors above those stated, whose median is {np.median(stated):.1g} nats"
    return case.judged(np.mean(~(made <= stated + rounding)), UNCOVERED, words)


def batch(adapter: Adapter, quick: bool) -> Iterator[Question]:
    """A value depends neither on its neighbours nor on the batch size, and none is lost."""
    yield lambda: _alone(adapter)
    yield lambda: _in_batches(adapter)


def _seven(adapter: Adapter) -> tuple[Field, np.ndarray, Ask]:
    field = _field(adapter, subjects.mixture(3))
    x = field.subject.draw(_seed(4), 7, field.path)
    return field, x, Ask(exact="exact" in adapter.can)


def _compared(case: Case, count: int) -> Case:
    if case.answers.shape != case.truth.shape:
        return case.judged(math.inf, 0, f"nats: {len(case.answers)} values of {count} examples")
    return case.judged(np.abs(case.answers - case.truth).max(), allowed(3) / 2)


def _alone(adapter: Adapter) -> Case:
    name = "each example alone, and among seven"
    if lacking := _needs(adapter, "exact"):
        return _absent("batch", name, lacking)
    field, x, ask = _seven(adapter)
    together = np.asarray(adapter.log_prob(field, x, ask).log_prob, np.float64)
    alone = [np.asarray(adapter.log_prob(field, x[i : i + 1], ask).log_prob) for i in range(3)]
    case = Case("batch", name, field=field, x=x, ask=ask)
    case.answers, case.truth = np.concatenate(alone).astype(np.float64), together[:3]
    return _compared(case, 3)


def _in_batches(adapter: Adapter) -> Case:
    name = "seven examples in batches of three"
    if lacking := _needs(adapter, "exact", "batches"):
        return _absent("batch", name, lacking)
    field, x, ask = _seven(adapter)
    small = replace(ask, batch_size=3)
    case = Case("batch", name, field=field, x=x, ask=small)
    case.truth, case.answers = (
        np.asarray(adapter.log_prob(field, x, a).log_prob, np.float64) for a in (ask, small)
    )
    return _compared(case, 7)


STEPS = (8, 16, 32, 64)


def order(adapter: Adapter, quick: bool) -> Iterator[Question]:
    """The error falls with the steps as the method says."""

    def ask() -> Case:
        name = "anisotropic Gaussian, D = 3"
        if lacking := _needs(adapter, "exact", "steps"):
            return _absent("order", name, lacking)
        straight = "straight" if "straight" in adapter.paths else None
        field = _field(adapter, subjects.anisotropic(3), straight)
        x = field.subject.draw(_seed(6), 8, field.path)
        truth = field.subject.log_model(x, field.path)
        errors = np.array([_error(adapter, field, x, truth, steps) for steps in STEPS])
        floor = 1e-5 * (1 + np.abs(truth).max())
        above = np.flatnonzero(errors > floor)
        case = Case("order", name, answers=errors, field=field, x=x)
        told = ", ".join(f"{e:.1e}" for e in errors)
        if len(above) == 0 or above[0] == len(STEPS) - 1:
            return case.judged(0, 0, f"order lacking; errors {told} nats are rounding")
        last = max(int(above[-1]), 1)
        rate = math.log2(errors[last - 1] / errors[last])
        lacking_order = max(float(adapter.order or 1.0) - rate, 0.0)
        return case.judged(lacking_order, 0.6, f"order lacking; found {rate:.1f}: {told} nats")

    yield ask


def _error(
    adapter: Adapter, field: Field, x: np.ndarray, truth: np.ndarray, steps: int
) -> float:
    found = np.asarray(adapter.log_prob(field, x, Ask(steps=steps)).log_prob, np.float64)
    return float(np.abs(found - truth).max())


def gradient(adapter: Adapter, quick: bool) -> Iterator[Question]:
    """d log p / dx is the score at the start, also through the divergence."""

    def ask() -> Case:
        name = "mixture, D = 3"
        if lacking := _needs(adapter, "exact", "gradient"):
            return _absent("gradient", name, lacking)
        field = _field(adapter, subjects.mixture(3))
        x = field.subject.draw(_seed(8), 4, field.path)
        scales = field.path.scales(np.float64(field.path.start))
        truth = field.subject.expect(x, scales)[0]
        found = np.asarray(adapter.gradient(field, x), np.float64)
        case = Case("gradient", name, answers=found, truth=truth, field=field, x=x)
        error = np.linalg.norm(found - truth, axis=-1) / np.linalg.norm(truth, axis=-1)
        return case.judged(error.max(), 0.02, "of the gradient's length")

    yield ask


CHECKS: dict[str, Callable[[Adapter, bool], Iterator[Question]]] = {
    "value": value,
    "classes": conditional,
    "images": of_images,
    "mean": mean,
    "variance": variance,
    "calibration": calibration,
    "batch": batch,
    "order": order,
    "gradient": gradient,
}


def examine(adapter: Adapter, *, quick: bool = False) -> list[Case]:
    """All cases of all checks. What an adapter raises fails the case, and is told.

    ``quick`` leaves out 3,072 dimensions, and all but one output of each further path.
    """
    cases = []
    for name, check in CHECKS.items():
        for ask in check(adapter, quick):
            try:
                case = ask()
            except Exception as error:
                told = traceback.format_exception_only(error)[-1].strip()
                case = Case(name, "raised an error", FAIL, words=told[:200])
            cases.append(case)
    return cases
