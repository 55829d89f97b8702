"""Measures the cost of a network: to compile, to run, by kinds of work, and beside torch's.

    python benchmarks/network.py torch      # --quick, but for calls: a small network
    python benchmarks/network.py shares
    python benchmarks/network.py compile
    python benchmarks/network.py blocks
    python benchmarks/network.py calls

``torch`` sets the published CIFAR-10 network beside the same in PyTorch, in both memory layouts of
that: the network ("forward"), its value and derivative in one direction, the gradient of a mean
square in its parameters, and a whole training step: a gradient, clipped, Adam and the average of
the parameters. All take turns, and the least time of a few counts. Columns: our milliseconds, the
same over torch's better layout, and each library's in its own forwards. Below: which share our
forward is of the machine's own matrix products. The full network takes minutes.

``shares`` measures by JAX's profiler where the time of its forward and its gradient goes. A row
is a kind of instruction of the compiled program, as XLA fused them: milliseconds of the least of a
few runs, and its share. Instructions are sorted by what their fusions hold: a product, a copy into
another layout, a sum, or nothing of these. Convolutions run in threads of their own, which the
profiler does not see: theirs is what is left of the time that passes. Others run side by side here
and there too, so that what is left is rather too little.

``compile`` takes the published deep network, or with --quick that of the digits: seconds from the
first call of each program to its result, tracing and one run included. Seconds are those that
pass, and those of processor time, which other work on the machine does not lengthen much. Each is
measured in two processes of their own, with one empty folder for compiled programs: the first
process finds it empty, the second as the first left it. Last come the seconds of a second call.

``blocks`` compares equal residual blocks of DDPM++ one after the other. ``apart`` is what JAX and
XLA make of them: each is compiled for itself. In the ``loop`` (``jax.lax.scan``) their parameters
are stacked within the program. ``calls`` are those of the project's networks (scoremle/xla.py).
Each is measured with convolutions in the forms that JAX gives them, and in that of
scoremle/xla.py. Columns: seconds of processor time to compile, and to run once, the mean of ten
runs. It shows when a jaxlib makes these workarounds unnecessary.

``calls`` has milliseconds of calls of a model of 100 vectors in 10 dimensions, by an MLP: the
first, the median of ten others, the first of another number of rows, and the median where the
caller compiles it by ``jax.jit``.
"""

import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from common import KEY, SDE, answer, least, mlp, mlp_params, parser_of, timed
from jax.extend.core.primitives import conv_general_dilated_p
from jax.interpreters import mlir
from jax.tree_util import Partial

from scoremle import ScoreModel, xla
from scoremle.devices import replicate
from scoremle.experiment.build import build
from scoremle.experiment.config import published_config
from scoremle.nn import layers
from scoremle.training.program import make_program
from scoremle.training.step import init_state

CONFIG, DEEP = "vp/cifar10_ddpmpp_continuous", "vp/cifar10_ddpmpp_deep_continuous"
NO_DROPOUT = {"model.dropout": 0.0}  # torch's has none
QUICK = {"model.nf": 32, "model.num_res_blocks": 1, "model.ch_mult": (1,)}
BATCH, REPEATS = 4, 5
FORWARD, DERIVATIVE, GRADIENT, STEP = "forward", "value and derivative", "gradient", "step"
# Of square matrices whose product says what the machine can do.
WIDE = 1024

Calls = dict[str, Callable[[], Any]]


class Subject:
    """A network of a config, its programs, and what they are called with."""

    def __init__(self, config: str, fields: dict[str, Any] | None = None) -> None:
        self.config = published_config(config, {"training.batch_size": BATCH} | (fields or {}))
        self.levels = 17 if config == "digits" else 256
        experiment = build(self.config, levels=self.levels)
        self.training, model = experiment.training, experiment.model
        shape = (BATCH, *model.shape)
        self.images = np.random.default_rng(0).integers(0, self.levels, shape, np.uint8)
        self.x = jnp.asarray(2 * self.images / (self.levels - 1) - 1, jnp.float32)
        self.t = jnp.full(BATCH, 0.5)

        def predict(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
            return model.noise(params)(x, t)

        def derive(params: Any, x: jax.Array, t: jax.Array) -> Any:
            return jax.jvp(lambda y: predict(params, y, t), (x,), (x,))

        def error(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
            return jnp.mean(predict(params, x, t) ** 2)

        self.programs = {
            FORWARD: xla.compiled(predict),
            DERIVATIVE: xla.compiled(derive),
            GRADIENT: xla.compiled(jax.grad(error), gradients=True),
        }
        self.step = make_program(
            self.training.objective.loss, self.training.optimizer, self.training.ema_rate
        )

    def params(self) -> Any:
        return self.training.objective.initialiser.init(
            jax.random.key(0, impl="rbg"), self.images
        )

    def state(self, params: Any) -> Any:
        """A step uses it up."""
        return replicate(init_state(jax.tree.map(jnp.copy, params), self.training.optimizer))


# --- beside torch -----------------------------------------------------------------------------


def of_jax(subject: Subject, params: Any) -> Calls:
    state = subject.state(params)

    def step() -> Any:
        nonlocal state
        state, row = subject.step(state, subject.images[None])
        return row

    calls: Calls = {
        name: lambda program=program: program(params, subject.x, subject.t)
        for name, program in subject.programs.items()
    }
    return calls | {STEP: step}


def of_torch(config: Any, images: np.ndarray, layout: str) -> Calls:
    """The same calls of torch's network; its derivative is by reverse mode."""
    import torch
    from helpers.torch_networks import Network

    order = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}[layout]
    model, optim = config.model, config.optim
    network = Network(model.to_dict(), size=images.shape[1], centered=True)
    network = network.to(memory_format=order)
    weights = [each for each in network.parameters() if each.requires_grad]
    average = [each.detach().clone() for each in weights]
    adam = torch.optim.Adam(weights, lr=optim.lr, betas=(optim.beta1, 0.999), eps=optim.eps)
    x = torch.from_numpy(images / 127.5 - 1).float().permute(0, 3, 1, 2)
    x = x.contiguous(memory_format=order)
    labels = torch.full((len(x),), 500.0)

    def forward() -> Any:
        with torch.no_grad():
            return network(x, labels)

    def derivative() -> Any:
        y = x.detach().requires_grad_()
        return torch.autograd.grad(network(y, labels), y, x)

    def gradient() -> Any:
        return torch.autograd.grad(network(x, labels).square().mean(), weights)

    def step() -> None:
        noise = torch.randn_like(x)
        loss = (network(x + noise, labels) - noise).square().mean()
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, optim.grad_clip)
        adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - model.ema_rate)

    return {FORWARD: forward, DERIVATIVE: derivative, GRADIENT: gradient, STEP: step}


def beside_torch(quick: bool) -> None:
    subject = Subject(CONFIG, NO_DROPOUT | (QUICK if quick else {}))
    params = subject.params()
    sides = {"ours": of_jax(subject, params)} | {
        layout: of_torch(subject.config, subject.images, layout) for layout in ("NCHW", "NHWC")
    }
    calls = {(side, name): call for side, of in sides.items() for name, call in of.items()}
    a, product = jnp.ones((WIDE, WIDE)), jax.jit(jnp.matmul)
    times = least({**calls, "product": lambda: product(a, a)}, REPEATS)
    mine = {name: times["ours", name] for name in sides["ours"]}
    best = {name: min(times["NCHW", name], times["NHWC", name]) for name in mine}
    rows = [
        (name, f"{1e3 * mine[name]:.1f}", f"{mine[name] / best[name]:.2f}",
         f"{mine[name] / mine[FORWARD]:.1f}", f"{best[name] / best[FORWARD]:.1f}")
        for name in mine
    ]  # fmt: skip
    answer((f"batch {BATCH}", "ms", "of torch's", "forwards", "torch's"), rows)
    forward = subject.programs[FORWARD].lower(params, subject.x, subject.t)
    peak = 2 * WIDE**3 / times["product"]
    share = forward.cost_analysis()["flops"] / mine[FORWARD] / peak
    device = jax.devices()[0].device_kind
    print(f"{device}: products {peak / 1e9:.0f} GFLOP/s, our forward {share:.0%} of that")
    print(json.dumps({"device": device, "ours": mine, "torch": best}))


# --- where the time goes ----------------------------------------------------------------------

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
        return "outside of the network"
    if opcodes & {"transpose", "copy"}:
        return "copies into another layout"
    return "sums of normalisation, softmax, biases" if "reduce" in opcodes else "elementwise"


def milliseconds(call: Callable[[], Any], repeats: int) -> Counter[str]:
    """Milliseconds of each instruction, in the run in which it took least."""
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


def shares(quick: bool) -> None:
    subject = Subject(CONFIG, NO_DROPOUT | (QUICK if quick else {}))
    given = subject.params(), subject.x, subject.t
    for name in (FORWARD, GRADIENT):
        program = subject.programs[name].lower(*given).compile()

        def call(program: Any = program) -> Any:
            return jax.block_until_ready(program(*given))

        kind, whole = kinds(program.as_text(), "DDPMpp"), 1e3 * least({"": call}, REPEATS)[""]
        spent, count = Counter[str](), Counter[str]()
        for instruction, taken in milliseconds(call, REPEATS).items():
            if instruction in kind:
                spent[kind[instruction]] += taken
                count[kind[instruction]] += 1
        spent[CONVOLUTIONS] += whole - spent.total()
        rows = [
            (each, str(count[each]), f"{taken:.1f}", f"{taken / whole:.0%}")
            for each, taken in spent.most_common()
        ]
        answer(
            (name, "instructions", "ms", "share"), rows, {"program": name, "milliseconds": spent}
        )


# --- compilation ------------------------------------------------------------------------------

# The network whose programs a process is to call for the first time.
HERE = "SCOREMLE_FIRST_CALLS"


def first_calls(config: str) -> dict[str, tuple[float, float, float]]:
    """Seconds of each program's calls here: of the first, passed and of processors; the second."""
    subject, seconds = Subject(config), {}

    def twice(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """The second result; a step, which uses up its state, is given that of the first."""
        result, first = timed(call, *arguments)
        rest = (result[0], *arguments[1:]) if call is subject.step else arguments
        result, second = timed(call, *rest)
        seconds[name] = (*first, second.passed)
        return result

    params = twice("first parameters", subject.params)
    for name in (FORWARD, DERIVATIVE):
        twice(name, subject.programs[name], params, subject.x, subject.t)
    twice("training step", subject.step, subject.state(params), subject.images[None])
    return seconds


def in_a_process(config: str, folder: str) -> dict[str, tuple[float, float, float]]:
    """The same in another process, which keeps its programs in a folder."""
    variables = {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        HERE: config,
    }
    command = [sys.executable, __file__, "compile"]
    done = subprocess.run(command, env=os.environ | variables, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def compiling(quick: bool) -> None:
    if config := os.environ.get(HERE):
        print(json.dumps(first_calls(config)))
        return
    config = "digits" if quick else DEEP
    with tempfile.TemporaryDirectory() as folder:
        empty, full = (in_a_process(config, folder) for _ in range(2))
    times = {name: [*empty[name][:2], *full[name]] for name in empty}
    times["all"] = [sum(each) for each in zip(*times.values(), strict=True)]
    rows = [(name, *(f"{each:.1f}" for each in row)) for name, row in times.items()]
    heads = ("empty, s", "processors", "full, s", "processors", "again, s")
    answer((f"first call, {config}", *heads), rows, {"config": config, "seconds": times})


# --- equal blocks -----------------------------------------------------------------------------

EMBEDDING = 512
Network = Callable[[Any, jax.Array], jax.Array]


class Blocks(nn.Module):
    """So many equal blocks, each for itself or ``called``."""

    count: int
    called: bool = False

    @nn.compact
    def __call__(self, h: jax.Array, embedding: jax.Array) -> jax.Array:
        for _ in range(self.count):
            block = layers.ResnetBlockBigGANpp(nn.swish, 0.0, True, 0.1, jnp.float32)
            h = xla.compile_once(block, h, embedding) if self.called else block(h, embedding)
        return h


def ways(count: int, embedding: jax.Array) -> dict[str, Network]:
    """The three ways."""

    def of(blocks: Blocks) -> Network:
        return lambda params, h: jnp.asarray(blocks.apply({"params": params}, h, embedding))

    def loop(params: Any, h: jax.Array) -> jax.Array:
        blocks = (params[name] for name in sorted(params))
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)

        def body(h: jax.Array, one: Any) -> tuple[jax.Array, None]:
            return of(Blocks(1))({"ResnetBlockBigGANpp_0": one}, h), None

        return jax.lax.scan(body, h, stacked)[0]

    return {"apart": of(Blocks(count)), "loop": loop, "calls": of(Blocks(count, called=True))}


TAKEN: dict[str, Callable[[Network], Callable[..., Any]]] = {
    "forward": lambda network: network,
    "value and derivative": lambda network: lambda params, h: jax.jvp(
        lambda h: network(params, h), (h,), (jnp.ones_like(h),)
    ),
    "gradient": lambda network: jax.grad(lambda params, h: jnp.mean(network(params, h) ** 2)),
}


def processors(lowered: Any, arguments: Any, runs: int = 10) -> tuple[float, float]:
    """Seconds of a compilation, and of a run."""
    program, compilation = timed(lowered.compile)
    timed(program, *arguments)
    # Over all runs: the system counts what other threads do some milliseconds late.
    _, taken = timed(lambda: [program(*arguments) for _ in range(runs)])
    return compilation.computing, taken.computing / runs


def blocks(quick: bool) -> None:
    count, channels, side = (2, 32, 4) if quick else (8, 256, 8)
    x = jax.random.normal(jax.random.key(0), (BATCH, side, side, channels))
    embedding = jax.random.normal(jax.random.key(1), (BATCH, EMBEDDING))
    params = jax.jit(Blocks(count).init)(jax.random.key(2), x, embedding)["params"]
    rows, found = [], {}
    for kind, of in TAKEN.items():
        measured = {}
        # Ours comes last, and so stays.
        for form, rule in (("JAX's", xla._lowered_convolution), ("ours", xla._channels_last)):
            mlir.register_lowering(conv_general_dilated_p, rule, platform="cpu")
            for name, network in ways(count, embedding).items():
                lowered = jax.jit(of(network)).lower(params, x)
                measured[f"{name}, {form}"] = processors(lowered, (params, x))
        for i, what in enumerate(("compile", "run")):
            rows.append((f"{what} {kind}", *(f"{each[i]:.3f}" for each in measured.values())))
        found[kind] = measured
    answer((f"{count} blocks", *measured), rows, found)


# --- calls of a model -------------------------------------------------------------------------


def value(model: ScoreModel, x: jax.Array) -> jax.Array:
    return model.log_prob(x, KEY).log_prob.sum()


CALLED: dict[str, Callable[[ScoreModel, jax.Array], Any]] = {
    "log_prob": lambda model, x: model.log_prob(x, KEY),
    "its gradient in x": jax.grad(value, argnums=1),
    "its gradient in parameters": jax.grad(value),
    "bound": lambda model, x: model.elbo(x, KEY),
    "encode": lambda model, x: model.encode(x),
    "decode": lambda model, x: model.decode(x),
}


def calls(quick: bool) -> None:
    params = [jnp.asarray(a) for a in mlp_params(10)]
    model = ScoreModel(Partial(mlp, params), SDE, 1e-3, (10,))
    x = jax.random.normal(jax.random.key(1), (100, 10))

    def milliseconds(call: Any, x: jax.Array) -> float:
        return 1e3 * timed(call, model, x)[1].passed

    def median(call: Any) -> float:
        return float(np.median([milliseconds(call, x) for _ in range(10)]))

    rows = []
    for name, call in CALLED.items():
        first, others, fewer = milliseconds(call, x), median(call), milliseconds(call, x[:90])
        compiled = jax.jit(call)
        milliseconds(compiled, x)
        times = f"{first:.0f}", f"{others:.1f}", f"{fewer:.0f}", f"{median(compiled):.1f}"
        rows.append((name, *times))
    answer(("call", "first, ms", "others", "first of 90", "by jax.jit"), rows)


PARTS = {
    "torch": beside_torch, "shares": shares, "compile": compiling, "blocks": blocks, "calls": calls
}  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--quick", action="store_true", help="a small network")
    options = parser.parse_args()
    PARTS[options.part](options.quick)


if __name__ == "__main__":
    main()
