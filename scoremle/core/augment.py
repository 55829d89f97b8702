"""Augmentation as an input of a network, so that its density of unchanged images stays exact.

A quarter of the images stay as they are. A network that gets 1 for the others, and 0 for these,
learns both kinds, and is evaluated with 0 (Kingma et al., arXiv 2107.00630, appendix C).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scoremle.types import IntImages, PRNGKey

__all__ = ["augmented"]


def augmented(images: IntImages, key: PRNGKey) -> tuple[IntImages, Float[Array, " b"]]:
    """Images that are mirrored, turned, both or neither; and 1 for each that was changed, else 0.

    Args:
        images: [b h w c], square.
        key: by which half are mirrored, and half are turned by 90, 180 or 270 degrees.
    """
    key_flip, key_half, key_turns = jax.random.split(key, 3)
    shape = images.shape[:1]
    flip, half = (jax.random.bernoulli(key, shape=shape) for key in (key_flip, key_half))
    turns = jnp.where(half, jax.random.randint(key_turns, shape, 1, 4), 0)

    def one(image: IntImages, flip: Array, turns: Array) -> IntImages:
        image = jnp.where(flip, image[:, ::-1], image)
        ways = [lambda image, k=k: jnp.rot90(image, k) for k in range(4)]
        return jax.lax.switch(turns, ways, image)

    return jax.vmap(one)(images, flip, turns), (flip | half).astype(float)
