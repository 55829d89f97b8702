"""Shared by the scripts beside it: networks that are trained once, times, and printed answers."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import scoremle
from scoremle.cli import main as cli
from scoremle.core.dequantize import Uniform
from scoremle.core.pixels import Pixels
from scoremle.evaluation.tables import table
from scoremle.experiment.workdir import Workdir
from scoremle.types import Data

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))  # for its helpers

KEY = jax.random.key(0)
# Where networks lie that several scripts take.
TRAINED = Path("runs/benchmark_likelihood")
# The published objective, which the config digits no longer has.
LW_IS = (
    "--config=configs/digits.py", "--config.training.sde=vpsde",
    "--config.model.parameterization=published", "--config.model.ema_rate=0.995",
    "--config.training.time_density=published", "--config.training.importance_weighting=True",
    "--config.training.batch_size=64", "--config.training.snapshot_sampling=False",
)  # fmt: skip
DIGITS = (*LW_IS, "--config.training.n_iters=1200", "--config.training.snapshot_freq=1200")
FASHION = ("--config=configs/fashion_mnist14.py",)
SUB_VP = "--config.training.sde=subvpsde"
LOG_SNR = "--config.model.embedding=log_snr"
NETWORKS = {
    "digits_vp": DIGITS,
    "digits_subvp": (*DIGITS, SUB_VP),
    "digits_vp_log_snr": (*DIGITS, LOG_SNR),
    "fashion14_vp": FASHION,
    "fashion14_subvp": (*FASHION, SUB_VP),
    "fashion14_vp_log_snr": (*FASHION, LOG_SNR),
}
# Hours of training. The photographs are uint8 arrays train and test [n 32 32 3] in photos.npz.
LARGE = {
    "fashion_mnist": ("--config=configs/fashion_mnist.py",),
    "photos": (
        "--config=configs/fashion_mnist.py", "--config.data.dataset=images",
        "--config.data.path=photos.npz", "--config.data.image_size=32",
        "--config.data.num_channels=3", "--config.data.random_flip",
        "--config.model.attn_resolutions=(8,)", "--config.optim.lr=2e-3",
        "--config.training.n_iters=9000", "--config.training.snapshot_freq=3000",
    ),
}  # fmt: skip


SDE = scoremle.VP()


def mlp(params: Sequence[Any], x: jax.Array, t: jax.Array) -> jax.Array:
    """A noise prediction of vectors by VP: an MLP over that of N(0, I)."""
    scaled = SDE.log_snr(t)[:, None] / 5
    h = jax.nn.silu(jnp.concatenate([x, scaled], axis=1) @ params[0])
    h = jax.nn.silu(h @ params[1])
    return SDE.sigma(t)[:, None] * x + 0.3 * h @ params[2]


def mlp_params(dims: int, width: int = 128) -> list[np.ndarray]:
    """Random weights."""
    rng, sizes = np.random.default_rng(0), [(dims + 1, width), (width, width), (width, dims)]
    return [(rng.normal(size=size) / size[0] ** 0.5).astype(np.float32) for size in sizes]


class Seconds(NamedTuple):
    """Seconds that passed, and those of computing, of all cores."""

    passed: float
    computing: float


def parser_of(doc: str) -> argparse.ArgumentParser:
    """A parser of a script's options, with the first line of its docstring."""
    return argparse.ArgumentParser(description=doc.splitlines()[0])


def answer(header: Sequence[str], rows: Sequence[Sequence[str]], found: object = None) -> None:
    """Prints a table, and the numbers that were ``found`` as a line of JSON."""
    print(table(header, rows), flush=True)
    if found is not None:
        print(json.dumps(found))


def train(flags: Sequence[str], workdir: Path) -> Path:
    """Trains into a folder, unless it holds a model already."""
    if not Workdir(workdir).snapshots.numbers():
        run(*flags, f"--workdir={workdir}", "--mode=train")
    return workdir


def run(*words: str) -> None:
    """Runs a command of scoremle. Ends the script if it fails."""
    if code := cli.main(list(words)):
        raise SystemExit(code)


def reals(pixels: Pixels, images: np.ndarray, key: jax.Array = KEY) -> Data:
    """Images with uniform noise within their levels, as a network sees them."""
    x = jnp.asarray(images)
    return pixels.encode(x, Uniform()(key, x)[0])


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, Seconds]:
    """The result of a call, and the seconds until it is there."""
    began = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(call(*arguments))
    return result, Seconds(time.perf_counter() - began[0], time.process_time() - began[1])


def least(calls: Mapping[Any, Callable[[], Any]], repeats: int) -> dict[Any, float]:
    """The fewest seconds that passed in each of some calls.

    They take turns, so that other work on the machine slows all alike. Each is made twice and the
    second counts: the first compiles, or finds memory and caches as another call left them.
    """
    seconds = dict.fromkeys(calls, np.inf)
    for _ in range(repeats):
        for name, call in calls.items():
            timed(call)
            seconds[name] = min(seconds[name], timed(call)[1].passed)
    return seconds
