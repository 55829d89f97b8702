"""A metric over a whole data set, in order, resumable, with standard errors.

A metric is a function of parameters, a batch of integer images and a key, which gives values per
image. The values of a batch depend on its place and on the pass alone, so that a run which was
killed goes on from the batches that it finished, without redoing or skipping an image: each batch
is one small file, written atomically, in a folder named after a fingerprint of all that matters.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from scoremle.core.pixels import Pixels, bits_per_dim
from scoremle.data import padded_batches
from scoremle.files import read_npz, write_npz
from scoremle.likelihood.bound import Bound
from scoremle.likelihood.importance import importance_bound
from scoremle.likelihood.ode import Likelihood
from scoremle.types import Images, IntImages, PerExample, PRNGKey

__all__ = [
    "Metric",
    "Values",
    "bound_bpd",
    "discrete_bpd",
    "evaluate",
    "exact_bpd",
    "fingerprint",
    "importance_bpd",
    "parts",
    "profile",
    "summary",
]

Params = Any
Metric = Callable[[Params, IntImages, PRNGKey], dict[str, PerExample]]
# A column may have more axes; ``profile`` has one, over log-SNR.
Values = dict[str, Float[np.ndarray, "repeats n *more"]]
Encode = Callable[[Params, IntImages, PRNGKey], tuple[Images, PerExample]]
LogLikelihood = Callable[[Params, Images, PRNGKey], Likelihood]
# Progress: first image and values of a batch, and whether they were measured now or read.
Tell = Callable[[int, dict[str, np.ndarray], bool], None]

# Seconds between lines of progress where the output is no terminal.
LINE_EVERY = 20.0
# Decimals of the profile in results.json.
PROFILE_DIGITS = 6


def exact_bpd(encode: Encode, log_likelihood: LogLikelihood, pixels: Pixels) -> Metric:
    """Bits/dim of dequantized images under the probability-flow ODE; errors in bits/dim too."""

    def metric(params: Params, x: IntImages, key: PRNGKey) -> dict[str, PerExample]:
        key_u, key_probe = jax.random.split(key)
        y, log_q = encode(params, x, key_u)
        found = log_likelihood(params, y, key_probe)
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

    def metric(params: Params, x: IntImages, key: PRNGKey) -> dict[str, PerExample]:
        key_u, key_probe = jax.random.split(key)

        def draw(key: PRNGKey) -> tuple[Likelihood, PerExample]:
            y, log_q = encode(params, x, key)
            return log_likelihood(params, y, key_probe), log_q

        found = importance_bound(draw, key_u, samples)
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
    encode: Encode, bound: Callable[[Params, Images, PRNGKey], Bound], pixels: Pixels
) -> Metric:
    """Bits/dim by the variational bound, its terms and its Monte-Carlo error, all in bits/dim.

    ``dequantization`` (log q of the noise), ``prior``, ``diffusion`` and ``reconstruction`` add
    up, with the constant of the scaling, to ``bpd``; the bins of ``profile`` to ``diffusion``.
    """

    def metric(params: Params, x: IntImages, key: PRNGKey) -> dict[str, PerExample]:
        key_u, key_bound = jax.random.split(key)
        y, log_q = encode(params, x, key_u)
        found = bound(params, y, key_bound)
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


def discrete_bpd(bound: Callable[[Params, IntImages, PRNGKey], Bound], pixels: Pixels) -> Metric:
    """Bits/dim by a bound on the probability of integers, and its terms, which add up to it."""

    def encode(params: Params, x: IntImages, key: PRNGKey) -> tuple[IntImages, PerExample]:
        # A probability is a density times the volume of a bin.
        return x, jnp.full(len(x), x[0].size * pixels.log_det_per_dim)

    whole = bound_bpd(encode, bound, pixels)

    def metric(params: Params, x: IntImages, key: PRNGKey) -> dict[str, PerExample]:
        return {k: v for k, v in whole(params, x, key).items() if k != "dequantization"}

    return metric


def fingerprint(facts: dict[str, Any]) -> str:
    """A short name for settings: the same for the same facts alone."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def evaluate(
    metric: Metric,
    params: Params,
    images: UInt8[np.ndarray, "n h w c"],
    *,
    batch_size: int,
    repeats: int,
    seed: int,
    parts: Path,
    label: str,
) -> tuple[Values, float]:
    """Values [repeats n] of a metric, and the seconds an image that they took.

    Finished batches lie in ``parts``. The last batch is padded, not dropped or recompiled.
    """
    batch_size = min(batch_size, len(images))
    passes = [(r, start) for r in range(repeats) for start in range(0, len(images), batch_size)]
    finished = []
    with _progress(label, len(passes)) as tell:
        for repeat, start in passes:
            part = parts / f"pass{repeat}_image{start}.npz"
            values = read_npz(part)
            fresh = values is None
            if values is None:
                batch, mask = next(padded_batches(images, batch_size, start=start))
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), repeat), start)
                values = _timed(metric, params, batch, mask, key)
                write_npz(part, values)
            finished.append(values)
            tell(start, values, fresh)
    return _gather(finished, repeats)


def _timed(
    measure: Metric, params: Params, batch: np.ndarray, mask: np.ndarray, key: PRNGKey
) -> dict[str, np.ndarray]:
    """The values of the images that are no padding, and the seconds an image."""
    began = time.monotonic()
    values = jax.device_get(measure(params, jnp.asarray(batch), key))
    seconds = (time.monotonic() - began) / len(batch)
    return {"seconds": np.asarray(seconds)} | {name: v[mask] for name, v in values.items()}


def _gather(finished: list[dict[str, np.ndarray]], repeats: int) -> tuple[Values, float]:
    names = [name for name in finished[0] if name != "seconds"]
    values = {
        name: np.concatenate([part[name] for part in finished], dtype=np.float64) for name in names
    }
    # The first batch compiles: the median is what an image costs.
    pace = float(np.median([part["seconds"] for part in finished]))
    return {
        name: column.reshape(repeats, -1, *column.shape[1:]) for name, column in values.items()
    }, pace


def summary(values: Values, name: str) -> dict[str, float | int | None]:
    """The mean over images of ``values[name]`` and its errors.

    ``stderr`` is over images, after the mean over passes. ``noise_stderr`` is the part of it that
    comes from dequantization and estimation, from the spread over passes; None with a single pass.
    """
    v = values[name]
    repeats, n = v.shape
    return {
        "mean": float(v.mean()),
        "stderr": _error(v.mean(axis=0).var(ddof=1), n) if n > 1 else None,
        "noise_stderr": _error(v.var(axis=0, ddof=1).mean(), v.size) if repeats > 1 else None,
        "images": n,
        "passes": repeats,
    }


def _error(variance: np.floating, count: int) -> float:
    return float(np.sqrt(variance / count))


def parts(values: Values) -> dict[str, float | None]:
    """What else is known, averaged over images: the terms of a bound, errors, evaluations.

    Errors are also given of the mean: random ones shrink with the number of images, the solver's
    may all have one sign and do not.
    """
    found: dict[str, float | None] = {}
    for name, v in values.items():
        if name not in ("bpd", "loss", "profile"):
            found[f"mean_{name}"] = float(v.mean()) if np.isfinite(v).all() else None
    for name in ("probe_stderr", "draw_stderr"):
        if name in values:
            v = values[name]
            of_mean = np.sqrt(np.square(v).mean() / v.size)
            found[f"{name}_of_mean"] = float(of_mean) if np.isfinite(of_mean) else None
    return found


def profile(values: Values, edges: Float[np.ndarray, " edges"]) -> dict[str, list[float]]:
    """Which noise levels cost the bits: bits/dim for each unit of log-SNR, over its bins.

    Its integral is the diffusion term. The standard errors are over images.
    """
    density = values["profile"].mean(axis=0) / np.diff(edges)
    columns = {
        "log_snr_edges": edges,
        "bits_per_dim": density.mean(axis=0),
        "stderr": density.std(axis=0, ddof=1) / np.sqrt(len(density)) if len(density) > 1 else [],
    }
    return {name: [round(float(v), PROFILE_DIGITS) for v in c] for name, c in columns.items()}


@contextmanager
def _progress(label: str, total: int) -> Iterator[Tell]:
    """A live bar with the running mean on a terminal, a line now and then elsewhere.

    It is told the first image and the values of each batch, and whether they were measured now.
    """
    seen: dict[int, list[np.ndarray]] = {}

    def describe(start: int, values: dict[str, np.ndarray]) -> str:
        name = "bpd" if "bpd" in values else "loss"
        seen.setdefault(start, []).append(values[name])
        # An image is one image, however many passes it was in.
        images = np.concatenate([np.mean(passes, axis=0) for passes in seen.values()])
        error = f" +- {images.std(ddof=1) / np.sqrt(len(images)):.4f}" if len(images) > 1 else ""
        return f"{name} {images.mean():.4f}{error}"

    if not sys.stdout.isatty():
        yield _line(label, total, describe)
        return
    columns = (TextColumn(label), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task("starting", total=total)
        yield lambda start, values, fresh: bar.update(
            task, advance=1, description=describe(start, values)
        )


def _line(
    label: str, total: int, describe: Callable[[int, dict[str, np.ndarray]], str]
) -> Tell:
    began = last = time.monotonic()
    done = measured = 0

    def line(start: int, values: dict[str, np.ndarray], fresh: bool) -> None:
        nonlocal last, done, measured
        done, measured = done + 1, measured + fresh
        text, now = describe(start, values), time.monotonic()
        if now - last > LINE_EVERY or done == total:
            last = now
            left = (now - began) * (total - done) / max(measured, 1)
            print(f"{label}  batch {done}/{total}  {text}  ETA {left:.0f}s", flush=True)

    return line
