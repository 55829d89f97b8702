"""The scale of the informed decoder, where it is not one number for all images.

*Learned*: the network predicts it for each pixel. With a learned range its output v interpolates
the logarithm of a step's variance, from the least at -1 to the greatest at 1. At the first level
of its chain of steps that is the variance of L_0, of the last step to the integers (Nichol and
Dhariwal, arXiv 2102.09672, equation 15):

    log scale^2 = log least + (v + 1) / 2 (log greatest - log least)

    greatest = sigma_0^2,        least = sigma_0^2 (1 - e^(lambda_1 - lambda_0))

At another level v belongs to another step, which does not end at the integers.

*Of others*: fitted to images, but for these images themselves fitted to others. They are found by
their pixels. So the scale of an image depends neither on its place nor on its batch.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from scoremle.core.pytree import frozen_pytree
from scoremle.errors import UserError
from scoremle.types import Data, IntImages, Scalar

__all__ = ["LearnedScale", "Scale", "ScaleOfOthers"]

# (integers, v) -> a scale that multiplies images; v is None where a network predicts no range.
Scale = Callable[[IntImages, Data | None], Data]


@frozen_pytree
class LearnedScale:
    """Scale of each pixel, by a network with a learned range of variances.

    Args:
        log_least: the logarithm of the variance at v = -1, in units of the data.
        log_greatest: that at v = 1.

    Raises UserError, when it is called, for a network that predicts no variance.
    """

    log_least: Scalar
    log_greatest: Scalar

    def __call__(self, integers: IntImages, v: Data | None) -> Data:
        if v is None:
            raise UserError("this network has no variance: give the decoder another scale")
        width = self.log_greatest - self.log_least
        return jnp.exp((self.log_least + (v + 1) / 2 * width) / 2)


@frozen_pytree(eq=False)
class ScaleOfOthers:
    """A number that was fitted to some images, and for these themselves another.

    Args:
        images: those that ``scale`` was fitted to.
        scale: of all other images.
        of_these: of ``images``, and fitted to none of them.
    """

    images: Integer[Array | np.ndarray, "n h w c"]
    scale: Scalar
    of_these: Scalar

    def __call__(self, integers: IntImages, v: Data | None) -> Float[Array, "b 1 1 1"]:
        same = (integers[:, None] == jnp.asarray(self.images)).all(axis=(2, 3, 4)).any(axis=1)
        return jnp.where(same, self.of_these, self.scale)[:, None, None, None]
