"""Networks without their parameters: of a score model, and of a flow dequantizer for it."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from scoremle.core.dequantize import Flow, truncation_start
from scoremle.core.pixels import Pixels
from scoremle.core.prediction import noise_fn
from scoremle.core.pytree import describe
from scoremle.core.sde import SDE
from scoremle.model import ScoreModel
from scoremle.nn import DDPMpp, FlowPP
from scoremle.nn.applied import Applied
from scoremle.types import IntImages, NoiseFn, PRNGKey

__all__ = ["FlowSpec", "ModelSpec", "Params"]

Params = Any


@dataclass(frozen=True)
class ModelSpec:
    """A score model but for its parameters: its network and what that predicts, SDE and images.

    ``prediction`` and ``conditioning`` are those of ``noise_fn``, ``eps`` is the smallest time.
    """

    network: DDPMpp
    prediction: str
    conditioning: str
    sde: SDE
    eps: float
    shape: tuple[int, int, int]
    pixels: Pixels

    @property
    def dims(self) -> int:
        return math.prod(self.shape)

    @property
    def precision(self) -> str:
        """What the network computes in."""
        return str(jnp.dtype(self.network.dtype))

    @property
    def truncation_start(self) -> float:
        """Where the likelihood with truncated normal noise, and the discrete decoder, begin."""
        with jax.ensure_compile_time_eval():
            return float(truncation_start(self.sde, self.eps, self.pixels))

    def init(self, key: PRNGKey, images: IntImages) -> Params:
        """Parameters to begin with, for images of this shape."""
        return self.network.init(key, jnp.zeros((1, *images.shape[1:])), jnp.ones(1))["params"]

    def noise(self, params: Params, dropout: PRNGKey | None = None) -> NoiseFn:
        """The noise prediction of these parameters: as evaluated, or under ``dropout``."""
        apply: Any = Partial(Applied(self.network), params)
        if dropout is not None:
            def apply(x: Any, labels: Any) -> Any:
                rngs = {"dropout": dropout}
                return self.network.apply({"params": params}, x, labels, train=True, rngs=rngs)
        return noise_fn(
            apply, self.sde, prediction=self.prediction, conditioning=self.conditioning
        )

    def model(self, params: Params) -> ScoreModel:
        """The model of these parameters, as evaluated."""
        return ScoreModel(self.noise(params), self.sde, self.eps, self.shape, self.pixels)

    def describe(self) -> dict[str, Any]:
        """What tells it from other models, in values that JSON knows."""
        fields = {
            field.name: getattr(self.network, field.name)
            for field in dataclasses.fields(self.network)
            if field.name not in ("parent", "name", "dtype")
        }
        network = {"type": type(self.network).__name__, **fields, "dtype": self.precision}
        return describe(vars(self) | {"network": network})


@dataclass(frozen=True)
class FlowSpec:
    """A flow dequantizer but for its parameters, of images with so many levels."""

    network: FlowPP
    levels: int

    def init(self, key: PRNGKey, images: IntImages) -> Params:
        """Parameters to begin with; they depend on these images."""
        x = images / (self.levels - 1)
        return self.network.init(key, jax.random.normal(key, x.shape), x)["params"]

    def dequantizer(self, params: Params) -> Flow:
        """The dequantizer of these parameters."""
        return Flow(Applied(self.network), params, self.levels)
