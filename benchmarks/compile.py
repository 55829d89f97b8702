"""What compilation costs: the first call of each program of a network, without and with a cache.

Seconds from the call to its result, tracing and one run included: the first parameters, the noise
prediction, its value and derivative as a likelihood takes them, and a training step. Seconds are
those that pass, and those of processor time, which other work on the machine does not lengthen
much. Each is measured in two processes of their own, with one empty folder for compiled programs:
the first process finds it empty, the second as the first left it. Last come the seconds of a
second call, which compiles nothing. The network is the published deep one for CIFAR-10, which
takes minutes; ``--quick`` takes that of the digits.

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

from scoremle.devices import replicate
from scoremle.evaluation.tables import table
from scoremle.experiment.build import Experiment, build
from scoremle.experiment.config import published_config
from scoremle.training.program import make_program
from scoremle.training.step import init_state
from scoremle.xla import compiled

STEP = "training step"
DEEP = "vp/cifar10_ddpmpp_deep_continuous"
BATCH, LEVELS = 4, {DEEP: 256, "digits": 17}


def calls(config: str) -> dict[str, tuple[float, float, float]]:
    """Seconds of each program's calls here: of the first, passed and of processors; the second."""
    fields = {"training.batch_size": BATCH}
    experiment = build(published_config(config, fields), levels=LEVELS[config])
    seconds: dict[str, tuple[float, float, float]] = {}

    def twice(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """The second result; a call that uses up its first argument is given its first result."""
        began, before = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(call(*arguments))
        passed, processors = time.perf_counter() - began, time.process_time() - before
        rest = (result[0], *arguments[1:]) if name == STEP else arguments
        began = time.perf_counter()
        result = jax.block_until_ready(call(*rest))
        seconds[name] = (passed, processors, time.perf_counter() - began)
        return result

    images = jnp.zeros((BATCH, *experiment.model.shape), jnp.uint8)
    training = experiment.training
    key = jax.random.key(0, impl="rbg")
    params = twice("first parameters", training.init, key, images)
    x, t = images.astype(jnp.float32), jnp.full(BATCH, 0.5)
    twice("prediction", compiled(_predict(experiment)), params, x, t)
    twice("value and derivative", compiled(_derive(experiment)), params, x, t)
    state = replicate(init_state(params, training.optimizer))
    step = make_program(training.loss, training.optimizer, training.ema_rate)
    twice(STEP, step, state, np.zeros((1, *images.shape), np.uint8))
    return seconds


def _predict(experiment: Experiment) -> Callable[..., Any]:
    return lambda params, x, t: experiment.model.noise(params)(x, t)


def _derive(experiment: Experiment) -> Callable[..., Any]:
    predict = _predict(experiment)
    return lambda params, x, t: jax.jvp(lambda y: predict(params, y, t), (x,), (jnp.ones_like(x),))


def in_a_process(config: str, folder: str) -> dict[str, tuple[float, float, float]]:
    """The same in another process, which keeps its programs in a folder."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, __file__, f"--here={config}"]
    done = subprocess.run(command, env=os.environ | cache, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the network of the digits")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(calls(options.here)))
        return
    config = "digits" if options.quick else DEEP
    with tempfile.TemporaryDirectory() as folder:
        cold = in_a_process(config, folder)
        print(json.dumps({"config": config, "cold": cold}), file=sys.stderr)  # after minutes
        cached = in_a_process(config, folder)
    times = {name: [*cold[name][:2], *cached[name]] for name in cold}
    times["all"] = [sum(each) for each in zip(*times.values(), strict=True)]
    rows = [(name, *(f"{each:.1f}" for each in row)) for name, row in times.items()]
    heads = (config, "cold, s", "processors", "cached, s", "processors", "again, s")
    print(table(heads, rows))
    print(json.dumps({"config": config, "cold": cold, "cached": cached}))


if __name__ == "__main__":
    main()
