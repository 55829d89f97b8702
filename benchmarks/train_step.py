"""A training step of the published CIFAR-10 network beside torch's, in one run.

Four things are timed on one batch: the network ("forward"), its value and derivative in one
direction, the gradient of a mean square in its parameters, and a whole step: that gradient,
clipped, Adam and the average of the parameters. PyTorch's network is the same
(``tests/helpers/torch_networks.py``), in both memory layouts; its derivative is by reverse mode,
value and v'J. All take turns, and the least time of a few counts. Columns: our milliseconds, the
same over torch's better layout, and each library's in its own forwards. Below: which share our
forward is of the machine's own matrix products. Needs PyTorch; the full network takes minutes.

    python benchmarks/train_step.py --quick
    python benchmarks/train_step.py
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from scoremle import devices, xla
from scoremle.evaluation.tables import table
from scoremle.experiment.build import build
from scoremle.experiment.config import published_config
from scoremle.training.program import make_program
from scoremle.training.step import init_state

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from helpers.torch_networks import Network

CONFIG, LEVELS = "vp/cifar10_ddpmpp_continuous", 256
QUICK = {"model.nf": 32, "model.num_res_blocks": 1, "model.ch_mult": (1,)}
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
FORWARD, DERIVATIVE, GRADIENT, STEP = "forward", "value and derivative", "gradient", "step"
WIDE = 1024

Calls = dict[str, Callable[[], Any]]


def of_jax(config: Any, images: np.ndarray) -> tuple[Calls, float]:
    """Our calls, and the FLOPs of the forward as XLA counts them."""
    experiment = build(config, levels=LEVELS)
    training, network = experiment.training, experiment.model.network
    params = training.init(jax.random.key(0, impl="rbg"), images)
    step = make_program(training.loss, training.optimizer, training.ema_rate)
    state = devices.replicate(init_state(jax.tree.map(jnp.copy, params), training.optimizer))
    x, labels = jnp.asarray(images / 127.5 - 1, jnp.float32), jnp.full(len(images), 500.0)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return network.apply({"params": params}, x, labels)

    def one_step() -> Any:
        nonlocal state
        state, row = step(state, images[None])
        return row

    forward = xla.compiled(apply)
    derive = xla.compiled(lambda p, x: jax.jvp(lambda y: apply(p, y), (x,), (x,)))
    gradient = xla.compiled(
        jax.grad(lambda p, x: jnp.mean(apply(p, x) ** 2)), gradients=True
    )
    programs = {FORWARD: forward, DERIVATIVE: derive, GRADIENT: gradient}
    calls: Calls = {
        name: lambda program=program: jax.block_until_ready(program(params, x))
        for name, program in programs.items()
    }
    calls[STEP] = lambda: jax.block_until_ready(one_step())
    return calls, forward.lower(params, x).cost_analysis()["flops"]


def of_torch(config: Any, images: np.ndarray, layout: torch.memory_format) -> Calls:
    model, optim = config.model, config.optim
    network = Network(model.to_dict(), size=images.shape[1], centered=True)
    network = network.to(memory_format=layout)
    weights = [each for each in network.parameters() if each.requires_grad]
    average = [each.detach().clone() for each in weights]
    adam = torch.optim.Adam(weights, lr=optim.lr, betas=(optim.beta1, 0.999), eps=optim.eps)
    x = torch.from_numpy(images / 127.5 - 1).float().permute(0, 3, 1, 2)
    x = x.contiguous(memory_format=layout)
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


def products() -> Calls:
    """A matrix product, by which what the machine can do is told."""
    a, product = jnp.ones((WIDE, WIDE)), jax.jit(jnp.matmul)
    return {"product": lambda: jax.block_until_ready(product(a, a))}


def least(sides: dict[str, Calls], repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of each call. They take turns, so that what else the machine does meets all.

    Each is called twice and the second call counts: the first compiles, or finds memory and caches
    as another left them.
    """
    times = {side: dict.fromkeys(calls, np.inf) for side, calls in sides.items()}
    for _ in range(repeats):
        for side, calls in sides.items():
            for name, call in calls.items():
                call()
                began = time.perf_counter()
                call()
                times[side][name] = min(times[side][name], time.perf_counter() - began)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small network")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    fields = {"model.dropout": 0.0, "training.batch_size": options.batch}  # torch's has none
    config = published_config(CONFIG, fields | (QUICK if options.quick else {}))
    shape = (options.batch, 32, 32, 3)
    images = np.random.default_rng(0).integers(0, LEVELS, shape, np.uint8)
    ours, flops = of_jax(config, images)
    others = {name: of_torch(config, images, layout) for name, layout in LAYOUTS.items()}
    times = least({"ours": ours, **others, "machine": products()}, options.repeats)
    mine = times["ours"]
    best = {name: min(times[layout][name] for layout in LAYOUTS) for name in mine}
    rows = [
        (name, f"{1e3 * mine[name]:.1f}", f"{mine[name] / best[name]:.2f}",
         f"{mine[name] / mine[FORWARD]:.1f}", f"{best[name] / best[FORWARD]:.1f}")
        for name in mine
    ]  # fmt: skip
    print(table((f"batch {options.batch}", "ms", "of torch's", "forwards", "torch's"), rows))
    peak = 2 * WIDE**3 / times["machine"]["product"]
    device = jax.devices()[0].device_kind
    share = flops / mine[FORWARD] / peak
    print(f"{device}: products {peak / 1e9:.0f} GFLOP/s, our forward {share:.0%} of that")
    print(json.dumps({"device": device, "seconds": times}))


if __name__ == "__main__":
    main()
