"""A small library of exact likelihoods, which does not depend on the suite that examines it.

It does one honest thing, the probability flow by an adaptive or a fixed Runge-Kutta method, and
has a switch for each of twenty faults. They are those of published code: this is what the suite is
examined on.

A network is any ``network(x, t)`` of numpy that takes complex x, so that a complex step gives its
derivatives. Its ``output`` says what it means, and ``path`` when there is what noise.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.integrate import RK45

__all__ = ["FAULTS", "VERSION", "Settings", "image_log_prob", "log_prob"]

VERSION = "1"

FAULTS = {
    "summed probes": "probes are summed and not averaged",
    "fresh probes": "a new probe at each right-hand side, under an adaptive solver",
    "no constant": "the constant of bits/dim, + 7 for 256 levels on [-1, 1], is missing",
    "no entropy": "the entropy of the dequantization noise is missing",
    "no log K": "- log K of a bound from K draws is missing",
    "last batch": "the last batch, which is not full, is dropped",
    "labels": "labels are off by one",
    "clipped": "the estimate of the data is clipped to [-1, 1]",
    "reversed": "times are reversed",
    "prior": "the prior has standard deviation 1, whatever the path",
    "wrong variable": "the divergence is that of the network's output, not of the velocity",
    "float16": "the integral of the divergence is accumulated in float16",
    "detached": "the gradient does not pass through the solver",
    "shared probe": "one probe serves all examples of a batch",
    "scaling": "the log-determinant of the standardisation has the wrong sign",
    "not standardised": "data are not standardised where the network takes standardised ones",
    "no 2 pi": "the constant of the prior, - D/2 log 2 pi, is dropped",
    "weights": "the logarithm of the dequantization's density is added, not subtracted",
    "same noise": "all draws of an image have the same noise, since their key is used again",
    "scaled twice": "the pixels' scaling is applied to what is scaled",
}
TINY = 1e-20
# Data are kept in units of this, the standardisation.
UNIT = 2.0


@dataclass(frozen=True)
class Settings:
    """How a likelihood is computed; ``fault`` is one of FAULTS, or None."""

    exact: bool = True
    probes: int = 1
    seed: int = 0
    steps: int | None = None
    batch_size: int | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Model:
    """A network, what its output means, when there is what noise; and a class for each row."""

    network: Any
    output: str
    path: Any
    labels: np.ndarray | None
    fault: str | None

    def raw(self, x: np.ndarray, t: float) -> np.ndarray:
        if self.labels is None:
            return self.network(x, t)
        return self.network(x, t, np.broadcast_to(self.labels, x.shape[:-1]))

    def velocity(self, x: np.ndarray, t: float) -> np.ndarray:
        """dx/dt of the probability flow."""
        at = self.path.scales(np.float64(t))
        x_0, eps = PARTS[self.output](self.raw(x, t), x, at)
        if self.fault == "clipped":
            x_0 = np.where(np.abs(x_0.real) > 1, np.sign(x_0.real), x_0)
            eps = (x - at.alpha * x_0) / at.sigma if at.sigma else eps
        return at.d_alpha * x_0 + at.d_sigma * eps


def _of_velocity(u: np.ndarray, x: np.ndarray, at: Any) -> tuple[np.ndarray, np.ndarray]:
    turn = at.d_alpha * at.sigma - at.d_sigma * at.alpha
    return (at.sigma * u - at.d_sigma * x) / turn, (at.d_alpha * x - at.alpha * u) / turn


def _of_v(v: np.ndarray, x: np.ndarray, at: Any) -> tuple[np.ndarray, np.ndarray]:
    norm = at.alpha**2 + at.sigma**2
    return (at.alpha * x - at.sigma * v) / norm, (at.sigma * x + at.alpha * v) / norm


# (output, x, scales) -> estimates of the data and of the noise
PARTS: dict[str, Any] = {
    "eps": lambda eps, x, at: ((x - at.sigma * eps) / at.alpha, eps),
    "score": lambda score, x, at: PARTS["eps"](-at.sigma * score, x, at),
    "x_0": lambda x_0, x, at: (x_0, (x - at.alpha * x_0) / at.sigma),
    "v": _of_v,
    "velocity": _of_velocity,
}


def log_prob(
    network: Any, output: str, path: Any, x: np.ndarray, settings: Settings, labels: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """log p of rows of ``x`` at the path's start, and its standard error by probes; in nats."""
    n, fault = len(x), settings.fault
    size = settings.batch_size or n
    ends = [*range(size, n + 1, size)]
    if fault != "last batch" and (not ends or ends[-1] != n):
        ends.append(n)
    if labels is not None and fault == "labels":
        labels = labels - 1
    found, first = [], 0
    rng = np.random.default_rng(settings.seed)
    for last in ends:
        mine = None if labels is None else labels[first:last]
        model = Model(network, output, path, mine, fault)
        found.append(_of_batch(model, x[first:last], settings, rng)[:2])
        first = last
    values, errors = (np.concatenate(column) for column in zip(*found, strict=True))
    return values, errors


def gradient(network: Any, output: str, path: Any, x: np.ndarray, fault: str | None) -> np.ndarray:
    """The gradient of log p in x, by central differences."""
    settings, columns = Settings(fault=fault), []
    if fault == "detached":
        model = Model(network, output, path, None, fault)
        z = _of_batch(model, x, settings, np.random.default_rng(0))[2]
        return -z / path.prior_std**2
    for step in 1e-3 * np.eye(x.shape[1]):
        ends = [log_prob(network, output, path, x + s * step, settings)[0] for s in (1, -1)]
        columns.append((ends[0] - ends[1]) / 2e-3)
    return np.stack(columns, -1)


def _of_batch(
    model: Model, x: np.ndarray, settings: Settings, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log p of each, its standard error, and the latent."""
    n, dims, path = len(x), x.shape[1], model.path
    x = x / UNIT if settings.fault == "not standardised" else x
    times = (path.stop, path.start) if settings.fault == "reversed" else (path.start, path.stop)
    count = 1 if settings.exact else settings.probes
    held = _probes(rng, settings, n, dims)

    def rate(t: float, state: np.ndarray) -> np.ndarray:
        now = state[: x.size].reshape(n, dims)
        probes = _probes(rng, settings, n, dims) if settings.fault == "fresh probes" else held
        moved = now + 1j * TINY * probes
        velocity = model.velocity(moved, t)
        traced = model.raw(moved, t) if settings.fault == "wrong variable" else velocity
        forms = (probes * traced.imag / TINY).sum(-1)
        if settings.exact:
            forms = forms.sum(0, keepdims=True)
        return np.concatenate([velocity[0].real.ravel(), forms.ravel()])

    start = np.concatenate([x.ravel(), np.zeros(count * n)])
    half = settings.fault == "float16"
    end = _solve(rate, start, times, settings, x.size, np.float16 if half else np.float64)
    z, traces = end[: x.size].reshape(n, dims), end[x.size :].reshape(count, n)
    std = 1.0 if settings.fault == "prior" else path.prior_std
    constant = 0.0 if settings.fault == "no 2 pi" else np.log(2 * np.pi)
    prior = -0.5 * (np.square(z / std) + constant + 2 * np.log(std)).sum(-1)
    total = traces.sum(0) if settings.fault == "summed probes" else traces.mean(0)
    error = traces.std(0, ddof=1) / np.sqrt(count) if count > 1 else np.full(n, np.nan)
    standardised = prior + total + dims * np.log(UNIT)
    log_det = (1 if settings.fault == "scaling" else -1) * dims * np.log(UNIT)
    return standardised + log_det, error, z


def _probes(rng: np.random.Generator, settings: Settings, n: int, dims: int) -> np.ndarray:
    """[k n D]: unit vectors for an exact trace, or random signs."""
    if settings.exact:
        return np.broadcast_to(np.eye(dims)[:, None], (dims, n, dims))
    rows = 1 if settings.fault == "shared probe" else n
    probes = rng.choice([-1.0, 1.0], size=(settings.probes, rows, dims))
    return np.broadcast_to(probes, (settings.probes, n, dims))


def _solve(
    rate: Any, state: np.ndarray, times: tuple[float, float], settings: Settings, split: int,
    sums: Any,
) -> np.ndarray:  # fmt: skip
    """The end of the path; what lies behind ``split`` is summed step by step, as ``sums``."""
    total = np.zeros(len(state) - split, sums)

    def add(old: np.ndarray, new: np.ndarray) -> None:
        total[:] = total + (new - old)[split:].astype(sums)

    if settings.steps is not None:
        grid = np.linspace(*times, settings.steps + 1)
        for t, end in itertools.pairwise(grid):
            new = _rk4(rate, t, end - t, state)
            add(state, new)
            state = new
    else:
        near = np.full(len(state), 1e-5)
        if not settings.exact:
            near[split:] = 1e-3  # of what is random by itself
        solver = RK45(rate, times[0], state, times[1], rtol=1e-5, atol=near)
        while solver.status == "running":
            old = solver.y
            solver.step()
            add(old, solver.y)
            if solver.status == "failed" or not np.isfinite(solver.y).all():
                raise FloatingPointError(f"the solver gave up at t = {solver.t:g}")
        state = solver.y
    return np.concatenate([state[:split], total])


def _rk4(rate: Any, t: float, h: float, y: np.ndarray) -> np.ndarray:
    a = rate(t, y)
    b = rate(t + h / 2, y + h / 2 * a)
    c = rate(t + h / 2, y + h / 2 * b)
    d = rate(t + h, y + h * c)
    return y + h / 6 * (a + 2 * b + 2 * c + d)


def image_log_prob(
    network: Any, output: str, path: Any, images: np.ndarray, levels: int, settings: Settings,
    draws: int = 1, dequantizer: str = "uniform",
) -> np.ndarray:  # fmt: skip
    """log P of integers [n h w c] in nats: a bound from ``draws`` draws of the noise in a bin."""
    n, fault = len(images), settings.fault
    k = np.tile(images.reshape(n, -1), (draws, 1))
    rng = np.random.default_rng([settings.seed, 1])
    shape = (1 if fault == "same noise" else draws, n, k.shape[1])
    if dequantizer == "uniform":
        u, log_q = rng.uniform(size=shape), np.zeros(len(k))
    else:
        u = rng.beta(2, 2, size=shape)
        log_q = np.broadcast_to(np.log(6 * u * (1 - u)).sum(-1), (draws, n)).ravel()
    u = np.broadcast_to(u, (draws, *shape[1:])).reshape(k.shape)
    y, alpha = -1 + 2 * (k + u) / levels, path.scales(np.float64(path.start)).alpha
    y = -1 + 2 * y / levels if fault == "scaled twice" else y
    value, _ = log_prob(network, output, path, alpha * y, replace(settings, batch_size=None))
    value = value + k.shape[1] * np.log(alpha)
    if fault != "no entropy":
        value = value + log_q if fault == "weights" else value - log_q
    if fault != "no constant":
        value = value + k.shape[1] * np.log(2 / levels)
    value = np.logaddexp.reduce(value.reshape(draws, n), axis=0)
    return value if fault == "no log K" else value - np.log(draws)
