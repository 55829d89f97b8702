"""Signatures: how a fault shows in answers, so that it can be named.

Most are a closed form of the wrong answer: what the value would be under the fault. A fault is
named if, wherever it would show, the answers are the wrong ones. The others are a structure: a
variance, a number of values, a grid that values lie on.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from scipy.integrate import quad_vec, solve_ivp
from scipy.optimize import minimize_scalar

from scoremle_conformance.adapter import Adapter
from scoremle_conformance.checks import FAIL, PASS, Case, Evidence
from scoremle_conformance.fields import OUTPUTS
from scoremle_conformance.images import DEQUANTIZERS
from scoremle_conformance.subjects import log_normal

__all__ = ["SIGNATURES", "Signature", "diagnose"]

# The wrong answers, by the form that the fault may have; none where they have no closed form.
Prediction = Callable[[Evidence], dict[str, np.ndarray]]
# A wrong answer differs from the right one if they are so many limits apart, and recognised if the
# answer is nearer to it than this share of their distance.
APART, NEAR = 3.0, 0.02
# The error that all examples have in common may be a small one of its kind, by this factor.
SHARED = 50.0
# Errors that fall with more steps do so by this order at least.
FALLS = 0.5


@dataclass(frozen=True)
class Signature:
    """A fault's name, what is seen of it in a line, and whether it is seen."""

    name: str
    words: str
    seen: Callable[[Adapter, list[Case]], bool]


def _complete(cases: list[Case], *checks: str) -> Iterator[tuple[Case, Evidence]]:
    """Those of these checks that have a value for each example."""
    for case in cases:
        found = case.evidence
        if case.check in checks and found and found.answers.shape == found.truth.shape:
            yield case, found


def _distance(found: Evidence, one: np.ndarray, other: np.ndarray) -> float:
    """The largest of examples; where traces are by random probes, that of the means."""
    apart = one - other
    return float(np.abs(apart).max() if found.ask.exact or found.kind else abs(apart.mean()))


def _would_be(predict: Prediction, *checks: str) -> Callable[[Adapter, list[Case]], bool]:
    """Whether the answers are wrong as one form of the fault predicts, wherever it would show."""

    def seen(adapter: Adapter, cases: list[Case]) -> bool:
        verdicts: dict[str, bool] = {}
        for case, found in _complete(cases, *checks):
            limit = case.found.limit
            for form, wrong in predict(found).items():
                apart = _distance(found, wrong, found.truth)
                if apart > APART * limit:
                    near = _distance(found, found.answers, wrong) <= limit + NEAR * apart
                    verdicts[form] = verdicts.get(form, True) and near
        return any(verdicts.values())

    return seen


def _summed(found: Evidence) -> dict[str, np.ndarray]:
    trace = found.field.subject.trace_part(found.field.path)
    return {"": found.truth + (found.ask.probes - 1) * trace}


def _shared_probe(adapter: Adapter, cases: list[Case]) -> bool:
    """The flow of a Gaussian has one Jacobian for all x: so one probe gives all the same error."""
    for _, found in _complete(cases, "variance"):
        errors = found.answers - found.truth
        known = found.field.subject.probe_variance(found.field.path, adapter.probe)
        return bool(errors.std() < 0.02 * math.sqrt(known) < 0.02 * SHARED * abs(errors.mean()))
    return False


def _fresh(adapter: Adapter, cases: list[Case]) -> bool:
    unbiased = all(case.verdict == PASS for case in cases if case.check == "mean")
    ratios = [
        (found.answers - found.truth).var()
        / found.field.subject.probe_variance(found.field.path, adapter.probe)
        for _, found in _complete(cases, "variance")
    ]
    shared = _shared_probe(adapter, cases)
    return adapter.adaptive and unbiased and not shared and any(ratio < 0.5 for ratio in ratios)


def _no_constant(found: Evidence) -> dict[str, np.ndarray]:
    return {"": found.truth - found.kind.log_volume} if found.kind else {}


def _no_entropy(found: Evidence) -> dict[str, np.ndarray]:
    if found.kind is None or found.ask.draws > 1:
        return {}
    return {"": found.truth + found.kind.dims * DEQUANTIZERS[found.ask.dequantizer][1]}


def _added_density(found: Evidence) -> dict[str, np.ndarray]:
    if found.kind is None or found.ask.draws > 1:
        return {}
    return {"": found.truth + 2 * found.kind.dims * DEQUANTIZERS[found.ask.dequantizer][1]}


def _one_noise(found: Evidence) -> dict[str, np.ndarray]:
    kind, ask = found.kind, found.ask
    if kind is None or ask.draws == 1:
        return {}
    path = found.field.path
    return {"": kind.expected(found.x, path, draws=1, dequantizer=ask.dequantizer)}


def _scaled_twice(found: Evidence) -> dict[str, np.ndarray]:
    kind = found.kind
    if kind is None or found.ask.draws > 1:
        return {}
    path, subject, levels = found.field.path, kind.subject, kind.levels
    at = path.scales(np.float64(path.start))
    variance = subject.variances[0] + (at.sigma / at.alpha) ** 2
    spread, log_q = DEQUANTIZERS[found.ask.dequantizer]
    once = -1 + 2 * (found.x.reshape(len(found.x), -1) + 0.5) / levels
    middle, noise = -1 + 2 * once / levels, (2 / levels) ** 4 * spread / variance
    value = log_normal(middle, subject.means[0], variance) - noise.sum() / 2
    return {"": value + kind.log_volume - kind.dims * log_q}


def _no_log_draws(found: Evidence) -> dict[str, np.ndarray]:
    return {"": found.truth + math.log(found.ask.draws)}


def _fewer(adapter: Adapter, cases: list[Case]) -> bool:
    for case in cases:
        found = case.evidence
        if found and found.ask.batch_size and len(found.answers) < len(found.truth):
            size = found.ask.batch_size
            return len(found.answers) == len(found.truth) // size * size
    return False


def _other_labels(found: Evidence) -> dict[str, np.ndarray]:
    subject, labels = found.field.subject, found.ask.labels
    assert labels is not None
    return {
        f"{shift:+}": subject.log_model(
            found.x, found.field.path, (labels + shift) % len(subject.weights)
        )
        for shift in (1, -1)
    }


def _clipped(found: Evidence) -> dict[str, np.ndarray]:
    """The estimate of a point mass is its point: clipped, it is that of another point."""
    subject = found.field.subject
    if subject.variances.any():
        return {}
    other = replace(subject, means=np.clip(subject.means, -1, 1))
    return {"": other.log_model(found.x, found.field.path)}


def _reversed(found: Evidence) -> dict[str, np.ndarray]:
    subject, path = found.field.subject, found.field.path
    if not subject.single:
        return {}
    return {"": subject.log_model(found.x, replace(path, start=path.stop, stop=path.start))}


def _other_prior(found: Evidence) -> dict[str, np.ndarray]:
    """With the scale that the slope of the errors in |z|^2 gives."""
    subject, path = found.field.subject, found.field.path
    if not (subject.single and found.ask.exact and np.isfinite(found.answers).all()):
        return {}
    z = subject.latent(found.x, path)
    slope = np.polyfit(np.square(z).sum(-1), found.answers - found.truth, 1)[0]
    precision = path.prior_std**-2.0 - 2 * slope
    if not precision > 0 or abs(math.log(precision * path.prior_std**2)) < 0.02:
        return {}
    return {"": log_normal(z, 0, 1 / precision) + subject.trace_part(path)}


def _no_two_pi(found: Evidence) -> dict[str, np.ndarray]:
    return {"": found.truth + found.field.dims * math.log(2 * math.pi) / 2}


def _scaling(adapter: Adapter, cases: list[Case]) -> bool:
    """Values are off by one number times D, in several D, and not one that has another name."""
    rates, dims, known = list[np.ndarray](), set[int](), [math.log(2 * math.pi) / 2]
    for _, found in _complete(cases, "value"):
        if found.ask.exact:
            rates.append((found.answers - found.truth) / found.field.dims)
            dims.add(found.field.dims)
            path = found.field.path
            first, last = (path.scales(np.float64(t)).alpha for t in (path.start, path.stop))
            known += [math.log(first / last)] if last > 0 else []
    if len(dims) < 2:
        return False
    every = np.concatenate(rates)
    if not np.isfinite(every).all():
        return False
    rate = float(np.median(every))
    named = any(abs(rate - other) < 0.01 for other in known)
    return not named and abs(rate) > 0.05 and bool(np.ptp(every) < NEAR * abs(rate) + 0.01)


def _other_units(found: Evidence) -> dict[str, np.ndarray]:
    """The values at c x, with the c that fits them best."""
    subject, path = found.field.subject, found.field.path
    if not (subject.single and found.ask.exact and np.isfinite(found.answers).all()):
        return {}

    def off(log_c: Any) -> Any:
        wrong = subject.log_model(found.x * np.exp(log_c)[..., None, None], path)
        return np.log1p(np.abs(found.answers - wrong)).sum(-1)

    grid = np.linspace(-6, 6, 601)
    best = grid[np.argmin(off(grid))]
    log_c = minimize_scalar(off, bounds=(best - 0.02, best + 0.02), method="bounded").x
    if abs(log_c) < 0.02:
        return {}
    return {"": subject.log_model(found.x * math.exp(log_c), path)}


def _multiple(*factors: float) -> Prediction:
    """The trace part times one of these."""

    def wrong(found: Evidence) -> dict[str, np.ndarray]:
        subject = found.field.subject
        if not subject.single:
            return {}
        trace = subject.trace_part(found.field.path)
        return {f"{factor:g}": found.truth + (factor - 1) * trace for factor in factors}

    return wrong


def _other_velocity(found: Evidence) -> dict[str, np.ndarray]:
    """Results of g^2 times the score where the flow has half, and of a network at 1 - t."""
    subject, path = found.field.subject, found.field.path
    if not subject.single or found.field.dims > 32:
        return {}

    def at(t: float, x: np.ndarray, factor: float) -> np.ndarray:
        scales = path.scales(np.float64(t))
        score, x_0 = subject.expect(x, scales)
        own = scales.d_alpha * x_0 - scales.d_sigma * scales.sigma * score
        linear = scales.d_alpha / scales.alpha * x if factor != 1 else 0.0
        return linear + factor * (own - linear)

    def turned(t: float, x: np.ndarray) -> np.ndarray:
        return at(path.start + path.stop - t, x, 1)

    def carried(velocity: Callable[[float, np.ndarray], np.ndarray]) -> np.ndarray:
        def rate(t: float, state: np.ndarray) -> np.ndarray:
            return velocity(t, state.reshape(found.x.shape)).ravel()

        ends = path.start, path.stop
        end = solve_ivp(rate, ends, found.x.ravel(), "LSODA", rtol=1e-7, atol=1e-7).y[:, -1]
        return log_normal(end.reshape(found.x.shape), 0, path.prior_std**2)

    trace = subject.trace_part(path)
    first, last = (path.scales(np.float64(t)).alpha for t in (path.start, path.stop))
    wrong = {"1 - t": carried(turned) + trace}
    if last > 0:
        linear = subject.dims * math.log(last / first)
        for factor in (0.5, 2.0):
            moved = carried(partial(at, factor=factor))
            wrong[f"{factor:g}"] = moved + linear + factor * (trace - linear)
    return wrong


def _other_divergence(found: Evidence) -> dict[str, np.ndarray]:
    """That of the network's output; or of the velocity, but for its part linear in x."""
    subject, path, output = found.field.subject, found.field.path, found.field.output
    if not subject.single:
        return {}

    def rate(t: float) -> float:
        at = path.scales(np.float64(t))
        variance = at.alpha**2 * subject.variances[0] + at.sigma**2
        return OUTPUTS[output](-1 / variance, at.alpha * subject.variances[0] / variance, at).sum()

    wrong = {}
    if output != "velocity":
        trace = quad_vec(rate, path.start, path.stop)[0]
        wrong["output"] = found.truth - subject.trace_part(path) + trace
    first, last = (path.scales(np.float64(t)).alpha for t in (path.start, path.stop))
    if last > 0:
        wrong["linear part"] = found.truth - subject.dims * math.log(last / first)
    return wrong


def _half_precision(adapter: Adapter, cases: list[Case]) -> bool:
    """Trace parts that are near the right ones, and all of them numbers of float16."""
    seen = False
    for case, found in _complete(cases, "value"):
        subject, path = found.field.subject, found.field.path
        if not (subject.single and subject.has_density):  # of others the latent is less certain
            continue
        prior = log_normal(subject.latent(found.x, path), 0, path.prior_std**2)
        trace = found.answers - prior
        size = np.clip(np.nan_to_num(np.abs(trace)), 0, 6e4)  # what float16 holds
        spacing = np.spacing(size.astype(np.float16)).astype(np.float64)
        if spacing.min() >= 0.1:
            off = np.abs(trace / spacing - np.round(trace / spacing))
            if not off.max() <= 0.1 or case.found.error > 0.05 * np.abs(trace).max():
                return False
            seen = True
    return seen


def _not_solved(adapter: Adapter, cases: list[Case]) -> bool:
    """Values that are log prior at the start: of some examples the solver gives that back."""
    for case, found in _complete(cases, "value"):
        start = log_normal(found.x, 0, found.field.path.prior_std**2)
        apart = _distance(found, start, found.truth) > APART * case.found.limit
        if apart and np.abs(found.answers - start).max() <= case.found.limit:
            return True
    return False


def _low_order(adapter: Adapter, cases: list[Case]) -> bool:
    """Errors fall with more steps, more slowly than the method says; no value need be wrong."""
    failed = {case.check for case in cases if case.verdict == FAIL}
    rates = [(adapter.order or 1) - c.found.error for c in cases if c.check == "order"]
    return "order" in failed and (failed == {"order"} or max(rates) > FALLS)


def _of_the_prior(adapter: Adapter, cases: list[Case]) -> bool:
    """Gradients that solver and trace were left out of."""
    for case, found in _complete(cases, "gradient"):
        path = found.field.path
        wrong = -found.field.subject.latent(found.x, path) / path.prior_std**2
        off = np.linalg.norm(found.answers - wrong, axis=-1) / np.linalg.norm(wrong, axis=-1)
        return case.verdict == FAIL and bool(off.max() <= case.found.limit)
    return False


# The first twenty are planted in the sample library.
SIGNATURES = (
    Signature(
        "probes summed and not averaged",
        "the mean by m probes is off by m - 1 times the trace part",
        _would_be(_summed, "mean"),
    ),
    Signature(
        "a new probe at each right-hand side under an adaptive solver",
        "the solver is adaptive, and the variance less than half that of a probe that is held",
        _fresh,
    ),
    Signature(
        "the constant of bits/dim missing (+ 7 for 256 levels)",
        "log P of integers is off by D log(levels / 2)",
        _would_be(_no_constant, "images"),
    ),
    Signature(
        "entropy of the dequantization missing",
        "log P is off by D times 0.125 nats, the entropy of 6 u (1 - u), and right for uniform u",
        _would_be(_no_entropy, "images"),
    ),
    Signature(
        "- log K missing",
        "a bound from K draws is off by log K",
        _would_be(_no_log_draws, "images"),
    ),
    Signature("last batch dropped", "there are as many values as full batches hold", _fewer),
    Signature(
        "labels off by one",
        "values under a class are those under the class beside it",
        _would_be(_other_labels, "classes"),
    ),
    Signature(
        "clipped denoiser",
        "a point mass has the density of its point clipped to [-1, 1]",
        _would_be(_clipped, "value"),
    ),
    Signature(
        "times reversed",
        "values are those of the path from its stop to its start",
        _would_be(_reversed, "value"),
    ),
    Signature(
        "prior of the wrong scale",
        "errors are those of a prior N(0, c^2 I), with one c that their slope in |z|^2 gives",
        _would_be(_other_prior, "value"),
    ),
    Signature(
        "divergence of the wrong variable",
        "the trace part is that of the network's output, or lacks D log(alpha_stop / alpha_start)",
        _would_be(_other_divergence, "value"),
    ),
    Signature(
        "float16 accumulation",
        "trace parts are a little off, and lie on the grid of float16",
        _half_precision,
    ),
    Signature(
        "gradient that does not pass through the solver",
        "the gradient of log p is that of log prior at the latent",
        _of_the_prior,
    ),
    Signature(
        "one probe for a batch",
        "all examples have the same error, where probes of their own would give each another",
        _shared_probe,
    ),
    Signature(
        "log-determinant of a scaling missing, or of the wrong sign",
        "values are off by D times one number, whatever the data",
        _scaling,
    ),
    Signature(
        "standardisation forgotten",
        "values are those at c x, with one c",
        _would_be(_other_units, "value"),
    ),
    Signature(
        "constant of the prior dropped",
        "values are too large by D/2 log 2 pi",
        _would_be(_no_two_pi, "value"),
    ),
    Signature(
        "density of the dequantization added and not subtracted",
        "log P is off by D times 0.25 nats, and right for uniform u",
        _would_be(_added_density, "images"),
    ),
    Signature(
        "one noise for all draws",
        "a bound from K draws is that from one: a key is used again",
        _would_be(_one_noise, "images"),
    ),
    Signature(
        "pixels scaled twice",
        "log P is that of -1 + 2 y / levels, where y is scaled already",
        _would_be(_scaled_twice, "images"),
    ),
    Signature(
        "divergence of the wrong sign, or by a factor",
        "the trace part is -1, 1/2 or 2 times the right one",
        _would_be(_multiple(-1, 0.5, 2), "value"),
    ),
    Signature(
        "flow of another score or time",
        "values are those where the score counts half or twice, or the network is called at 1 - t",
        _would_be(_other_velocity, "value"),
    ),
    Signature(
        "solves that give back their start",
        "some values are log prior at the data, without a trace",
        _not_solved,
    ),
    Signature(
        "an order below the method's",
        "errors fall with more steps, and more slowly than the method says",
        _low_order,
    ),
)


def _verdicts(cases: list[Case], check: str) -> list[str]:
    return [case.verdict for case in cases if case.check == check]


def _coarse(adapter: Adapter, cases: list[Case]) -> bool:
    return FAIL in _verdicts(cases, "value") and _verdicts(cases, "order") == [PASS]


# What is said where no fault is seen, and something fails.
OTHERWISE = (
    Signature(
        "too few steps",
        "values are off, and errors fall with more steps as fast as the method says",
        _coarse,
    ),
    Signature("not named", "no signature describes what fails", lambda adapter, cases: True),
)


def diagnose(adapter: Adapter, cases: list[Case]) -> list[Signature]:
    """What is wrong, in the words of signatures; nothing where nothing fails."""
    if all(case.verdict != FAIL for case in cases):
        return []
    named = [signature for signature in SIGNATURES if signature.seen(adapter, cases)]
    return named or [next(signature for signature in OTHERWISE if signature.seen(adapter, cases))]
