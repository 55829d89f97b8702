"""The training loss of images, without dropout, as an estimator: each image draws its own t."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Key

from scoremle.core.dequantize import Dequantizer, Uniform
from scoremle.core.divergence import Hutchinson
from scoremle.core.high_order import second_order_loss
from scoremle.core.keys import example_keys, fold_in, split
from scoremle.core.learned_schedules import BetweenEnds, with_least_variance
from scoremle.core.loss import WEIGHTINGS, draw, drawn_loss, loss_at
from scoremle.core.pixels import Pixels
from scoremle.core.pytree import describe, frozen_pytree, static
from scoremle.core.schedules import Schedule
from scoremle.core.sde import SDE, with_schedule
from scoremle.core.times import TimeSampler
from scoremle.likelihood.decoders import DiscreteDecoder
from scoremle.likelihood.elbo import prior_divergence
from scoremle.likelihood.image_model import ImageModel, pixels_of
from scoremle.likelihood.images import Estimator, ImageValues
from scoremle.types import Data, IntImages, Keys, NoiseFn, PerExample, Scalar, Times

__all__ = ["ByLoss", "ByVDMLoss"]

# Folded into the key of the loss: a number that no example has.
SIGNS = 2**32 - 1
# Losses, times and their density.
Drawn = tuple[PerExample, Times, Times]


@frozen_pytree
class ByLoss(Estimator):
    """The denoising loss.

    Args:
        times: how t is drawn.
        scale: a factor, as a publication has it.
        weighting: "likelihood" or "plain".
        dequantized: uniform noise is added to the integers.

    Values: ``loss``.
    """

    dequantizes: ClassVar[bool] = False
    title: ClassVar[str] = "training loss, published scaling"

    times: TimeSampler
    scale: Scalar
    weighting: str = static()
    dequantized: bool = static()

    def describe(self) -> dict[str, Any]:
        return {"estimator": self.title, **describe(self)}

    def __call__(
        self, model: ImageModel, dequantizer: Dequantizer, x: IntImages, keys: Key[Array, " b"]
    ) -> ImageValues:
        return {"loss": self.drawn(model.noise, model.sde, pixels_of(model), x, keys)[0]}

    def drawn(
        self, noise: NoiseFn, sde: SDE, pixels: Pixels, x: IntImages, key: Keys,
        *, second_order: bool = False,
    ) -> tuple[PerExample, Drawn]:  # fmt: skip
        """The losses; and the denoising loss alone, in nats, with the times and their density.

        Args:
            noise: eps(x, t).
            sde: the SDE that it belongs to.
            pixels: those of the images.
            x: [b *d] integers.
            key: one, or one for each image.
            second_order: whether the losses have i-DODE's of second order, too, by a probe each.
        """
        key_u, key_loss, _ = split(key, 3)  # the third is that of dropout
        y, known = self._encoded(sde, pixels, x, key_u)
        found = self._denoising(noise, sde, y, key_loss)
        losses = known + found[0]
        if second_order:
            losses = losses + self._second(noise, sde, y, key_loss)
        return self.scale * losses, found

    def _encoded(
        self, sde: SDE, pixels: Pixels, x: IntImages, key: Keys
    ) -> tuple[Data, PerExample | float]:
        """Data that get noise, and the part of the loss that needs no network."""
        y = pixels.encode(x, Uniform()(key, x)[0]) if self.dequantized else pixels.encode_grid(x)
        return y, 0.0

    def _denoising(self, noise: NoiseFn, sde: SDE, y: Data, key: Keys) -> Drawn:
        return drawn_loss(noise, sde, y, key, times=self.times, weighting=self.weighting)

    def _second(self, noise: NoiseFn, sde: SDE, y: Data, key: Keys) -> PerExample:
        """The second-order loss in nats, of the draws of the denoising loss."""
        t, density, z = draw(y, key, self.times)
        (v,) = Hutchinson().draw(fold_in(example_keys(key, len(y)), SIGNS), y)
        weight = WEIGHTINGS[self.weighting](sde, t) / density
        return second_order_loss(noise, sde, y, t, z, v, weight)


@frozen_pytree
class ByVDMLoss(ByLoss):
    """VDM's loss: the bound on integers, which are in the middle of their bins, in bits/dim.

    Prior and decoder are constants where the schedule does not change (Kingma et al., arXiv
    2107.00630). The course of a schedule ``BetweenEnds`` gets the gradient of the squares.

    Args:
        eps: the time at which integers are decoded.
    """

    title: ClassVar[str] = "training loss, the bound on integers in bits/dim"

    eps: Scalar = 0.0

    def _encoded(
        self, sde: SDE, pixels: Pixels, x: IntImages, key: Keys
    ) -> tuple[Data, PerExample | float]:
        decoder = DiscreteDecoder(pixels.points)
        y = decoder.encode(x)
        last = decoder.known(sde, y, x, jnp.full(len(x), self.eps, y.dtype))
        return y, prior_divergence(sde, y) + last

    def _denoising(self, noise: NoiseFn, sde: SDE, y: Data, key: Keys) -> Drawn:
        if not isinstance(sde.schedule, BetweenEnds):
            return super()._denoising(noise, sde, y, key)
        t, density, z = draw(y, key, self.times)

        def losses(noise: NoiseFn, schedule: Schedule) -> PerExample:
            noise, under = with_schedule((noise, sde), schedule)
            return self.scale * loss_at(noise, under, y, t, density, z, weighting=self.weighting)

        return with_least_variance(losses, noise, sde.schedule, t) / self.scale, t, density
