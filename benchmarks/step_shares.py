"""Where the time of a training step goes, by JAX's own profiler: the published CIFAR-10 network.

The programs are the forward pass and the whole step of ``train_step.py``. A row is a kind of
instruction of the compiled program, as XLA fused them: milliseconds of the least of a few runs,
and its share. Instructions are sorted by what their fusions hold: a convolution, a product, a
copy into another layout, a sum, or nothing of these. On a CPU some of them run side by side, so
that their sum may be more than the time that passes.

    python benchmarks/step_shares.py --quick
    python benchmarks/step_shares.py
"""

import argparse
import gzip
import json
import re
import tempfile
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
from scoremle.training.step import init_state, make_program

# An instruction's name and definition; what a fusion calls; where in the source it comes from.
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
OPCODE = re.compile(r" ([a-z][a-z-]*)\(")
CALLS, SOURCE = re.compile(r"calls=%?([\w.-]+)"), re.compile(r'op_name="([^"]*)"')
# Those that hold others, which are counted by themselves.
OUTER = {"call", "while", "conditional"}


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
            found[name] = _kind(opcodes, held, source[1] if source else network, network)
    return found


def _kind(opcodes: set[str], held: list[str], source: str, network: str) -> str:
    if "AttnBlock" in source:
        return "attention, all of it"
    if "convolution" in opcodes:
        return _convolution(next(each for each in held if " convolution(" in each), source)
    if opcodes & {"dot", "custom-call"}:
        return "1x1 convolutions and dense products"
    if network not in source:
        return "optimizer, average, loss, noise"
    if opcodes & {"transpose", "copy"}:
        return "copies into another layout"
    return "sums of normalisation, softmax, biases" if "reduce" in opcodes else "elementwise"


def _convolution(definition: str, source: str) -> str:
    """Of 3x3 pixels it is padded; what gives its weights' gradient has a window of an image."""
    if "pad=" not in definition:
        return "1x1 convolutions and dense products"
    if "size=3x3" not in definition:
        return "3x3 convolutions: gradient of weights"
    backwards = "transpose(" in source or "rhs_reversal" in definition
    return f"3x3 convolutions: {'gradient of input' if backwards else 'forward'}"


def milliseconds(call: Callable[[], Any], repeats: int) -> Counter[str]:
    """Of each instruction, in the run in which it took least."""
    call()
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
        least = {name: min(time, least.get(name, np.inf)) for name, time in run.items()}
    return Counter(least)


def programs(quick: bool, batch: int) -> dict[str, tuple[Any, Callable[[], Any]]]:
    """The compiled forward and step, and a call of each."""
    fields = {"model.dropout": 0.0, "training.batch_size": batch} | (QUICK if quick else {})
    experiment = build(published_config(CONFIG, fields), levels=LEVELS)
    training, model = experiment.training, experiment.model
    images = np.random.default_rng(0).integers(0, LEVELS, (batch, *model.shape), np.uint8)
    params = jax.jit(training.init)(jax.random.key(0, impl="rbg"), images)
    x, t = jnp.asarray(images, jnp.float32), jnp.full(batch, 0.5)
    forward = jax.jit(lambda params, x, t: model.noise(params)(x, t))
    step = make_program(training.loss, training.optimizer, training.ema_rate)
    state = init_state(jax.tree.map(jnp.copy, params), training.optimizer)
    whole = step.lower(state, images[None]).compile()

    def one_step() -> None:
        nonlocal state
        state, row = step(state, images[None])
        jax.block_until_ready((state, row))

    return {
        "forward": (
            forward.lower(params, x, t).compile(),
            lambda: jax.block_until_ready(forward(params, x, t)),
        ),
        "step": (whole, one_step),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small network")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for name, (compiled, call) in programs(options.quick, options.batch).items():
        kind = kinds(compiled.as_text(), "DDPMpp")
        time, count = Counter[str](), Counter[str]()
        for instruction, taken in milliseconds(call, options.repeats).items():
            if instruction in kind:
                time[kind[instruction]] += taken
                count[kind[instruction]] += 1
        rows = [
            (each, str(count[each]), f"{taken:.1f}", f"{taken / time.total():.0%}")
            for each, taken in time.most_common()
        ]
        print(table((name, "instructions", "ms", "share"), rows))
        print(json.dumps({"program": name, "milliseconds": time}))


if __name__ == "__main__":
    main()
