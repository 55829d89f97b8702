"""Images to bits and back, by bits-back coding along a chain (Townsend et al., arXiv 1901.04866).

The sender draws a layer with bits that are on the stack, pushes the layer below it by the network,
and goes on to the next; the receiver goes the other way, and gives the bits back (Kingma et al.,
arXiv 1905.06845). What is left is

    log q(z | x) - log p(x, z),

a draw of the bound that the model states.
"""

import math

import numpy as np
from jaxtyping import Float, Integer

from scoremle.coding.layers import Cells, Layers, Reals
from scoremle.coding.stack import Stack

__all__ = ["bits_to_draw", "decode", "encode"]

Levels = Integer[np.ndarray, "n d"]
Nats = Float[np.ndarray, " n"]
# Bits of a Gaussian beside the logarithm of its scale, and what may be more than the mean.
ENTROPY, TO_SPARE = math.log2(2 * math.pi * math.e) / 2, 1.1
# The least probability that the coder gives.
LEAST = 2.0**-24


def encode(layers: Layers, stack: Stack, levels: Levels) -> Nats:
    """Pushes images on a stack.

    Args:
        layers: of the model's chain.
        stack: what the bits are pushed on.
        levels: grey values, no more images than the layers have lanes.

    Returns the terms of the bound for what was drawn, in nats, of each image.
    """
    _lend(layers, stack, 0, len(levels))
    below, nats = _draw(stack, levels, *layers.encoded(levels))
    table = layers.decoded(below).reshape(levels.size, -1)
    of_levels = np.log(np.maximum(table[np.arange(levels.size), levels.ravel()], LEAST))
    nats = nats - of_levels.reshape(levels.shape).sum(axis=1)
    stack.push_levels(levels.ravel(), table)
    for i in range(1, layers.last + 1):
        _lend(layers, stack, i, len(levels))
        above, of_draw = _draw(stack, below, *layers.forward(i, below))
        nats = nats + of_draw + _push(stack, below, *layers.back(i - 1, above))
        below = above
    return nats + _push(stack, below, *_prior(layers, below))


def decode(layers: Layers, stack: Stack, count: int) -> Levels:
    """Pops so many images, which were pushed last."""
    dims = math.prod(layers.shape)
    above = _pop(stack, *_prior(layers, np.zeros((count, dims), int)))
    for i in range(layers.last, 0, -1):
        below = _pop(stack, *layers.back(i - 1, above))
        mean, scale = layers.forward(i, below)
        stack.give_back(above.ravel(), mean.ravel(), scale.ravel())
        above = below
    table = layers.decoded(above).reshape(count * dims, -1)
    levels = stack.pop_levels(table).reshape(count, dims)
    mean, scale = layers.encoded(levels)
    stack.give_back(above.ravel(), mean.ravel(), scale.ravel())
    return levels


def bits_to_draw(layers: Layers) -> float:
    """The bits that an image must find on the stack: those of its largest layer."""
    largest = float(np.max(layers.scale))
    return TO_SPARE * math.prod(layers.shape) * (math.log2(largest) + ENTROPY)


def _lend(layers: Layers, stack: Stack, i: int, count: int) -> None:
    dims = count * math.prod(layers.shape)
    stack.fill(TO_SPARE * dims * (math.log2(float(layers.scale[i])) + ENTROPY))


def _draw(stack: Stack, like: Levels, mean: Reals, scale: Reals) -> tuple[Cells, Nats]:
    """A layer, and log q of it in nats."""
    cells = stack.draw_normal(mean.ravel(), scale.ravel()).reshape(like.shape)
    return cells, -_nats(cells, mean, scale)


def _push(stack: Stack, cells: Cells, mean: Reals, scale: Reals) -> Nats:
    """-log p of a layer in nats, which it is pushed by."""
    stack.push_normal(cells.ravel(), mean.ravel(), scale.ravel())
    return _nats(cells, mean, scale)


def _pop(stack: Stack, mean: Reals, scale: Reals) -> Cells:
    return stack.pop_normal(mean.ravel(), scale.ravel()).reshape(mean.shape)


def _prior(layers: Layers, cells: Cells) -> tuple[Reals, Reals]:
    mean = np.zeros(cells.shape)
    return mean, np.full_like(mean, layers.prior / layers.cell[-1])


def _nats(cells: Cells, mean: Reals, scale: Reals) -> Nats:
    """-log of the density of Gaussians, in units of a cell."""
    square = np.square((cells - mean) / scale) / 2
    return np.sum(square + np.log(scale) + math.log(2 * math.pi) / 2, axis=1)
