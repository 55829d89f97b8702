"""Where the time of a gradient goes, by JAX's own profiler: the published CIFAR-10 network.

The programs are the forward pass and the gradient of ``train_step.py``. A row is a kind of
instruction of the compiled program, as XLA fused them: milliseconds of the least of a few runs,
and its share. Instructions are sorted by what their fusions hold: a product, a copy into another
layout, a sum, or nothing of these. Convolutions run in threads of their own, which the profiler
does not see: theirs is what is left of the time that passes. Others run side by side here and
there too, so that what is left is rather too little.

    python benchmarks/step_shares.py --quick
    python benchmarks/step_shares.py
"""

import argparse
import gzip
import json
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from train_step import CONFIG, LEVELS, QUICK

from scoremle.evaluation.tables import table
from scoremle.experiment.build import build
from scoremle.experiment.config import published_config
from scoremle.training.program import make_program
from scoremle.training.step import init_state
from scoremle.xla import compiled

# An instruction's name and definition; what a fusion calls; where in the source it comes from.
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
OPCODE = re.compile(r" ([a-z][a-z-]*)\(")
CALLS, SOURCE = re.compile(r"calls=%?([\w.-]+)"), re.compile(r'op_name="([^"]*)"')
# Those that hold others, which are counted by themselves.
OUTER = {"call", "while", "conditional"}
CONVOLUTIONS = "convolutions"


def kinds(program: str, network: str) -> dict[str, str]:
    """The kind of each instruction of a compiled program, by its name."""
    bodies: dict[str, list[str]] = defaultdict(list)
    definitions = {}
    for line in program.splitlines():
        if opened := COMPUTATION.match(line):
            body = bodies[opened[1]]
        elif instruction := INSTRUCTION.match(line):
            name, definition = instruction.groups()
            body.append(definition)
            definitions[name] = definition
    found = {}
    for name, definition in definitions.items():
        called = CALLS.search(definition)
        held = bodies[called[1]] if called else [definition]
        opcodes = {each[1] for each in map(OPCODE.search, held) if each}
        if not opcodes & OUTER:
            source = SOURCE.search(definition)
            found[name] = _kind(opcodes, source[1] if source else network, network)
    return found


def _kind(opcodes: set[str], source: str, network: str) -> str:
    if "AttnBlock" in source:
        return "attention, all of it"
    if "convolution" in opcodes:
        return CONVOLUTIONS
    if opcodes & {"dot", "custom-call"}:
        return "dense products"
    if network not in source:
        return "loss and noise"
    if opcodes & {"transpose", "copy"}:
        return "copies into another layout"
    return "sums of normalisation, softmax, biases" if "reduce" in opcodes else "elementwise"


def passing(call: Callable[[], Any], repeats: int) -> float:
    """Milliseconds of the quickest call, but for the first, which compiles."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return min(times[1:])


def milliseconds(call: Callable[[], Any], repeats: int) -> Counter[str]:
    """Of each instruction, in the run in which it took least."""
    least: dict[str, float] = {}
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder, profiler_options=options):
                call()
            (path,) = Path(folder).rglob("*.trace.json.gz")
            trace = json.loads(gzip.decompress(path.read_bytes()))
        run: Counter[str] = Counter()
        for event in trace["traceEvents"]:
            if "dur" in event:
                run[event["name"]] += event["dur"] / 1e3
        least = {name: min(taken, least.get(name, np.inf)) for name, taken in run.items()}
    return Counter(least)


def programs(quick: bool, batch: int) -> dict[str, tuple[Any, Callable[[], Any]]]:
    """The compiled forward and gradient, and a call of each."""
    fields = {"model.dropout": 0.0, "training.batch_size": batch} | (QUICK if quick else {})
    experiment = build(published_config(CONFIG, fields), levels=LEVELS)
    training, model = experiment.training, experiment.model
    images = np.random.default_rng(0).integers(0, LEVELS, (batch, *model.shape), np.uint8)
    params = training.init(jax.random.key(0, impl="rbg"), images)
    x, t = jnp.asarray(images, jnp.float32), jnp.full(batch, 0.5)
    forward = compiled(lambda params, x, t: model.noise(params)(x, t))
    step = make_program(training.loss, training.optimizer, training.ema_rate)
    state = init_state(params, training.optimizer)
    given = step.fixed, state, images
    return {
        "forward": (
            forward.lower(params, x, t).compile(),
            lambda: jax.block_until_ready(forward(params, x, t)),
        ),
        "gradient": (
            step.lower(state, images[None]).compile(),
            lambda: jax.block_until_ready(step.jitted.gradient(*given)),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small network")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for name, (program, call) in programs(options.quick, options.batch).items():
        kind, whole = kinds(program.as_text(), "DDPMpp"), passing(call, options.repeats)
        spent, count = Counter[str](), Counter[str]()
        for instruction, taken in milliseconds(call, options.repeats).items():
            if instruction in kind:
                spent[kind[instruction]] += taken
                count[kind[instruction]] += 1
        spent[CONVOLUTIONS] += whole - spent.total()
        rows = [
            (each, str(count[each]), f"{taken:.1f}", f"{taken / whole:.0%}")
            for each, taken in spent.most_common()
        ]
        print(table((name, "instructions", "ms", "share"), rows))
        print(json.dumps({"program": name, "milliseconds": spent}))


if __name__ == "__main__":
    main()
