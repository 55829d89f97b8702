"""Equal blocks one after the other, or one block in a loop: what compiles and runs faster.

The blocks are residual blocks of DDPM++ as the published CIFAR-10 networks have them, at one
resolution. In the loop (``jax.lax.scan``) their parameters are stacked within the program, so that
the tree stays as published. The rest of a network is not equal: levels differ in size, and on the
way up each block takes a skip connection.

On a CPU, XLA brings convolutions into the form that its library computes where they stand in the
program itself, and not in the body of a loop. ``rewritten`` is the loop with the gradients of its
convolutions written in that form. Such functions have no derivative in forward mode, which
likelihoods take. Columns: seconds of processor time to compile, and to run once, the mean of ten
runs; and their ratios to the blocks apart.

    python benchmarks/scan.py
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp

from scoremle.evaluation.tables import table
from scoremle.nn.layers import ResnetBlockBigGANpp

EMBEDDING = 512
LAYOUT = ("NHWC", "HWIO", "NHWC")
by_xla = jax.lax.conv_general_dilated


def convolve(x: jax.Array, kernel: jax.Array, pad: Any = "SAME") -> jax.Array:
    return by_xla(x, kernel, (1, 1), pad, dimension_numbers=LAYOUT)


@jax.custom_vjp
def rewritten(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution whose gradients are convolutions of images, channels last."""
    return convolve(x, kernel)


def _gradients(given: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = given
    pads = [(size // 2, size // 2) for size in kernel.shape[:2]]
    of_kernel = convolve(x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), pads)
    return convolve(g, kernel[::-1, ::-1].swapaxes(2, 3)), of_kernel.transpose(1, 2, 0, 3)


rewritten.defvjp(lambda x, kernel: (convolve(x, kernel), (x, kernel)), _gradients)


def programs(count: int, channels: int, size: int, batch: int) -> tuple[Any, dict[str, list[Any]]]:
    """What programs are given; and forward and gradient of so many blocks: apart, in a loop, and
    in one that is rewritten."""
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

    def loop_rewritten(params: list[Any], h: jax.Array) -> jax.Array:
        def conv(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
            return rewritten(x, kernel)  # all convolutions of such a block have stride 1

        with mock.patch.object(nn.linear.lax, "conv_general_dilated", conv):
            return loop(params, h)

    def gradient(network: Callable[..., jax.Array]) -> Callable[..., Any]:
        return jax.grad(lambda params, h: jnp.mean(network(params, h) ** 2))

    kinds = {"forward": lambda network: network, "gradient": gradient}
    given = (params, x)
    return given, {
        name: [jax.jit(kind(network)).lower(*given) for network in (apart, loop, loop_rewritten)]
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
    for name, of_each in lowered.items():
        measured = [seconds(one, given, 10) for one in of_each]
        for what, each in zip(("compile", "run"), zip(*measured, strict=True), strict=True):
            found[f"{what} {name}"] = each
            ratios = (f"{other / each[0]:.2f}" for other in each[1:])
            rows.append((f"{what} {name}", *(f"{one:.3f}" for one in each), *ratios))
    columns = ("apart, s", "loop, s", "rewritten, s", "loop / apart", "rewritten / apart")
    print(table((f"{options.blocks} blocks", *columns), rows))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
