"""Equal blocks one after the other, or one block in a loop: what compiles and runs faster.

The blocks are residual blocks of DDPM++ as the published CIFAR-10 networks have them, at one
resolution. In the loop (``jax.lax.scan``) their parameters are stacked within the program, so that
the tree stays as published. The rest of a network is not equal: levels differ in size, and on the
way up each block takes a skip connection. Columns: seconds of processor time to compile, and to
run once, the mean of ten runs; ``loop / apart`` is their ratio.

    python benchmarks/scan.py
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scoremle.evaluation.tables import table
from scoremle.nn.layers import ResnetBlockBigGANpp

EMBEDDING = 512


def programs(count: int, channels: int, size: int, batch: int) -> tuple[Any, dict[str, list[Any]]]:
    """What programs are given; and forward and gradient of so many blocks, apart and in a loop."""
    block = ResnetBlockBigGANpp(nn.swish, 0.0, True, 0.1, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (batch, size, size, channels))
    embedding = jax.random.normal(jax.random.key(1), (batch, EMBEDDING))
    keys = jax.random.split(jax.random.key(2), count)
    init = jax.jit(lambda key: block.init(key, x, embedding, train=False))
    params = [init(key) for key in keys]

    def apply(h: jax.Array, one: Any) -> jax.Array:
        return jnp.asarray(block.apply(one, h, embedding, train=False))

    def apart(params: list[Any], h: jax.Array) -> jax.Array:
        for one in params:
            h = apply(h, one)
        return h

    def loop(params: list[Any], h: jax.Array) -> jax.Array:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        return jax.lax.scan(lambda h, one: (apply(h, one), None), h, stacked)[0]

    def gradient(network: Callable[..., jax.Array]) -> Callable[..., Any]:
        return jax.grad(lambda params, h: jnp.mean(network(params, h) ** 2))

    kinds = {"forward": lambda network: network, "gradient": gradient}
    given = (params, x)
    return given, {
        name: [jax.jit(kind(network)).lower(*given) for network in (apart, loop)]
        for name, kind in kinds.items()
    }


def seconds(lowered: Any, arguments: Any, repeats: int) -> tuple[float, float]:
    """Processor time of a compilation, and of a run."""
    began = time.process_time()
    compiled = lowered.compile()
    compiling = time.process_time() - began
    jax.block_until_ready(compiled(*arguments))
    # Over all runs: the system counts what other threads do some milliseconds late.
    began = time.process_time()
    for _ in range(repeats):
        jax.block_until_ready(compiled(*arguments))
    return compiling, (time.process_time() - began) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--size", type=int, default=8, help="of an image")
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    rows, found = [], {}
    sizes = options.blocks, options.channels, options.size, options.batch
    given, lowered = programs(*sizes)
    for name, of_both in lowered.items():
        both = [seconds(one, given, 10) for one in of_both]
        for what, (one, other) in zip(("compile", "run"), zip(*both, strict=True), strict=True):
            found[f"{what} {name}"] = (one, other)
            rows.append((f"{what} {name}", f"{one:.3f}", f"{other:.3f}", f"{other / one:.2f}"))
    print(table((f"{options.blocks} blocks", "apart, s", "loop, s", "loop / apart"), rows))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
