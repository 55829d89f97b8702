"""The training loss of images, without dropout, as an estimator: each image draws its own t."""

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Array, Key

from scoremle.core.dequantize import Dequantizer, Uniform
from scoremle.core.keys import split
from scoremle.core.loss import denoising_loss
from scoremle.core.pixels import Pixels
from scoremle.core.pytree import describe, pytree, static
from scoremle.core.sde import SDE
from scoremle.core.times import TimeSampler
from scoremle.likelihood.image_model import ImageModel, pixels_of
from scoremle.likelihood.images import Values
from scoremle.types import IntImages, Keys, NoiseFn, PerExample, Scalar

__all__ = ["ByLoss"]


@pytree
@dataclass(frozen=True)
class ByLoss:
    """The denoising loss.

    Args:
        times: how t is drawn.
        scale: a factor, as a publication has it.
        weighting: "likelihood" or "plain".
        dequantized: uniform noise is added to the integers.

    Values: ``loss``.
    """

    on_host: ClassVar[bool] = False
    words: ClassVar[str] = "training loss, published scaling"

    times: TimeSampler
    scale: Scalar
    weighting: str = static()
    dequantized: bool = static()

    def describe(self) -> dict[str, Any]:
        return {"estimator": self.words, **describe(self)}

    def __call__(
        self, model: ImageModel, dequantizer: Dequantizer, x: IntImages, keys: Key[Array, " b"]
    ) -> Values:
        return {"loss": self.losses(model.noise, model.sde, pixels_of(model), x, keys)}

    def losses(
        self, noise: NoiseFn, sde: SDE, pixels: Pixels, x: IntImages, key: Keys
    ) -> PerExample:
        """The loss of each image, by one key or one for each."""
        key_u, key_loss, _ = split(key, 3)  # the third is that of dropout
        y = pixels.encode(x, Uniform()(key_u, x)[0]) if self.dequantized else pixels.encode_grid(x)
        return self.scale * denoising_loss(
            noise, sde, y, key_loss, times=self.times, weighting=self.weighting
        )
