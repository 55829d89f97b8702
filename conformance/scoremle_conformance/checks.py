"""Checks: the calls of an adapter, and the right answers.

A check is a list of questions. A question says what it needs, and measures one thing: an error and
its limit. What an adapter does not declare is not applicable; what it raises fails.
"""

import math
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from scoremle_conformance import subjects
from scoremle_conformance.adapter import ABILITIES, Adapter, Answer, Ask
from scoremle_conformance.fields import Field
from scoremle_conformance.images import Images
from scoremle_conformance.paths import PATHS, cut
from scoremle_conformance.subjects import Subject

__all__ = ["CHECKS", "FAIL", "NOT_APPLICABLE", "PASS", "Case", "Evidence", "examine"]

PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not applicable"
# A value is right within so many nats, and so many bits/dim more.
NATS, BITS_PER_DIM = 0.01, 1e-3
# How many standard errors the mean of random values may be off.
SIGMAS = 4.5
# Beyond so many dimensions traces are by probes.
EXACT_DIMS = 32


@dataclass(frozen=True, eq=False)
class Evidence:
    """Evidence for signatures: the call, the field, the answers, and the truth."""

    field: Field
    x: np.ndarray
    ask: Ask
    answers: np.ndarray
    truth: np.ndarray
    stated: Answer | None = None  # with the errors that it states
    kind: Images | None = None  # of integer images x


@dataclass(frozen=True, eq=False)
class Measured:
    """What a question found: it passes if the error is within the limit. NaN fails.

    ``words`` are the unit of both, or what happened where the error is infinite.
    """

    error: float
    limit: float
    words: str = "nats"
    evidence: Evidence | None = None


@dataclass(frozen=True)
class Question:
    """A measurement for adapters that declare what it ``needs``."""

    name: str
    needs: tuple[str, ...]
    ask: Callable[[], Measured]


@dataclass(frozen=True, eq=False)
class Case:
    """The verdict on one question of a check."""

    check: str
    name: str
    verdict: str
    found: Measured

    @property
    def evidence(self) -> Evidence | None:
        return self.found.evidence


Questions = Iterator[Question]


def _field(adapter: Adapter, subject: Subject, network: tuple[str, str] | None = None) -> Field:
    """On a path without its open ends where the subject or the output needs it."""
    name, output = network or adapter.networks[0]
    path = PATHS[name]
    free = subject.has_density and output in ("v", "velocity")
    return Field(subject, path if free else cut(path), output)


def _needs(field: Field, *abilities: str) -> tuple[str, ...]:
    """The abilities, and a stated noise where the path is cut."""
    return abilities + ("noise",) * (field.path != PATHS[field.path.name])


def _rng(*numbers: int) -> np.random.Generator:
    return np.random.default_rng([7, *numbers])


def _limit(dims: int) -> float:
    """The error of a right value, in nats."""
    return NATS + BITS_PER_DIM * dims * math.log(2)


def _evidence(adapter: Adapter, field: Field, n: int, ask: Ask) -> Evidence:
    """Answers for ``n`` draws of the subject at the path's start."""
    subject, path = field.subject, field.path
    x = subject.draw(_rng(field.dims, n), n, path, ask.labels)
    stated = adapter.log_prob(field, x, ask)
    answers = np.asarray(stated.log_prob, np.float64)
    return Evidence(field, x, ask, answers, subject.log_model(x, path, ask.labels), stated)


def _missing(evidence: Evidence) -> Measured | None:
    """That there are more or fewer values than examples."""
    if evidence.answers.shape == evidence.truth.shape:
        return None
    words = f"{len(evidence.answers)} values of {len(evidence.truth)} examples"
    return Measured(math.inf, 0.0, words, evidence)


def _of_value(adapter: Adapter, field: Field, ask: Ask) -> Measured:
    """Of each of a few draws; of their mean, where traces are by random probes."""
    found = _evidence(adapter, field, 8, ask)
    if missing := _missing(found):
        return missing
    off, limit = found.answers - found.truth, _limit(field.dims)
    if ask.exact:
        return Measured(np.abs(off).max(), limit, evidence=found)
    noise = math.sqrt(field.subject.probe_variance(field.path, adapter.probe) / len(off))
    return Measured(abs(off.mean()), limit + SIGMAS * noise, evidence=found)


def _value_question(adapter: Adapter, field: Field, ask: Ask, *needs: str) -> Question:
    name = f"{field.subject.name}, D = {field.dims}, {field.output}, {field.path}"
    exact = field.dims <= EXACT_DIMS and "exact" in adapter.can
    if not field.subject.single:  # whose probe variance is not known
        exact = True
    needs = _needs(field, *needs, "exact" if exact else "probes")
    return Question(name, needs, partial(_of_value, adapter, field, replace(ask, exact=exact)))


def value(adapter: Adapter, quick: bool) -> Questions:
    """log p of subjects, of networks, and of 1 to 3,072 dimensions."""
    fields = [
        _field(adapter, subject)
        for subject in (
            subjects.far(4), subjects.anisotropic(4), subjects.mixture(3),
            subjects.point_mass(4), subjects.low_rank(4),
        )
    ]  # fmt: skip
    path, output = adapter.networks[0]
    for network in adapter.networks:
        if not quick or path == network[0] or output == network[1]:
            fields.append(_field(adapter, subjects.far(3), network))
    large = [784] if quick else [784, 3072]
    fields += [_field(adapter, subjects.anisotropic(d)) for d in (1, 32, *large)]
    fields += [_field(adapter, subjects.point_mass(d)) for d in large]
    for field in fields:
        yield _value_question(adapter, field, Ask())


def classes(adapter: Adapter, quick: bool) -> Questions:
    """log p under a class for each example."""
    ask = Ask(labels=np.array([0, 1, 2, 0, 2, 1, 1, 0]))
    yield _value_question(adapter, _field(adapter, subjects.classes(3)), ask, "classes")


def images(adapter: Adapter, quick: bool) -> Questions:
    """log P of integers: constants, dequantization noise, several draws of it."""
    small = (2, 2, 1)
    large, copies = ((8, 8, 3), 16) if quick else ((32, 32, 3), 4)
    cases = [
        (Images(small, 256), 32, Ask()),
        (Images(small, 8), 256, Ask()),
        (Images(small, 256), 256, Ask(dequantizer="beta")),
        (Images(small, 3), 1024, Ask(draws=8)),
    ]
    cases.append((Images(large, 256), copies, Ask(exact=False)))
    for kind, copies, ask in cases:
        name = f"{kind.subject.name}, D = {kind.dims}, {ask.draws} draws, {ask.dequantizer} noise"
        needs = ["images", "exact" if ask.exact else "probes"]
        needs += ["several draws"] if ask.draws > 1 else []
        needs += ["dequantizer"] if ask.dequantizer != "uniform" else []
        field = _field(adapter, kind.subject)
        asked = partial(_of_images, adapter, field, kind, copies, ask)
        yield Question(name, _needs(field, *needs), asked)


def _of_images(adapter: Adapter, field: Field, kind: Images, copies: int, ask: Ask) -> Measured:
    """Of the mean over ``copies`` of each of three images."""
    k = kind.draw(_rng(kind.dims), 3)
    many = adapter.log_prob_images(field, np.repeat(k, copies, axis=0), kind, ask)
    each = np.asarray(many, np.float64).reshape(len(k), copies)
    truth = kind.expected(k, field.path, draws=ask.draws, dequantizer=ask.dequantizer)
    known = kind.variance(k, field.path, draws=ask.draws, dequantizer=ask.dequantizer).max()
    if not ask.exact:
        known += field.subject.probe_variance(field.path, adapter.probe)
    # A new probe at each step has less; no library may have more.
    noise = math.sqrt(min(each.var(1, ddof=1).max(), known) / copies)
    found = Evidence(field, k, ask, each.mean(1), truth, kind=kind)
    gap = (kind.log_probability(k, field.path) - truth).max()
    words = f"nats, of a bound up to {gap:.2g} nats below log P"
    error = np.abs(found.answers - truth).max()
    return Measured(error, _limit(kind.dims) + SIGMAS * noise, words, found)


PROBE_DIMS, PROBE_COUNT = 6, 512
# Correlation of errors by the probes of two seeds, of which independent ones have 0.04.
LIKE = 0.5


def _probed(adapter: Adapter) -> Field:
    """A Gaussian, of which the variance of a probe is known."""
    return _field(adapter, subjects.anisotropic(PROBE_DIMS))


def _by_probes(adapter: Adapter, probes: int, seed: int = 0) -> tuple[Evidence, float]:
    """Answers for many draws of a Gaussian, and the variance of one probe."""
    field = _probed(adapter)
    ask = Ask(exact=False, probes=probes, seed=seed or probes)
    found = _evidence(adapter, field, PROBE_COUNT, ask)
    return found, field.subject.probe_variance(field.path, adapter.probe)


def mean(adapter: Adapter, quick: bool) -> Questions:
    """The mean over probes is the value."""
    needs = _needs(_probed(adapter), "probes")
    yield Question("1 probe", needs, partial(_mean, adapter, 1))
    yield Question("3 probes", (*needs, "several probes"), partial(_mean, adapter, 3))


def _mean(adapter: Adapter, probes: int) -> Measured:
    found, variance = _by_probes(adapter, probes)
    limit = _limit(PROBE_DIMS) + SIGMAS * math.sqrt(variance / probes / PROBE_COUNT)
    return Measured(abs((found.answers - found.truth).mean()), limit, evidence=found)


def variance(adapter: Adapter, quick: bool) -> Questions:
    """The variance over probes is that of one that is held; or less, if each step has its own."""
    yield Question("1 probe", _needs(_probed(adapter), "probes"), partial(_variance, adapter))


def _variance(adapter: Adapter) -> Measured:
    found, known = _by_probes(adapter, 1)
    ratio = (found.answers - found.truth).var() / known
    off = np.maximum(np.log2(ratio), 0) if adapter.fresh else np.abs(np.log2(ratio))
    words = f"|log2| of a variance {ratio:.3g} times that of one {adapter.probe} probe"
    again, _ = _by_probes(adapter, 1, seed=2)
    if np.corrcoef(found.answers - found.truth, again.answers - found.truth)[0, 1] > LIKE:
        off, words = np.inf, "the errors under two seeds are alike: probes are not drawn anew"
    return Measured(off, 1.0, words, found)


def calibration(adapter: Adapter, quick: bool) -> Questions:
    """Stated errors are those that are made."""
    needs = _needs(_probed(adapter), "probes", "probe error")
    yield Question("error by the probes", needs, partial(_probe_error, adapter))
    # Of a Gaussian, whose value is known to all digits.
    field = _field(adapter, subjects.anisotropic(3))
    needs = _needs(field, "exact", "solver error")
    yield Question("error of the solver", needs, partial(_solver, adapter, field))


def _probe_error(adapter: Adapter) -> Measured:
    probes = 6 if "several probes" in adapter.can else 1
    found, _ = _by_probes(adapter, probes)
    assert found.stated is not None
    stated = np.asarray(found.stated.probe_error, np.float64)
    ratio = np.square(found.answers - found.truth).mean() / np.square(stated).mean()
    words = f"|log2| of squared errors {ratio:.3g} times those stated"
    return Measured(np.abs(np.log2(ratio)), 1.0, words)


def _solver(adapter: Adapter, field: Field) -> Measured:
    found = _evidence(adapter, field, 64, Ask())
    assert found.stated is not None
    stated = np.asarray(found.stated.solver_error, np.float64)
    rounding = 1e-5 * (1 + np.abs(found.truth))
    covered = np.abs(found.answers - found.truth) <= stated + rounding
    words = f"of errors above those stated, whose median is {np.median(stated):.1g} nats"
    return Measured(float(np.mean(~covered)), 0.1, words)


BATCH = 7


def batch(adapter: Adapter, quick: bool) -> Questions:
    """A value depends neither on its neighbours nor on the batch size, and none is lost."""
    field = _field(adapter, subjects.mixture(3))
    needs = _needs(field, "exact")
    yield Question("three alone, and among seven", needs, partial(_alone, adapter, field))
    asked = partial(_in_batches, adapter, field)
    yield Question("seven in batches of three", (*needs, "batches"), asked)


def _alone(adapter: Adapter, field: Field) -> Measured:
    found = _evidence(adapter, field, BATCH, Ask())
    alone = [adapter.log_prob(field, found.x[i : i + 1], Ask()).log_prob for i in range(3)]
    off = np.concatenate(alone) - found.answers[:3]
    return Measured(np.abs(off).max(), _limit(field.dims) / 2)


def _in_batches(adapter: Adapter, field: Field) -> Measured:
    ask = Ask(batch_size=3)
    whole, found = (_evidence(adapter, field, BATCH, a) for a in (Ask(), ask))
    found = replace(found, truth=whole.answers)
    off = _missing(found)
    return off or Measured(
        np.abs(found.answers - found.truth).max(), _limit(field.dims) / 2, evidence=found
    )


STEPS = (8, 16, 32, 64)


def order(adapter: Adapter, quick: bool) -> Questions:
    """The error falls with the steps as fast as the method says."""
    even = [network for network in adapter.networks if network[0] == "straight"]
    field = _field(adapter, subjects.anisotropic(3), even[0] if even else None)
    needs = _needs(field, "exact", "steps")
    yield Question("8 to 64 steps", needs, partial(_order, adapter, field))


def _order(adapter: Adapter, field: Field) -> Measured:
    measured = [_evidence(adapter, field, 8, Ask(steps=steps)) for steps in STEPS]
    errors = np.array([np.abs(found.answers - found.truth).max() for found in measured])
    rounding = 1e-5 * (1 + np.abs(measured[0].truth).max())
    above = int(np.sum(~(errors <= rounding)))
    listed = ", ".join(f"{error:.1e}" for error in errors)
    if above < 2:
        return Measured(0.0, 0.0, f"of the order; errors {listed} nats are rounding")
    rate = math.log2(errors[above - 2] / errors[above - 1])
    lacking = max(float(adapter.order or 1) - rate, 0.0)
    return Measured(lacking, 0.6, f"of the order lacking; {rate:.1f} found by {listed} nats")


def gradient(adapter: Adapter, quick: bool) -> Questions:
    """d log p / dx passes through the solver and the divergence."""
    field = _field(adapter, subjects.mixture(3))
    needs = _needs(field, "exact", "gradient")
    yield Question("mixture, D = 3", needs, partial(_gradient, adapter, field))


def _gradient(adapter: Adapter, field: Field) -> Measured:
    x = field.subject.draw(_rng(8), 4, field.path)
    truth = field.subject.slope(x, field.path)
    found = Evidence(field, x, Ask(), np.asarray(adapter.gradient(field, x), np.float64), truth)
    off = np.linalg.norm(found.answers - truth, axis=-1) / np.linalg.norm(truth, axis=-1)
    return Measured(off.max(), 0.02, "of its length", found)


CHECKS: dict[str, Callable[[Adapter, bool], Questions]] = {
    check.__name__: check
    for check in (value, classes, images, mean, variance, calibration, batch, order, gradient)
}


def examine(adapter: Adapter, *, quick: bool = False) -> list[Case]:
    """The verdicts on all questions.

    ``quick`` leaves out 3,072 dimensions, and all but one output of each further path. Its largest
    images have 192.
    """
    return [
        _judged(adapter, name, question)
        for name, check in CHECKS.items()
        for question in check(adapter, quick)
    ]


def _judged(adapter: Adapter, check: str, question: Question) -> Case:
    lacking = [ABILITIES[need] for need in question.needs if need not in adapter.can]
    if lacking:
        absent = Measured(math.nan, math.nan, f"needs {', '.join(lacking)}")
        return Case(check, question.name, NOT_APPLICABLE, absent)
    try:
        found = question.ask()
    except Exception as error:
        message = traceback.format_exception_only(error)[-1].strip()[:200]
        found = Measured(math.inf, 0.0, f"it raised {message}")
    verdict = PASS if found.error <= found.limit else FAIL
    return Case(check, question.name, verdict, found)
