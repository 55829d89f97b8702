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

from scoremle.coding.layers import Cells, LatentLayers, Reals
from scoremle.coding.stack import BitStack

Levels = Integer[np.ndarray, "n d"]
Nats = Float[np.ndarray, " n"]
# Bits of a Gaussian beside the logarithm of its scale, and what may be more than the mean.
ENTROPY, TO_SPARE = math.log2(2 * math.pi * math.e) / 2, 1.1
# The least probability that the coder gives.
LEAST = 2.0**-24


def push_images(layers: LatentLayers, stack: BitStack, levels: Levels) -> Nats:
    """Pushes images on a stack.

    Args:
        layers: of the model's chain.
        stack: what the bits are pushed on.
        levels: grey values, no more images than the layers have lanes.

    Returns the terms of the bound for what was drawn, in nats, of each image.
    """
    below, nats = _draw(layers, stack, 0, *layers.encoded(levels))
    table = layers.decoded(below)
    of_levels = np.take_along_axis(table, levels[..., None], axis=2)
    nats = nats - np.log(np.maximum(of_levels, LEAST)).sum(axis=(1, 2))
    stack.push_levels(levels, table)
    for i in range(1, layers.last + 1):
        above, of_draw = _draw(layers, stack, i, *layers.forward(i, below))
        nats = nats + of_draw + _push(stack, below, *layers.back(i - 1, above))
        below = above
    return nats + _push(stack, below, *_prior(layers, below))


def pop_images(layers: LatentLayers, stack: BitStack, count: int) -> Levels:
    """Pops so many images, which were pushed last."""
    above = stack.pop_normal(*_prior(layers, np.zeros((count, math.prod(layers.shape)), int)))
    for i in range(layers.last, 0, -1):
        below = stack.pop_normal(*layers.back(i - 1, above))
        _give_back(layers, stack, i, above, *layers.forward(i, below))
        above = below
    levels = stack.pop_levels(layers.decoded(above))
    _give_back(layers, stack, 0, above, *layers.encoded(levels))
    return levels


def bits_to_draw(layers: LatentLayers) -> float:
    """The bits that an image must find on the stack: those of its largest layer."""
    return max(_bits(layers, i, 1) for i in range(layers.last + 1))


def _bits(layers: LatentLayers, i: int, count: int) -> float:
    """The bits that layer i of so many images is drawn from, and some to spare."""
    dims = count * math.prod(layers.shape)
    return TO_SPARE * dims * (math.log2(float(layers.scale[i])) + ENTROPY)


def _draw(
    layers: LatentLayers, stack: BitStack, i: int, mean: Reals, scale: Reals
) -> tuple[Cells, Nats]:
    """Layer i, drawn from bits of the stack, and log q of it in nats."""
    bits = _bits(layers, i, len(mean))
    stack.fill(bits)
    stack.scramble(bits, i)
    cells = stack.draw_normal(mean, scale)
    return cells, -_nats(cells, mean, scale)


def _give_back(
    layers: LatentLayers, stack: BitStack, i: int, cells: Cells, mean: Reals, scale: Reals
) -> None:
    stack.give_back(cells, mean, scale)
    stack.scramble(_bits(layers, i, len(mean)), i)


def _push(stack: BitStack, cells: Cells, mean: Reals, scale: Reals) -> Nats:
    """-log p of a layer in nats, which it is pushed by."""
    stack.push_normal(cells, mean, scale)
    return _nats(cells, mean, scale)


def _prior(layers: LatentLayers, cells: Cells) -> tuple[Reals, Reals]:
    mean = np.zeros(cells.shape)
    return mean, np.full_like(mean, layers.prior / layers.cell[-1])


def _nats(cells: Cells, mean: Reals, scale: Reals) -> Nats:
    """-log of the density of Gaussians, in units of a cell."""
    square = np.square((cells - mean) / scale) / 2
    return np.sum(square + np.log(scale) + math.log(2 * math.pi) / 2, axis=1)
