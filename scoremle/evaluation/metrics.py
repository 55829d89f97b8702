"""What is measured of images under a model, and a measurement of a whole split.

A metric is a function of parameters, a batch of integer images and a key for each of them, which
gives values per image. The keys of a split are those of its images (``core/keys.py``), by seed,
pass and index: a value depends neither on the batch size nor on the other images.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, UInt8

from scoremle.core.keys import image_keys, split
from scoremle.core.pixels import Pixels, bits_per_dim
from scoremle.evaluation.statistics import Values
from scoremle.likelihood.bound import Bound
from scoremle.likelihood.importance import importance_bound
from scoremle.likelihood.ode import Likelihood
from scoremle.resumable import Arrays, in_parts
from scoremle.types import Images, IntImages, Keys, PerExample

__all__ = ["Metric", "bound_bpd", "discrete_bpd", "evaluate", "exact_bpd", "importance_bpd"]

Params = Any
Metric = Callable[[Params, IntImages, Keys], dict[str, PerExample]]
Encode = Callable[[Params, IntImages, Keys], tuple[Images, PerExample]]
LogLikelihood = Callable[[Params, Images, Keys], Likelihood]


def exact_bpd(encode: Encode, log_likelihood: LogLikelihood, pixels: Pixels) -> Metric:
    """Bits/dim of dequantized images under the probability-flow ODE; errors in bits/dim too."""

    def metric(params: Params, x: IntImages, keys: Keys) -> dict[str, PerExample]:
        keys_u, keys_probe = split(keys)
        y, log_q = encode(params, x, keys_u)
        found = log_likelihood(params, y, keys_probe)
        dims = x[0].size
        bits = dims * jnp.log(2.0)
        return {
            "bpd": bits_per_dim(found.log_prob - log_q, pixels, dims),
            "probe_stderr": found.probe_stderr / bits,
            "solver_error": found.solver_error / bits,
            "nfe": found.evaluations.astype(jnp.float32),
        }

    return metric


def importance_bpd(
    encode: Encode, log_likelihood: LogLikelihood, pixels: Pixels, samples: int
) -> Metric:
    """Bits/dim by the importance-weighted bound with so many draws an image; errors too."""

    def metric(params: Params, x: IntImages, keys: Keys) -> dict[str, PerExample]:
        keys_u, keys_probe = split(keys)

        def draw(keys: Keys) -> tuple[Likelihood, PerExample]:
            y, log_q = encode(params, x, keys)
            return log_likelihood(params, y, keys_probe), log_q

        found = importance_bound(draw, keys_u, samples)
        dims = x[0].size
        bits = dims * jnp.log(2.0)
        return {
            "bpd": bits_per_dim(found.log_prob, pixels, dims),
            "draw_stderr": found.draw_stderr / bits,
            "probe_stderr": found.probe_stderr / bits,
            "probe_bias": found.probe_bias / bits,
            "effective_draws": found.effective_draws,
            "solver_error": found.solver_error / bits,
            "nfe": found.evaluations.astype(jnp.float32),
        }

    return metric


def bound_bpd(
    encode: Encode, bound: Callable[[Params, Images, Keys], Bound], pixels: Pixels
) -> Metric:
    """Bits/dim by the variational bound, its terms and its Monte-Carlo error, all in bits/dim.

    ``dequantization`` (log q of the noise), ``prior``, ``diffusion`` and ``reconstruction`` add
    up, with the constant of the scaling, to ``bpd``; the bins of ``profile`` to ``diffusion``.
    """

    def metric(params: Params, x: IntImages, keys: Keys) -> dict[str, PerExample]:
        keys_u, keys_bound = split(keys)
        y, log_q = encode(params, x, keys_u)
        found = bound(params, y, keys_bound)
        dims = x[0].size
        bits = dims * jnp.log(2.0)
        return {
            "bpd": bits_per_dim(found.log_prob - log_q, pixels, dims),
            "draw_stderr": found.stderr / bits,
            "dequantization": log_q / bits,
            "prior": found.prior / bits,
            "diffusion": found.diffusion / bits,
            "reconstruction": found.reconstruction / bits,
            **({} if found.profile is None else {"profile": found.profile / bits}),
            "nfe": found.evaluations.astype(jnp.float32),
        }

    return metric


def discrete_bpd(bound: Callable[[Params, IntImages, Keys], Bound], pixels: Pixels) -> Metric:
    """Bits/dim by a bound on the probability of integers, and its terms, which add up to it."""

    def encode(params: Params, x: IntImages, keys: Keys) -> tuple[IntImages, PerExample]:
        # A probability is a density times the volume of a bin.
        return x, jnp.full(len(x), x[0].size * pixels.log_det_per_dim)

    whole = bound_bpd(encode, bound, pixels)

    def metric(params: Params, x: IntImages, keys: Keys) -> dict[str, PerExample]:
        return {k: v for k, v in whole(params, x, keys).items() if k != "dequantization"}

    return metric


def evaluate(
    metric: Metric,
    params: Params,
    images: UInt8[np.ndarray, "n h w c"],
    *,
    batch_size: int,
    repeats: int,
    seed: int,
    parts: Path | None = None,
    label: str = "",
) -> tuple[Values, float]:
    """Values [repeats n] of a metric, and the seconds an image that they took.

    Finished parts lie in ``parts``; progress is told under ``label``.
    """

    def work(repeat: int, index: Int[np.ndarray, " size"]) -> Arrays:
        keys = image_keys(jax.random.fold_in(jax.random.key(seed), repeat), index)
        return _timed(metric, params, images[index], keys)

    rows = in_parts(
        work, len(images),
        size=batch_size, passes=repeats, folder=parts, label=label, describe=_mean_so_far,
    )  # fmt: skip
    # The first batch compiles: the lower median is what an image costs.
    pace = float(np.quantile(rows.pop("seconds"), 0.5, method="lower"))
    return {name: column.astype(np.float64) for name, column in rows.items()}, pace


def _timed(metric: Metric, params: Params, batch: np.ndarray, keys: Keys) -> Arrays:
    """The values of a batch, and the seconds that each image took."""
    began = time.monotonic()
    values = jax.device_get(metric(params, jnp.asarray(batch), keys))
    seconds = (time.monotonic() - began) / len(batch)
    return {"seconds": np.full(len(batch), seconds), **values}


def _mean_so_far(rows: Arrays, done: Bool[np.ndarray, "repeats n"]) -> str:
    """The mean over images and its error, from the passes that there are of each."""
    name = "bpd" if "bpd" in rows else "loss"
    there = done.any(axis=0)
    images = rows[name][:, there].mean(axis=0, dtype=np.float64, where=done[:, there])
    error = f" +- {images.std(ddof=1) / np.sqrt(len(images)):.4f}" if len(images) > 1 else ""
    return f"{name} {images.mean():.4f}{error}"
