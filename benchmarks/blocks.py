"""Equal blocks one after the other: written out, in a loop, or as calls of one function.

The blocks are residual blocks of DDPM++ as the published CIFAR-10 networks have them, at one
resolution. ``apart`` is what JAX and XLA make of them: each is compiled for itself. In the
``loop`` (``jax.lax.scan``) their parameters are stacked within the program. ``calls`` are those of
the project's networks (scoremle/xla.py). Each is measured with the derivatives that JAX gives
to convolutions, and with those of scoremle/xla.py.

Columns: seconds of processor time to compile, and to run once, the mean of ten runs.

    python benchmarks/blocks.py
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
from scoremle.nn import layers
from scoremle.xla import call

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
            h = call(block, h, embedding) if self.called else block(h, embedding)
        return h


def networks(count: int, embedding: jax.Array) -> dict[str, Network]:
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


KINDS: dict[str, Callable[[Network], Callable[..., Any]]] = {
    "forward": lambda network: network,
    "value and derivative": lambda network: lambda params, h: jax.jvp(
        lambda h: network(params, h), (h,), (jnp.ones_like(h),)
    ),
    "gradient": lambda network: jax.grad(lambda params, h: jnp.mean(network(params, h) ** 2)),
}


def seconds(lowered: Any, arguments: Any, repeats: int = 10) -> tuple[float, float]:
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
    shape = (options.batch, options.size, options.size, options.channels)
    x = jax.random.normal(jax.random.key(0), shape)
    embedding = jax.random.normal(jax.random.key(1), (options.batch, EMBEDDING))
    params = jax.jit(Blocks(options.blocks).init)(jax.random.key(2), x, embedding)["params"]
    rows, found = [], {}
    for kind, of in KINDS.items():
        measured = {}
        for derivatives, conv in (("JAX's", nn.Conv), ("ours", layers.Conv)):
            with mock.patch.object(layers, "Conv", conv):
                for name, network in networks(options.blocks, embedding).items():
                    jax.clear_caches()  # what was traced with the other convolution
                    lowered = jax.jit(of(network)).lower(params, x)
                    measured[f"{name}, {derivatives}"] = seconds(lowered, (params, x))
        for i, what in enumerate(("compile", "run")):
            rows.append((f"{what} {kind}", *(f"{each[i]:.3f}" for each in measured.values())))
        found[kind] = measured
    print(table((f"{options.blocks} blocks", *measured), rows))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
