"""Lossless compression of images by a model, block by block, each checked before it is kept.

A block is as many images as the network is given at once. The first blocks are smaller, so that
only the first image draws from random bits. A block that does not come back as it was is stored
plainly: so a network with a rounding of its own costs bits, never pixels.
"""

import math
import zlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer, UInt32

from scoremle.coding import blocks
from scoremle.coding.layers import LatentLayers
from scoremle.coding.stack import BitStack
from scoremle.core.pixels import Pixels
from scoremle.errors import UserError
from scoremle.progress import progress

Images = Integer[np.ndarray, "n *d"]


@dataclass(frozen=True)
class CodedBlock:
    """Images that were coded together.

    Args:
        images: how many.
        crc: CRC-32 of their grey values, as little-endian integers of 16 bits.
        plain: the bytes that they take outside the stack of bits; 0: they are on it.
    """

    images: int
    crc: int
    plain: int = 0


@dataclass(frozen=True)
class Coded:
    """Images as bits.

    Args:
        blocks: of the images, in their order.
        words: the stack of bits, with all blocks that are not plain.
        plain: the others, one after the other, each deflated.
        initial: random bits that the first image was drawn from.
    """

    blocks: tuple[CodedBlock, ...]
    words: UInt32[np.ndarray, " n"]
    plain: bytes
    initial: int

    @property
    def images(self) -> int:
        return sum(block.images for block in self.blocks)


def compress(layers: LatentLayers, images: Images) -> tuple[Coded, blocks.Nats]:
    """Codes images, and decodes each block again before the next.

    Returns the bits, and the terms of the bound for what was drawn in nats, NaN of plain images.

    Args:
        layers: of the model's chain.
        images: grey values of the model's pixels.

    Raises UserError if there are no images.
    """
    if not len(images):
        raise UserError("no images to compress")
    levels = images.reshape(len(images), -1).astype(np.int64)
    stack, found, plain, nats = BitStack(), list[CodedBlock](), b"", list[blocks.Nats]()
    with progress("coding", len(levels), "image") as advance:
        first = 0
        while first < len(levels):
            size = int(stack.to_draw / (2 * blocks.bits_to_draw(layers)))
            block = levels[first : first + min(max(size, 1), layers.lanes)]
            after, of_block = _coded(layers, stack, block)
            packed = b"" if after else zlib.compress(_bytes(block), 9)
            stack, plain = after or stack, plain + packed
            nats.append(of_block)
            found.append(CodedBlock(len(block), zlib.crc32(_bytes(block)), len(packed)))
            first += len(block)
            advance(first)
    return Coded(tuple(found), stack.words, plain, stack.initial), np.concatenate(nats)


def _coded(
    layers: LatentLayers, stack: BitStack, block: blocks.Levels
) -> tuple[BitStack | None, blocks.Nats]:
    """The stack with a block, and its nats; None and NaN unless it comes back as it was."""
    after, nothing = stack.copy(), np.full(len(block), np.nan)
    try:
        nats = blocks.push_images(layers, after, block)
        again = after.copy()
        same = np.array_equal(blocks.pop_images(layers, again, len(block)), block)
    except OverflowError:  # a latent that is out of reach, or is not a number
        return None, nothing
    return (after, nats) if same and again.ends_with(stack) else (None, nothing)


def decompress(layers: LatentLayers, coded: Coded) -> Images:
    """Images of bits, each block compared with its checksum.

    Raises UserError for a block that comes back otherwise: where another network or one that
    rounds otherwise decodes, or the bits are damaged.
    """
    left, dims = coded.plain, math.prod(layers.shape)
    try:
        stack = BitStack(coded.words)
    except ValueError:  # its last word is never 0
        raise UserError("the bits are damaged") from None
    found = list[blocks.Levels]()
    with progress("decoding", coded.images, "image") as advance:
        done = 0
        for block in reversed(coded.blocks):
            if block.plain:
                left, packed = left[: -block.plain], left[-block.plain :]
                levels = _unpacked(packed, block.images, dims)
            else:
                levels = _decoded(layers, stack, block.images)
            if levels is None or zlib.crc32(_bytes(levels)) != block.crc:
                raise UserError(
                    f"{block.images} images were not decoded exactly: this machine rounds"
                    " differently from the one that compressed them, or the bits are damaged"
                )
            found.append(levels)
            done += block.images
            advance(done)
    images = np.concatenate(found[::-1]).reshape(-1, *layers.shape)
    return images.astype(Pixels(len(layers.points)).dtype)


def _decoded(layers: LatentLayers, stack: BitStack, images: int) -> blocks.Levels | None:
    try:
        return blocks.pop_images(layers, stack, images)
    except OverflowError:  # what another rounding leads to
        return None


def _bytes(levels: blocks.Levels) -> bytes:
    return levels.astype("<u2").tobytes()


def _unpacked(packed: bytes, images: int, dims: int) -> blocks.Levels | None:
    """A plain block; None for one of another length."""
    size = 2 * images * dims
    try:
        content = zlib.decompressobj().decompress(packed, size + 1)
    except zlib.error:
        return None
    if len(content) != size:
        return None
    return np.frombuffer(content, "<u2").astype(np.int64).reshape(images, dims)
