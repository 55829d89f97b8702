"""Dequantizers: noise u in [0, 1) that turns integers into reals, with its log-density.

    -log P(x) <= E_q[ log q(u | x) - log p(y) ] - D log dy/du,      y = pixels.encode(x, u)
"""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp

from scoremle.arrays import Images, IntImages, PerExample, PRNGKey

__all__ = ["Dequantizer", "Uniform"]


class Dequantizer(Protocol):
    """Draws u in [0, 1) for integer images, and gives log q(u | x) in nats."""

    def __call__(self, key: PRNGKey, x: IntImages) -> tuple[Images, PerExample]: ...


@dataclass(frozen=True)
class Uniform:
    """u uniform in [0, 1), independent of the image: log q = 0."""

    def __call__(self, key: PRNGKey, x: IntImages) -> tuple[Images, PerExample]:
        return jax.random.uniform(key, x.shape), jnp.zeros(x.shape[0])
