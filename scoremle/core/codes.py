"""Codes of images: k bits of m that are 1, those of the k largest logits of an encoder.

A code costs log C(m, k) nats, as one of all such sets, each as likely (Sahoo et al., arXiv
2312.13236, have the divergence of a single draw from the softmax of the logits, which is less).
In training, noise is added to the logits. The bits then have the gradient of the logits' direction
in place of their own, which is zero. The sum-of-gamma noise

    n = (10 / k) ( sum_{i=1}^10 G_i k/i - log 10 ),      G_i ~ Gamma(1/k, 1)

is that of Niepert et al. (arXiv 2106.01798).
"""

from collections.abc import Callable
from math import comb, log

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scoremle.core.keys import per_example
from scoremle.core.pytree import frozen_pytree, static
from scoremle.numerics import as_pytree
from scoremle.types import Data, Keys, PRNGKey

__all__ = ["Coder"]

# Terms of the sum, and its temperature.
TERMS = 10

Logits = Float[Array, "b m"]


def top_k(logits: Logits, k: int) -> Logits:
    """Bits: 1 at the k largest logits, else 0. Of equal ones the first count.

    Args:
        logits: [b m].
        k: how many.
    """
    places = jax.lax.top_k(logits, k)[1]
    return jnp.sum(jax.nn.one_hot(places, logits.shape[-1], dtype=logits.dtype), axis=-2)


def relaxed_top_k(logits: Logits, noise: Logits, k: int) -> Logits:
    """``top_k`` of noisy logits, with the gradient of their direction.

    Args:
        logits: [b m].
        noise: [b m].
        k: how many.
    """
    noisy = logits + noise
    noisy = noisy - jnp.mean(noisy, axis=-1, keepdims=True)
    direction = noisy / jnp.linalg.norm(noisy, axis=-1, keepdims=True)
    return top_k(noisy, k) + direction - jax.lax.stop_gradient(direction)


def sum_of_gamma(draws: Float[Array, "terms b m"], k: int) -> Logits:
    """The sum-of-gamma noise.

    Args:
        draws: of Gamma(1/k, 1), for each of ten terms.
        k: the number of bits that will be 1.
    """
    scales = k / jnp.arange(1, TERMS + 1, dtype=draws.dtype)
    return TERMS / k * (jnp.tensordot(scales, draws, 1, precision="highest") - log(TERMS))


@frozen_pytree(eq=False)
class Coder:
    """The code of an image, which the noise of a model depends on.

    Args:
        encoder: logits [b m] of reals [b *d].
        bits: m.
        on: k.
    """

    encoder: Callable[[Data], Logits]
    bits: int = static()
    on: int = static()

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder", as_pytree(self.encoder, "encoder"))

    @property
    def nats(self) -> float:
        """The cost of a code: log C(m, k)."""
        return log(comb(self.bits, self.on))

    @property
    def title(self) -> str:
        """Words for a likelihood that pays for a code."""
        return f"bound by a code of {self.on} of {self.bits} bits"

    def __call__(self, x: Data) -> Logits:
        """The codes of reals.

        Args:
            x: [b *d], in the middle of the bins of pixels.
        """
        return top_k(self.encoder(x), self.on)

    def relaxed(self, logits: Logits, key: PRNGKey) -> Logits:
        """Codes by noisy logits, with a gradient: those of training.

        Args:
            logits: [b m].
            key: of the noise.
        """
        draws = jax.random.gamma(key, 1 / self.on, (TERMS, *logits.shape))
        return relaxed_top_k(logits, sum_of_gamma(draws, self.on), self.on)

    def drawn(self, keys: Keys) -> Logits:
        """Codes of samples: each is one of all, evenly.

        Args:
            keys: one for each sample.
        """
        return top_k(per_example(jax.random.uniform, keys, (self.bits,)), self.on)
