"""Statistics of images or vectors under a model: the features that a detector goes by.

    likelihood  bits/dim by the ODE, of reals -log p; unusual at both ends
    typicality  the same; unusual far from the mean (Nalisnick et al., arXiv 1906.02994)
    complexity  the same, less its regression on PNG's bits; at both ends (arXiv 1909.11480)
    msma        norms of the score at ten noises (Mahmood et al., arXiv 2010.13132)
    profile     bits at ten noises (`likelihood/profile.py`)
    scoped      squared norm over trace at ten noises (Barkley et al., arXiv 2510.01456)
    path        speed and curvature of the way to the prior (Heng et al., arXiv 2405.11881)

The last four are logarithms of several numbers, and unusual where their density is low. All that
is random belongs to the content of an example and to the seed: a feature is a function of its
example, and equal ones have equal features.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt64

from scoremle.anomaly.normality import Density, FeatureTable, Normality, Ranks
from scoremle.core.bijectors import in_all_digits
from scoremle.core.keys import image_keys, key_of
from scoremle.core.programs import OfModels
from scoremle.core.times import log_snr_range, times_at
from scoremle.devices import within_memory
from scoremle.errors import UserError
from scoremle.evaluation.baselines import png_bpd
from scoremle.likelihood.profile import msma_levels, score_norms, square_and_trace
from scoremle.model import BATCH_SIZE, ScoreModel
from scoremle.numerics import (
    check_finite_values,
    dims_of,
    expand,
    power_of_two,
    predict,
    sum_data,
)
from scoremle.resumable import resumable_map
from scoremle.types import Data, Keys

__all__ = ["numbers_of"]

Numbers = UInt64[np.ndarray, " n"]

# Noises of ``scoped``, and probes at each; steps of the path, and powers of its norms.
LEVELS, PROBES, STEPS, POWERS = 10, 4, 10, (1, 2, 3)
TINY = 1e-12


class Examples(NamedTuple):
    """Data as a model takes them, the number of each, a seed, and a label of progress."""

    model: ScoreModel
    data: Any
    numbers: Numbers
    seed: int
    label: str


class Statistic(NamedTuple):
    """Features of examples, and how they are fitted."""

    features: Callable[[Examples], FeatureTable]
    fit: Callable[[FeatureTable], Normality]


def numbers_of(data: np.ndarray) -> Numbers:
    """A number of each example by its content: the first 64 bits of its SHA-256.

    Args:
        data: an example in each row.
    """
    digests = (hashlib.sha256(np.ascontiguousarray(row).data).digest() for row in data)
    return np.asarray([int.from_bytes(digest[:8], "little") for digest in digests], np.uint64)


def _likelihood(of: Examples) -> FeatureTable:
    if of.model.pixels is not None:
        scores = of.model.score(of.data, index=of.numbers, seed=of.seed, label=of.label)
        return scores.bpd[:, None]

    def work(indices: np.ndarray, keys: Keys) -> Array:
        return -of.model.log_prob(of.data[indices], keys).log_prob[:, None]

    return _in_batches(work, of)


def _complexity(of: Examples) -> FeatureTable:
    if of.model.pixels is None:
        raise UserError("complexity is of images: take another statistic for vectors")
    png = png_bpd(of.data)
    return np.column_stack([_likelihood(of), png])


def _profile(of: Examples) -> FeatureTable:
    found = of.model.profile(of.data, index=of.numbers, seed=of.seed, label=of.label)
    return np.log(np.maximum(found.bits, TINY)).astype(np.float64)


def _by_program(
    program: Callable[..., Array],
    levels_of: Callable[[ScoreModel], Float[Array, " levels"]],
    of: Examples,
) -> FeatureTable:
    """The logarithm of what a program finds of examples without noise, at these log-SNR."""
    model, levels, program = of.model, levels_of(of.model), within_memory(program)

    def work(indices: np.ndarray, keys: Keys) -> Array:
        x = _points(model, of.data[indices])
        found = program(model, x, keys, levels)
        return jnp.log(jnp.maximum(found, TINY))

    return _in_batches(work, of)


def _in_batches(work: Callable[[np.ndarray, Keys], Array], of: Examples) -> FeatureTable:
    key = key_of(of.seed)

    def checked(_: int, indices: np.ndarray) -> dict[str, np.ndarray]:
        found = np.asarray(work(indices, image_keys(key, of.numbers[indices])), np.float64)
        finite = np.asarray(np.isfinite(found).all(axis=1))
        check_finite_values(finite, indices, "the statistic of example")
        return {"features": found}

    n = len(of.numbers)
    size = min(BATCH_SIZE, power_of_two(n))
    return resumable_map(checked, n, size=size, label=of.label, unit="example")["features"][0]


def _points(model: ScoreModel, data: Any) -> Data:
    """Examples as the network sees them: integers at their points, without noise."""
    if model.pixels is not None:
        return jnp.asarray(model.points, float)[jnp.asarray(data)]
    x = data if model.bijector is None else in_all_digits(model.bijector, data)
    return jnp.asarray(x, float)


def _of_msma(model: ScoreModel) -> Float[Array, " levels"]:
    width = model.pixels.high - model.pixels.low if model.pixels else 1.0
    return jnp.asarray(msma_levels(model.sde, model.eps, width))


def _even(count: int, model: ScoreModel) -> Float[Array, " levels"]:
    """Log-SNR from the data to the prior, by steps of equal width."""
    low, high = log_snr_range(model.sde, model.eps)
    return jnp.linspace(high, low, count)


@OfModels
def _norms(model: ScoreModel, x: Data, keys: Keys, levels: Array) -> Float[Array, "b levels"]:
    return score_norms(model.noise, model.sde, x, levels, eps=model.eps)


@OfModels
def _ratios(model: ScoreModel, x: Data, keys: Keys, levels: Array) -> Float[Array, "b levels"]:
    def ratio(lam: Array) -> Array:
        found = square_and_trace(
            model.noise, model.sde, x, keys, lam, eps=model.eps, probes=PROBES
        )
        # Where the trace is next to nothing, its estimate may lie below.
        return found["square"] / jnp.maximum(found["trace"], 1e-3 * dims_of(x))

    return jax.lax.map(ratio, levels).T


@OfModels
def _path(model: ScoreModel, x: Data, keys: Keys, levels: Array) -> Float[Array, "b features"]:
    """Sums of powers of dy/ds and of its changes, along Euler steps of dy/ds = eps, y = x/alpha.

    s is sigma/alpha, and steps are even in log s.
    """
    sde, s = model.sde, jnp.exp(-levels / 2)
    times = times_at(sde, model.eps, levels)

    def step(y: Data, ends: tuple[Array, Array]) -> tuple[Data, Data]:
        t, rise = jnp.full(len(x), ends[0], x.dtype), ends[1]
        speed = predict(model.noise, expand(sde.alpha(t), y) * y, t)
        return y + rise * speed, speed

    _, speeds = jax.lax.scan(step, x, (times[:-1], jnp.diff(s)))
    sums = [
        sum_data(jnp.sum(jnp.abs(values) ** power, axis=0))
        for values in (speeds, jnp.diff(speeds, axis=0)) for power in POWERS
    ]  # fmt: skip
    return jnp.stack(sums, axis=1)


STATISTICS = {
    "likelihood": Statistic(_likelihood, Ranks.fit),
    "typicality": Statistic(_likelihood, partial(Density.fit, most=1)),
    "complexity": Statistic(_complexity, Ranks.fit),
    "msma": Statistic(partial(_by_program, _norms, _of_msma), Density.fit),
    "profile": Statistic(_profile, Density.fit),
    "scoped": Statistic(partial(_by_program, _ratios, partial(_even, LEVELS)), Density.fit),
    "path": Statistic(partial(_by_program, _path, partial(_even, STEPS + 1)), Density.fit),
}
# A density of the data themselves, where there is no model.
FEATURES = "features"
