"""The training objective of a score model: how t is drawn, the weighting, published constants.

The three published objectives are (uniform t, plain), (uniform t, likelihood) and (uniform
log-SNR, likelihood).
"""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float

from scoremle.core.dequantize import Uniform
from scoremle.core.keys import split
from scoremle.core.loss import denoising_loss
from scoremle.core.times import TimeSampler, UniformLogSNR, UniformTime, log_snr_range
from scoremle.experiment.networks import ModelSpec, Params
from scoremle.types import IntImages, Keys, PerExample

__all__ = ["Objective"]


@dataclass(frozen=True)
class Objective:
    """The loss of a model's examples, by the config's fields of these names."""

    model: ModelSpec
    likelihood_weighting: bool
    importance_weighting: bool
    stratified: bool
    reduce_mean: bool
    uniform_dequantization: bool

    @property
    def times(self) -> TimeSampler:
        """How the training draws t."""
        if self.importance_weighting:
            return UniformLogSNR(self.model.sde, self.model.eps, self.stratified)
        return UniformTime(self.model.eps, self.stratified)

    @property
    def published_scale(self) -> Float[Array, ""] | float:
        """The constant between our loss in nats and the published one.

        The published loss leaves out the normaliser of the density of t (lambda_eps - lambda_1, or
        1 - eps), and with ``reduce_mean`` it is twice the mean over dimensions. The constants set
        what clipping the gradient does, so they stay.
        """
        normaliser: Float[Array, ""] | float = 1 - self.model.eps
        if self.importance_weighting:
            with jax.ensure_compile_time_eval():
                low, high = log_snr_range(self.model.sde, self.model.eps)
                normaliser = high - low
        return (2 / self.model.dims if self.reduce_mean else 1.0) / normaliser

    def describe(self) -> dict[str, Any]:
        """What stands beside a loss."""
        names = ("likelihood_weighting", "importance_weighting", "reduce_mean")
        return {name: getattr(self, name) for name in (*names, "uniform_dequantization")}

    def __call__(self, params: Params, x: IntImages, key: Keys, *, train: bool) -> PerExample:
        """The loss of each example in the published scaling; with ``train``, under dropout."""
        pixels, model = self.model.pixels, self.model
        key_u, key_loss, key_dropout = split(key, 3) if key.shape else jax.random.split(key, 3)
        dequantized = self.uniform_dequantization
        y = pixels.encode(x, Uniform()(key_u, x)[0]) if dequantized else pixels.encode_grid(x)
        return self.published_scale * denoising_loss(
            model.noise(params, key_dropout if train else None), model.sde, y, key_loss,
            times=self.times, weighting="likelihood" if self.likelihood_weighting else "plain",
        )  # fmt: skip
