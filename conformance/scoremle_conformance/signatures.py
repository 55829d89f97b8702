"""Signatures: how a fault shows in answers, so that it can be named.

Most are a closed form of the wrong answer: what the value would be under the fault. A fault is
named if, wherever it would show, the answers are the wrong ones and not the right ones. The others
are a structure: a variance, a number of values, a grid that values lie on.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy.integrate import quad_vec

from scoremle_conformance.adapter import Adapter
from scoremle_conformance.checks import FAIL, PASS, Case
from scoremle_conformance.fields import OUTPUTS
from scoremle_conformance.images import DEQUANTIZERS
from scoremle_conformance.subjects import Subject, log_normal

__all__ = ["SIGNATURES", "Signature", "diagnose"]

# The wrong answer in a case, for each form that the fault may have; none where none is known.
Prediction = Callable[[Case], dict[str, np.ndarray]]
# A wrong answer is told from the right one if they are so many limits apart, and recognised if the
# answer is nearer to it than this share of their distance.
APART, NEAR = 3.0, 0.02


@dataclass(frozen=True)
class Signature:
    """A fault's name, what is seen of it in a line, and whether it is seen."""

    name: str
    words: str
    seen: Callable[[Adapter, list[Case]], bool]


def _distance(case: Case, one: np.ndarray, other: np.ndarray) -> float:
    """Of examples, the largest; of values by random probes, that of their means."""
    random = case.ask is not None and not case.ask.exact and case.check != "images"
    apart = np.asarray(one) - np.asarray(other)
    return abs(float(apart.mean())) if random else float(np.abs(apart).max())


def _would_be(predict: Prediction, *checks: str) -> Callable[[Adapter, list[Case]], bool]:
    """Are the answers, for one form of the fault, wrong as predicted wherever it would show?"""

    def seen(adapter: Adapter, cases: list[Case]) -> bool:
        verdicts: dict[str, bool] = {}
        for case in cases:
            if case.check not in checks or np.shape(case.answers) != np.shape(case.truth):
                continue
            for form, wrong in predict(case).items():
                apart = _distance(case, wrong, case.truth)
                if apart > APART * case.limit:
                    near = _distance(case, case.answers, wrong) <= case.limit + NEAR * apart
                    verdicts[form] = verdicts.get(form, True) and near
        return any(verdicts.values())

    return seen


def _single(case: Case) -> Subject | None:
    """The case's Gaussian, if it is one and each example has a value."""
    assert case.field is not None
    return case.field.subject if case.field.subject.single and case.x is not None else None


def _summed(case: Case) -> dict[str, np.ndarray]:
    assert case.field is not None and case.ask is not None
    extra = (case.ask.probes - 1) * case.field.subject.trace_part(case.field.path)
    return {"": case.truth + extra} if case.ask.probes > 1 else {}


def _no_constant(case: Case) -> dict[str, np.ndarray]:
    assert case.kind is not None
    return {"": case.truth - case.kind.log_volume}


def _no_entropy(case: Case) -> dict[str, np.ndarray]:
    assert case.ask is not None and case.kind is not None
    log_q = DEQUANTIZERS[case.ask.dequantizer][1]
    return {"": case.truth + case.kind.dims * log_q} if case.ask.draws == 1 else {}


def _no_log_draws(case: Case) -> dict[str, np.ndarray]:
    assert case.ask is not None
    return {"": case.truth + math.log(case.ask.draws)}


def _other_labels(case: Case) -> dict[str, np.ndarray]:
    assert case.field is not None and case.ask is not None and case.ask.labels is not None
    subject, path = case.field.subject, case.field.path
    count = len(subject.weights)
    return {
        f"{shift:+}": subject.log_model(case.x, path, (case.ask.labels + shift) % count)
        for shift in (1, -1)
    }


def _clipped(case: Case) -> dict[str, np.ndarray]:
    """The estimate of a point is the point, and clipped it is that of another."""
    subject = _single(case)
    if subject is None or subject.variances.any():
        return {}
    assert case.field is not None
    means = np.clip(subject.means, -1, 1)
    other = Subject("clipped", subject.weights, means, subject.variances, subject.h)
    return {"": other.log_model(case.x, case.field.path)}


def _reversed(case: Case) -> dict[str, np.ndarray]:
    subject = _single(case)
    if subject is None:
        return {}
    assert case.field is not None
    path = case.field.path
    back = type(path)(path.name, path.stop, path.start, path.prior_std)
    return {"": subject.log_model(case.x, back)}


def _other_prior(case: Case) -> dict[str, np.ndarray]:
    """The standard deviation that the slope of the error in |z|^2 tells."""
    subject = _single(case)
    if subject is None or case.ask is None or not case.ask.exact:
        return {}
    assert case.field is not None
    path = case.field.path
    z = subject.latent(case.x, path)
    slope = np.polyfit(np.square(z).sum(-1), case.answers - case.truth, 1)[0]
    precision = path.prior_std**-2.0 - 2 * slope
    if not precision > 0 or abs(math.log(precision * path.prior_std**2)) < 0.02:
        return {}
    return {"": log_normal(z, 0, 1 / precision) + subject.trace_part(path)}


def _other_divergence(case: Case) -> dict[str, np.ndarray]:
    """That of the network's output; or of the velocity without its part linear in x."""
    subject = _single(case)
    if subject is None:
        return {}
    assert case.field is not None
    path, output = case.field.path, case.field.output

    def rate(t: float) -> float:
        at, w = path.scales(np.float64(t)), subject.variances[0]
        variance = at.alpha**2 * w + at.sigma**2
        return OUTPUTS[output](-1 / variance, at.alpha * w / variance, at).sum()

    without = case.truth - subject.trace_part(path)
    found = {}
    if output != "velocity":
        found["output"] = without + quad_vec(rate, path.start, path.stop)[0]
    first, last = (path.scales(np.float64(t)).alpha for t in (path.start, path.stop))
    if last > 0:
        found["linear"] = case.truth - subject.dims * math.log(last / first)
    return found


def _fewer_values(adapter: Adapter, cases: list[Case]) -> bool:
    for case in cases:
        size = case.ask.batch_size if case.check == "batch" and case.ask else None
        if size and np.shape(case.answers) != np.shape(case.truth):
            return len(case.answers) == len(case.truth) // size * size
    return False


def _fresh_probes(adapter: Adapter, cases: list[Case]) -> bool:
    unbiased = all(case.verdict != FAIL for case in cases if case.check == "mean")
    ratios = [case.answers for case in cases if case.check == "variance"]
    small = any(ratio is not None and ratio < 0.5 for ratio in ratios)
    return adapter.adaptive and unbiased and small


def _half_precision(adapter: Adapter, cases: list[Case]) -> bool:
    """Trace parts that are near the right ones, and all of them numbers of float16."""
    found = False
    for case in cases:
        if case.check != "value" or np.shape(case.answers) != np.shape(case.truth):
            continue
        subject = _single(case)
        if subject is None or not subject.has_density:  # the latent of others is too uncertain
            continue
        assert case.field is not None
        path = case.field.path
        traces = case.answers - log_normal(subject.latent(case.x, path), 0, path.prior_std**2)
        spacing = np.spacing(np.abs(traces).astype(np.float16)).astype(np.float64)
        if not (np.isfinite(spacing).all() and spacing.min() >= 0.1):
            continue
        off = np.abs(traces / spacing - np.round(traces / spacing))
        if off.max() > 0.1 or case.error > 0.05 * np.abs(traces).max():
            return False
        found = True
    return found


def _too_few_steps(adapter: Adapter, cases: list[Case]) -> bool:
    values = [case.verdict for case in cases if case.check in ("value", "classes")]
    orders = [case.verdict for case in cases if case.check == "order"]
    return FAIL in values and orders == [PASS]


SIGNATURES = (
    Signature(
        "probes summed and not averaged",
        "m probes add m - 1 times the trace part, and one probe adds nothing",
        _would_be(_summed, "mean"),
    ),
    Signature(
        "a new probe at each right-hand side under an adaptive solver",
        "the variance over probes is less than half that of a probe that is held",
        _fresh_probes,
    ),
    Signature(
        "the constant of bits/dim missing (+ 7 for 256 levels)",
        "log P of integers is off by D log(levels / 2)",
        _would_be(_no_constant, "images"),
    ),
    Signature(
        "entropy of the dequantization missing",
        "log P is off by the entropy of 6 u (1 - u), D times -0.125 nats, and right for uniform u",
        _would_be(_no_entropy, "images"),
    ),
    Signature(
        "- log K missing",
        "a bound from K draws is off by log K, and right for one draw",
        _would_be(_no_log_draws, "images"),
    ),
    Signature(
        "last batch dropped",
        "as many values as full batches hold",
        _fewer_values,
    ),
    Signature(
        "labels off by one",
        "values under a class are those of the class beside it",
        _would_be(_other_labels, "classes"),
    ),
    Signature(
        "clipped denoiser",
        "a point mass has the density of that point clipped to [-1, 1]",
        _would_be(_clipped, "value"),
    ),
    Signature(
        "times reversed",
        "values are those of the path from its stop to its start",
        _would_be(_reversed, "value"),
    ),
    Signature(
        "prior of the wrong scale",
        "the error is that of N(0, c^2 I) for one c, which its slope in |z|^2 tells",
        _would_be(_other_prior, "value"),
    ),
    Signature(
        "divergence of the wrong variable",
        "the trace part is that of the network's output, or lacks D log(alpha_stop / alpha_start)",
        _would_be(_other_divergence, "value"),
    ),
    Signature(
        "float16 accumulation",
        "trace parts are off by a few of float16's spacings, and lie on its grid",
        _half_precision,
    ),
)
NO_FAULT = Signature(
    "too few steps, no fault",
    "values are off, and come right with more steps as fast as the method says",
    _too_few_steps,
)
UNKNOWN = Signature("no signature", "an error that no signature describes", lambda *_: True)


def diagnose(adapter: Adapter, cases: Iterable[Case]) -> list[Signature]:
    """The faults that are seen; if none is and something failed, what else it may be."""
    told = list(cases)
    if all(case.verdict != FAIL for case in told):
        return {}
    named = [signature for signature in SIGNATURES if signature.seen(adapter, told)]
    return named or [NO_FAULT if NO_FAULT.seen(adapter, told) else UNKNOWN]
