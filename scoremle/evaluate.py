"""A metric over a whole data set, in order, resumable, with standard errors.

A metric is a jitted function of a batch of integer images and a key that gives values per image. The
values of a batch are a function of the batch's place and the pass alone, so that a run which was
killed goes on from the batches that it finished, without redoing or skipping an image: each batch is
one small file, written atomically, in a folder named after a fingerprint of all that matters.
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
from jaxtyping import Array, Float
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from scoremle.arrays import Images, IntImages, PerExample, PRNGKey
from scoremle.bound import Bound
from scoremle.data import padded_batches
from scoremle.files import write_atomically
from scoremle.likelihood import Likelihood
from scoremle.pixels import Pixels, bits_per_dim

__all__ = ["Metric", "Values", "bound_bpd", "evaluate", "exact_bpd", "fingerprint", "parts", "summary"]

Metric = Callable[[IntImages, PRNGKey], dict[str, PerExample]]
Values = dict[str, Float[np.ndarray, "repeats n"]]
Encode = Callable[[IntImages, PRNGKey], tuple[Images, PerExample]]

# Seconds between lines of progress where the output is no terminal.
LINE_EVERY = 20.0


def exact_bpd(
    encode: Encode, log_likelihood: Callable[[Images, PRNGKey], Likelihood], pixels: Pixels
) -> Metric:
    """Bits/dim of dequantized images under the probability-flow ODE; errors in bits/dim too."""

    def metric(x: IntImages, key: PRNGKey) -> dict[str, PerExample]:
        key_u, key_probe = jax.random.split(key)
        y, log_q = encode(x, key_u)
        found = log_likelihood(y, key_probe)
        dims = x[0].size
        bits = dims * jnp.log(2.0)
        return {
            "bpd": bits_per_dim(found.log_prob - log_q, pixels, dims),
            "probe_stderr": found.probe_stderr / bits,
            "solver_error": found.solver_error / bits,
            "nfe": found.evaluations.astype(jnp.float32),
        }

    return metric


def bound_bpd(encode: Encode, bound: Callable[[Images, PRNGKey], Bound], pixels: Pixels) -> Metric:
    """Bits/dim by the variational bound, its terms and its Monte-Carlo error, all in bits/dim.

    ``diffusion``, ``prior`` and ``reconstruction`` add up, with the constant of the scaling, to
    ``bpd``.
    """

    def metric(x: IntImages, key: PRNGKey) -> dict[str, PerExample]:
        key_u, key_bound = jax.random.split(key)
        y, log_q = encode(x, key_u)
        found = bound(y, key_bound)
        dims = x[0].size
        bits = dims * jnp.log(2.0)
        return {
            "bpd": bits_per_dim(found.log_prob - log_q, pixels, dims),
            "draw_stderr": found.stderr / bits,
            "prior": found.prior / bits,
            "diffusion": found.diffusion / bits,
            "reconstruction": found.reconstruction / bits,
        }

    return metric


def fingerprint(facts: dict[str, Any]) -> str:
    """A short name for settings: the same for the same facts alone."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def evaluate(
    metric: Metric,
    images: IntImages,
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
    jitted = jax.jit(metric)
    passes = [(r, start) for r in range(repeats) for start in range(0, len(images), batch_size)]
    with _progress(label, len(passes)) as tell:
        for done, (repeat, start) in enumerate(passes, 1):
            part = parts / f"pass{repeat}_image{start}.npz"
            if not part.exists():
                _evaluate_part(jitted, images, start, batch_size, repeat, seed, part)
            with np.load(part, allow_pickle=False) as saved:
                tell(done, saved)
    return _gather(parts, passes, repeats)


def _evaluate_part(
    metric: Metric,
    images: IntImages,
    start: int,
    batch_size: int,
    repeat: int,
    seed: int,
    part: Path,
) -> None:
    batch, mask = next(padded_batches(images, batch_size, start=start))
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), repeat), start)
    began = time.monotonic()
    values = jax.device_get(metric(jnp.asarray(batch), key))
    seconds = time.monotonic() - began
    with write_atomically(part) as path, path.open("wb") as file:
        np.savez(file, seconds=seconds, **{name: value[mask] for name, value in values.items()})


def _gather(parts: Path, passes: list[tuple[int, int]], repeats: int) -> tuple[Values, float]:
    columns: dict[str, list[np.ndarray]] = {}
    pace = []
    for repeat, start in passes:
        with np.load(parts / f"pass{repeat}_image{start}.npz", allow_pickle=False) as saved:
            for name in saved.files:
                if name != "seconds":
                    columns.setdefault(name, []).append(saved[name].astype(np.float64))
            pace.append(float(saved["seconds"]) / len(next(iter(columns.values()))[-1]))
    values = {name: np.concatenate(c).reshape(repeats, -1) for name, c in columns.items()}
    # The first batch compiles: the median is what an image costs.
    return values, float(np.median(pace))


def summary(values: Values, name: str) -> dict[str, float | int | None]:
    """The mean over images of ``values[name]`` and its errors.

    ``stderr`` is over images, after the mean over passes. ``noise_stderr`` is the part of it that
    comes from dequantization and estimation, from the spread over passes; None with a single pass.
    """
    v = values[name]
    repeats, n = v.shape
    noise = float(np.sqrt(np.var(v, axis=0, ddof=1).mean() / (repeats * n))) if repeats > 1 else None
    stderr = float(v.mean(axis=0).std(ddof=1) / np.sqrt(n)) if n > 1 else None
    return {
        "mean": float(v.mean()),
        "stderr": stderr,
        "noise_stderr": noise,
        "images": n,
        "passes": repeats,
    }


def parts(values: Values) -> dict[str, float | None]:
    """What else is known, averaged over images: the terms of a bound, errors, evaluations.

    Errors are also given of the mean: random ones shrink with the number of images, the solver's
    may all have one sign and do not.
    """
    found: dict[str, float | None] = {}
    for name, v in values.items():
        if name not in ("bpd", "loss"):
            found[f"mean_{name}"] = float(v.mean()) if np.isfinite(v).all() else None
    for name in ("probe_stderr", "draw_stderr"):
        if name in values:
            v = values[name]
            of_mean = np.sqrt(np.square(v).mean() / v.size)
            found[f"{name}_of_mean"] = float(of_mean) if np.isfinite(of_mean) else None
    return found


@contextmanager
def _progress(label: str, total: int) -> Iterator[Callable[[int, Any], None]]:
    """A live bar with the running mean on a terminal, a line now and then elsewhere."""
    began = last = time.monotonic()
    seen: list[np.ndarray] = []

    def mean(saved: Any) -> str:
        name = "bpd" if "bpd" in saved.files else "loss"
        seen.append(saved[name])
        everything = np.concatenate(seen)
        stderr = everything.std() / np.sqrt(len(everything))
        return f"{name} {everything.mean():.4f} +- {stderr:.4f}"

    if sys.stdout.isatty():
        columns = (TextColumn(label), BarColumn(), TextColumn("{task.description}"))
        with Progress(*columns, TimeRemainingColumn()) as bar:
            task = bar.add_task("starting", total=total)
            yield lambda done, saved: bar.update(task, completed=done, description=mean(saved))
        return

    def line(done: int, saved: Any) -> None:
        nonlocal last
        text, now = mean(saved), time.monotonic()
        if now - last > LINE_EVERY or done == total:
            last = now
            left = (now - began) * (total - done) / done
            print(f"{label}  batch {done}/{total}  {text}  ETA {left:.0f}s", flush=True)

    yield line
