"""The layers of a chain, on grids: what the sender and the receiver compute alike.

Layer i is the noisy image at the i-th time of the chain, in cells of a grid of its own: an eighth,
or less, of each scale that the layer is coded with. So its numbers are integers, and the bits of a
cell cancel: the receiver pays log q/p, as in the bound, for the Gaussians on the grid, which is
no more than for those without it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scoremle.errors import UserError
from scoremle.likelihood.decoders import FAR, Decoder, DiscreteDecoder, InformedDecoder
from scoremle.likelihood.steps import BySteps, ReverseChain
from scoremle.model import ScoreModel
from scoremle.numerics import as_pytree, expand, power_of_two
from scoremle.types import Data
from scoremle.xla import compiled

# Cells of a grid in the least scale of its layer.
FINENESS = 8
# The first blocks are of one image, or of few: the network is given no fewer than so many.
FEWEST = 8

Cells = Int[np.ndarray, "n d"]
Reals = Float[np.ndarray, "n d"]


class LatentLayers:
    """The distributions of a chain's layers, in cells: forwards by the SDE, back by the network.

    Args:
        model: a model of integer images.
        by: its chain.
        lanes: images that the network is given at once. Fewer are filled up with zeros, to a
            power of two, so that all go through a few programs.

    Raises UserError for a decoder that gives no probabilities of integers.
    """

    def __init__(self, model: ScoreModel, by: BySteps, lanes: int) -> None:
        sde, self.shape, self.lanes = model.sde, model.shape, lanes
        self.times = jnp.asarray(by.times_of(model.sde.schedule), jnp.float32)
        self.points = np.asarray(by.points_of(model))
        points = jnp.asarray(self.points, jnp.float32)
        noise = as_pytree(model.noise)
        chain = ReverseChain(noise, sde, points, self.times, by.variance, by.clip)
        decoder = by.decoder or chain.decoder()
        if not isinstance(decoder, DiscreteDecoder | InformedDecoder):
            raise UserError(f"integers can't be coded by a decoder that is a {decoder.title}")
        self._back, self._levels = partial(_back, chain), partial(_levels, chain, decoder)
        alpha, sigma, log_snr = (
            np.asarray(value, np.float64)
            for value in (sde.alpha(self.times), sde.sigma(self.times), sde.log_snr(self.times))
        )
        # Of layer i given i - 1; layer 0 is given the data.
        self.factor = np.append(alpha[0], alpha[1:] / alpha[:-1])
        gap = np.diff(log_snr)
        forward = np.append(sigma[0], sigma[1:] * np.sqrt(-np.expm1(gap)))
        self.prior = float(sde.prior_std)
        back = np.append(sigma[:-1] * np.sqrt(-np.expm1(gap)), self.prior)
        self.cell = np.exp2(np.floor(np.log2(np.minimum(forward, back) / FINENESS)))
        self.scale = forward / self.cell

    @property
    def last(self) -> int:
        """The number of the layer that the prior is of."""
        return len(self.cell) - 1

    def encoded(self, levels: Cells) -> tuple[Reals, Reals]:
        """Mean and scale of layer 0, given grey values."""
        return self._scaled(0, self.points[levels])

    def forward(self, i: int, below: Cells) -> tuple[Reals, Reals]:
        """Mean and scale of layer i, given layer i - 1."""
        return self._scaled(i, below * self.cell[i - 1])

    def _scaled(self, i: int, below: Reals) -> tuple[Reals, Reals]:
        mean = self.factor[i] * below / self.cell[i]
        return mean, np.full_like(mean, self.scale[i])

    def back(self, i: int, above: Cells) -> tuple[Reals, Reals]:
        """Mean and scale of layer i, given layer i + 1: by the network."""
        mean, scale = self._back(self._images(i + 1, above), i)
        return self._cells(i, mean, len(above)), self._cells(i, scale, len(above))

    def decoded(self, lowest: Cells) -> Float[np.ndarray, "n d levels"]:
        """Probabilities of grey values, given layer 0."""
        log_prob = np.asarray(self._levels(self._images(0, lowest)), np.float64)
        return np.exp(log_prob[: len(lowest)]).reshape(*lowest.shape, -1)

    def _images(self, i: int, cells: Cells) -> Float[np.ndarray, "lanes *d"]:
        lanes = min(self.lanes, max(FEWEST, power_of_two(len(cells))))
        images = np.zeros((lanes, cells.shape[1]), np.float32)
        images[: len(cells)] = cells * self.cell[i]
        return images.reshape(lanes, *self.shape)

    def _cells(self, i: int, images: Any, count: int) -> Reals:
        return np.asarray(images, np.float64)[:count].reshape(count, -1) / self.cell[i]


@compiled
def _back(chain: ReverseChain, x: Data, i: Int[Array, ""]) -> tuple[Data, Data]:
    s, t = (jnp.full(len(x), chain.times[k]) for k in (i, i + 1))
    return chain.back(s, t, x)


@compiled
def _levels(chain: ReverseChain, decoder: Decoder, x: Data) -> Float[Array, "lanes *d levels"]:
    """log-probabilities of grey values, given layer 0."""
    sde, points, t = chain.sde, chain.points, jnp.full(len(x), chain.times[0])
    if isinstance(decoder, DiscreteDecoder):
        distance = (x / expand(sde.alpha(t), x))[..., None] - points
        return jax.nn.log_softmax(-expand(jnp.exp(sde.log_snr(t)) / 2, distance) * distance**2)
    assert isinstance(decoder, InformedDecoder)
    prediction, v = chain.outputs(x, t)
    estimate = (x - expand(sde.sigma(t), x) * prediction) / expand(sde.alpha(t), x)
    scale = decoder.scale(jnp.zeros(x.shape, int), v) if callable(decoder.scale) else decoder.scale
    halves = points[:-1] + jnp.diff(points) / 2
    edges = jnp.concatenate([jnp.full(1, -FAR), halves, jnp.full(1, FAR)])
    places = (edges - estimate[..., None]) / jnp.broadcast_to(scale, x.shape)[..., None]
    return decoder.log_mass(places[..., :-1], places[..., 1:])
