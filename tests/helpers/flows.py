"""Small Flow++ dequantizers: those of the golden files, and a tiny one with random parameters."""

import flax.traverse_util
import jax
import numpy as np

from scoremle.nn.flowpp import FlowPP

SMALL = {  # of the golden files
    "cifar10": FlowPP("cifar10", filters=16, components=4, blocks=2, couplings=4, heads=4),
    "imagenet32": FlowPP("imagenet32", filters=8, components=3, blocks=1, couplings=8, heads=2),
}


def tiny(variant, shape=(3, 4, 6, 2)):
    """A small flow with random parameters, its noise and its images."""
    flow = FlowPP(variant, filters=4, components=2, blocks=1, couplings=2, heads=2)
    rng = np.random.default_rng(0)
    noise, x = rng.normal(size=shape), rng.uniform(size=shape)
    shapes = jax.eval_shape(flow.init, jax.random.key(0), noise, x)

    def draw(path, leaf):
        name = path[-1].key
        middle = np.eye(*leaf.shape) if name in ("W0", "W1") else name.endswith("_g")
        return middle + 0.3 * rng.normal(size=leaf.shape)

    return flow, jax.tree.map_with_path(draw, shapes), noise, x


def golden_variables(arrays, dtype):
    flat = {k.removeprefix("params/"): arrays[k] for k in arrays if k.startswith("params/")}
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    return {"params": jax.tree.map(lambda p: p.astype(dtype), params)}

