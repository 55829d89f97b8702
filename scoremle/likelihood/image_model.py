"""Protocols of a model of integer images: what an estimator and a pilot take of it."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from scoremle.core.pixels import Pixels
from scoremle.core.sde import SDE
from scoremle.errors import UserError
from scoremle.types import NoiseFn

__all__ = ["pixels_of"]


@runtime_checkable
class HasPixels(Protocol):
    """A model of integer images, whatever its density is made of."""

    @property
    def pixels(self) -> Pixels | None: ...


@runtime_checkable
class ImageModel(HasPixels, Protocol):
    """A model of integer images by its noise prediction."""

    @property
    def noise(self) -> NoiseFn: ...

    @property
    def sde(self) -> SDE: ...

    @property
    def eps(self) -> float: ...

    @property
    def points(self) -> Float[np.ndarray, " levels"]: ...


def pixels_of(model: HasPixels) -> Pixels:
    """The pixels of a model of integers. Raises UserError for a model of reals.

    Args:
        model: any with ``pixels``, which may be None.
    """
    if model.pixels is None:
        raise UserError(
            "this model is one of reals: use log_prob, or give it pixels, such as"
            " scoremle.Pixels(256)"
        )
    return model.pixels
