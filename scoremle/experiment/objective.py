"""The training objective that a config names: how t is drawn, the weighting, published constants.

The three published objectives are (uniform t, plain), (uniform t, likelihood) and (uniform
log-SNR, likelihood).
"""

from typing import Any, Protocol

import jax
from jaxtyping import Array, Float

from scoremle.core.dequantize import Uniform
from scoremle.core.keys import split
from scoremle.core.loss import denoising_loss
from scoremle.core.pixels import Pixels
from scoremle.core.prediction import noise_fn
from scoremle.core.sde import SDE
from scoremle.core.times import TimeSampler, UniformLogSNR, UniformTime, log_snr_range
from scoremle.errors import UserError
from scoremle.nn import DDPMpp
from scoremle.types import Images, IntImages, Keys, PerExample, Times

__all__ = ["Losses", "published_scale", "reading", "training_losses", "training_times"]

Params = Any


class Losses(Protocol):
    """The loss of each example in the published scaling; with ``train``, under dropout."""

    def __call__(
        self, params: Params, x: IntImages, key: Keys, *, train: bool
    ) -> PerExample: ...


def reading(config: Any) -> dict[str, Any]:
    """What the network predicts and is told about t, as arguments of ``noise_fn``.

    Published networks predict the noise and are told 999 t; of the geometric VE, they predict the
    score and are told sigma. Told the log-SNR, they predict the noise.
    """
    model, told = config.model, "time_999"
    predicted = "eps"
    if model.embedding == "log_snr":
        told = "log_snr"
    elif config.training.sde.lower() == "vesde":
        predicted, told = "score", "sigma"
    if model.parameterization != "published":
        predicted = model.parameterization
    return {"prediction": predicted, "conditioning": told}


def training_times(config: Any, sde: SDE) -> TimeSampler:
    """How the training draws t. Raises UserError for importance sampling of the plain loss."""
    training = config.training
    if not training.importance_weighting:
        return UniformTime(training.smallest_time, training.stratified)
    if not training.likelihood_weighting:
        raise UserError(
            "training.importance_weighting draws t for the likelihood weighting: "
            "set training.likelihood_weighting too"
        )
    return UniformLogSNR(sde, training.smallest_time, training.stratified)


def published_scale(config: Any, sde: SDE, dims: int) -> Float[Array, ""] | float:
    """The constant between our loss in nats and the published one.

    The published loss leaves out the normaliser of the density of t (lambda_eps - lambda_1, or
    1 - eps), and with ``reduce_mean`` it is twice the mean over dimensions. The constants set what
    clipping the gradient does, so they stay.
    """
    eps = config.training.smallest_time
    normaliser: Float[Array, ""] | float = 1 - eps
    if config.training.importance_weighting:
        low, high = log_snr_range(sde, eps)
        normaliser = high - low
    return (2 / dims if config.training.reduce_mean else 1.0) / normaliser


def training_losses(
    config: Any, network: DDPMpp, sde: SDE, times: TimeSampler, pixels: Pixels, dims: int
) -> Losses:
    """The loss of each example in the published scaling."""
    how = reading(config)
    weighting = "likelihood" if config.training.likelihood_weighting else "plain"
    scale = published_scale(config, sde, dims)
    dequantize = config.data.uniform_dequantization

    def losses(params: Params, x: IntImages, key: Keys, *, train: bool) -> PerExample:
        key_u, key_loss, key_dropout = split(key, 3) if key.shape else jax.random.split(key, 3)
        y = pixels.encode(x, Uniform()(key_u, x)[0]) if dequantize else pixels.encode_grid(x)
        rngs = {"dropout": key_dropout} if train else {}

        def apply(x: Images, labels: Times) -> Any:
            return network.apply({"params": params}, x, labels, train=train, rngs=rngs)

        noise = noise_fn(apply, sde, **how)
        return scale * denoising_loss(noise, sde, y, key_loss, times=times, weighting=weighting)

    return losses
