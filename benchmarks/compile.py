"""What compilation costs: the first call of each program of a network, without and with a cache.

Seconds from the call to its result, tracing and one run included: the first parameters, the noise
prediction, its value and derivative as a likelihood takes them, and a training step. Seconds are
those that pass, and those of processor time, which other work on the machine does not lengthen
much. Each is measured in two processes of their own, with one empty folder for compiled programs:
the first process finds it empty, the second as the first left it. The network is the published
deep one for CIFAR-10, which takes minutes; ``--quick`` takes that of the digits.

    python benchmarks/compile.py --quick
    python benchmarks/compile.py
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scoremle.devices import compiled
from scoremle.evaluation.tables import table
from scoremle.experiment.build import Experiment, build
from scoremle.experiment.config import published_config
from scoremle.training.program import make_program
from scoremle.training.step import init_state

DEEP = "vp/cifar10_ddpmpp_deep_continuous"
BATCH, LEVELS = 4, {DEEP: 256, "digits": 17}


def first_calls(config: str) -> dict[str, tuple[float, float]]:
    """Seconds of the first call of each program, in this process: passed, and of processors."""
    fields = {"training.batch_size": BATCH}
    experiment = build(published_config(config, fields), levels=LEVELS[config])
    seconds: dict[str, tuple[float, float]] = {}

    def first(name: str, call: Callable[[], Any]) -> Any:
        began, before = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(call())
        seconds[name] = (time.perf_counter() - began, time.process_time() - before)
        return result

    images = jnp.zeros((BATCH, *experiment.model.shape), jnp.uint8)
    training = experiment.training
    key = jax.random.key(0, impl="rbg")
    params = first("first parameters", lambda: training.init(key, images))
    x, t = images.astype(jnp.float32), jnp.full(BATCH, 0.5)
    first("prediction", lambda: compiled(_predict(experiment))(params, x, t))
    first("value and derivative", lambda: compiled(_derive(experiment))(params, x, t))
    state = init_state(params, training.optimizer)
    step = make_program(training.loss, training.optimizer, training.ema_rate)
    first("training step", lambda: step(state, np.zeros((1, *images.shape), np.uint8)))
    return seconds


def _predict(experiment: Experiment) -> Callable[..., Any]:
    return lambda params, x, t: experiment.model.noise(params)(x, t)


def _derive(experiment: Experiment) -> Callable[..., Any]:
    predict = _predict(experiment)
    return lambda params, x, t: jax.jvp(lambda y: predict(params, y, t), (x,), (jnp.ones_like(x),))


def in_a_process(config: str, folder: str) -> dict[str, tuple[float, float]]:
    """The same in another process, which keeps its programs in a folder."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, __file__, f"--here={config}"]
    done = subprocess.run(command, env=os.environ | cache, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def _sums(times: dict[str, tuple[float, float]]) -> tuple[float, ...]:
    return tuple(map(sum, zip(*times.values(), strict=True)))


def _seconds(times: tuple[float, ...]) -> list[str]:
    return [f"{each:.1f}" for each in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the network of the digits")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(first_calls(options.here)))
        return
    config = "digits" if options.quick else DEEP
    with tempfile.TemporaryDirectory() as folder:
        cold = in_a_process(config, folder)
        print(json.dumps({"config": config, "cold": cold}), file=sys.stderr)  # after minutes
        cached = in_a_process(config, folder)
    rows = [(name, *_seconds(cold[name]), *_seconds(cached[name])) for name in cold]
    total = ("all", *_seconds(_sums(cold)), *_seconds(_sums(cached)))
    print(table((config, "cold, s", "processors", "cached, s", "processors"), [*rows, total]))
    print(json.dumps({"config": config, "cold": cold, "cached": cached}))


if __name__ == "__main__":
    main()
