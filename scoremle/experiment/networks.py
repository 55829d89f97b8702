"""Networks without their parameters: of a score model, and of a flow dequantizer for it."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.tree_util import Partial
from jax.typing import DTypeLike
from jaxtyping import UInt8

from scoremle.core.dequantize import Flow, truncation_start
from scoremle.core.learned_schedules import first_schedule, learned_schedule
from scoremle.core.pixels import Pixels
from scoremle.core.prediction import conditioned, noise_fn
from scoremle.core.pytree import describe
from scoremle.core.schedules import Schedule
from scoremle.core.sde import SDE, with_schedule
from scoremle.errors import UserError
from scoremle.experiment.labels import ALL, check_label, under
from scoremle.likelihood.image_model import pixels_of
from scoremle.likelihood.images import Estimator
from scoremle.likelihood.labels import ByLabels
from scoremle.model import Origin, ScoreModel
from scoremle.nn import FlowPP
from scoremle.nn.applied import HIGHEST, Applied, matmul_precision
from scoremle.types import IntImages, NoiseFn, PRNGKey, Scalar

if TYPE_CHECKING:
    from scoremle.core.codes import Coder

Params = Any
# Of the course of a learned schedule that is told.
POINTS = 65


def _precision(dtype: DTypeLike) -> str:
    products = matmul_precision()
    return str(jnp.dtype(dtype)) + f", matrix products {products}" * (products != HIGHEST)


def _trained(network: nn.Module, params: Params, dropout: PRNGKey, *inputs: Any) -> Any:
    rngs = {"dropout": dropout}
    return network.apply({"params": params}, *inputs, train=True, rngs=rngs)


@dataclass(frozen=True)
class _Spec:
    """A score model but for its parameters; ``eps`` is the smallest time."""

    sde: SDE
    eps: float
    shape: tuple[int, int, int]
    pixels: Pixels

    @property
    def dims(self) -> int:
        return math.prod(self.shape)

    @property
    def truncation_start(self) -> float:
        """The time at which truncated normal noise, and the discrete decoder, begin."""
        with jax.ensure_compile_time_eval():
            return float(truncation_start(self.sde, self.eps, self.pixels))


@dataclass(frozen=True)
class NetworkSpec(_Spec):
    """Model of a network that configs name.

    ``prediction`` and ``time_input`` are those of ``noise_fn``. ``learned``: the kind of a
    schedule that is learned beside the network, from that of ``sde`` on; "": none is. With an
    ``encoder`` that is one by codes of the images, of which ``on`` bits are on.
    """

    network: nn.Module
    prediction: str
    time_input: str
    learned: str = ""
    encoder: nn.Module | None = None
    on: int = 0

    def at(self, params: Params) -> "NetworkSpec":
        """The spec with the schedule that is among these parameters, if it is learned."""
        if not self.learned:
            return self
        schedule = self._polynomial(params) if self.encoder else learned_schedule(params["gamma"])
        return dataclasses.replace(self, sde=dataclasses.replace(self.sde, schedule=schedule))

    def _polynomial(self, params: Params) -> Schedule:
        from scoremle.core.polynomial_schedule import CodedPolynomial  # seldom asked for

        begun: Any = self.sde.schedule
        ends = begun.log_snr_min, begun.log_snr_max
        return CodedPolynomial(params["gamma"], *ends, self.shape)

    def coder(self, params: Params) -> "Coder | None":
        """The coder of images; None if no noise depends on them."""
        if self.encoder is None:
            return None
        from scoremle.core.codes import Coder  # seldom asked for

        encoder = Partial(Applied(self.encoder), params["encoder_model"])
        return Coder(encoder, cast(Any, self.encoder).logits, self.on)

    def noise_and_sde(
        self, params: Params, noise: NoiseFn, x: IntImages, key: PRNGKey | None = None
    ) -> tuple[NoiseFn, SDE]:
        """A noise prediction and the SDE under codes of the images; as they are without a coder.

        With a key codes are those of training, under dropout.
        """
        if (coder := self.coder(params)) is None:
            return noise, self.sde
        y = self.pixels.encode(x, 0.5)
        if key is None:
            codes = coder(y)
        else:
            dropout, of_codes = jax.random.split(key)
            logits = _trained(cast(Any, self.encoder), params["encoder_model"], dropout, y)
            codes = coder.relaxed(logits, of_codes)
        sde = self.sde.at(codes)
        return conditioned(with_schedule(noise, sde.schedule), codes), sde

    def log_snr(
        self, params: Params, images: UInt8[np.ndarray, "n h w c"]
    ) -> dict[str, list[float]] | None:
        """The learned log-SNR over t, and the fixed one between its first ends; None if none is.

        By codes it is the mean over these images and their numbers, with the least and the most.
        """
        if not self.learned:
            return None
        t, sde = jnp.linspace(self.eps, 1.0, POINTS), self.at(params).sde
        each = {"t": t, "fixed": self.sde.log_snr(t)}
        if coder := self.coder(params):
            sde = sde.at(coder(self.pixels.encode(jnp.asarray(images), 0.5)))

            def over_numbers(at: Scalar) -> list[Scalar]:
                found = sde.log_snr(jnp.full(len(images), at))
                return [jnp.mean(found), jnp.min(found), jnp.max(found)]

            each |= zip(("learned", "least", "most"), jax.lax.map(over_numbers, t), strict=True)
        else:
            each["learned"] = sde.log_snr(t)
        return {name: np.asarray(values, float).tolist() for name, values in each.items()}

    @property
    def precision(self) -> str:
        """The type that the network computes in, and that of products if JAX's config has one."""
        return _precision(self.network.dtype)

    @property
    def in_float32(self) -> "NetworkSpec":
        """The same, computing in float32."""
        return dataclasses.replace(self, network=self.network.clone(dtype=jnp.float32))

    def init(self, key: PRNGKey, images: IntImages) -> Params:
        """Parameters to begin with, for images of this shape."""
        # Computes only what parameters depend on, without a program, which would be compiled for
        # one call, and for a deep network take 20 seconds.
        shapes = (1, *images.shape[1:]), (1,)
        given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        if self.encoder:
            return self._with_codes(key, *given)
        params = self.network.lazy_init(key, *given)["params"]
        if not self.learned:
            return params
        low, high = self.sde.log_snr(jnp.asarray([1.0, 0.0]))
        first = first_schedule(self.learned, low, high, jax.random.fold_in(key, 1))
        return {"score_model": params, "gamma": first}

    def _with_codes(self, key: PRNGKey, x: Any, t: Any) -> Params:
        from scoremle.core.polynomial_schedule import first_polynomial  # seldom asked for

        encoder: Any = self.encoder
        keys = [jax.random.fold_in(key, number) for number in (1, 2)]
        c = jax.ShapeDtypeStruct((1, encoder.logits), jnp.float32)
        return {
            "score_model": self.network.lazy_init(key, x, t, c)["params"],
            "gamma": first_polynomial(encoder.logits, self.dims, keys[0]),
            "encoder_model": encoder.lazy_init(keys[1], x)["params"],
        }

    def noise(self, params: Params, dropout: PRNGKey | None = None) -> NoiseFn:
        """The noise prediction of these parameters: as evaluated, or under ``dropout``."""
        sde, params = self.at(params).sde, params["score_model"] if self.learned else params
        apply: Any = Partial(Applied(self.network), params)
        if dropout is not None:
            apply = Partial(partial(_trained, self.network), params, dropout)
        return noise_fn(apply, sde, prediction=self.prediction, time_input=self.time_input)

    def model(self, params: Params) -> ScoreModel:
        """The model of these parameters, as evaluated."""
        sde, coder = self.at(params).sde, self.coder(params)
        noise = self.noise(params)
        return ScoreModel(noise, sde, self.eps, self.shape, self.pixels, coder=coder)

    def measured(self, params: Params, estimator: Estimator) -> tuple[ScoreModel, Estimator]:
        """The model and the estimator by which images are measured."""
        return self.model(params), estimator

    def describe(self) -> dict[str, Any]:
        """The fields that distinguish it from other models, in values of JSON."""
        fields = {
            field.name: getattr(self.network, field.name)
            for field in dataclasses.fields(self.network)
            if field.name not in ("parent", "name", "dtype", "remat")
        }
        network = {"type": type(self.network).__name__, **fields, "dtype": self.precision}
        seldom = "learned", "encoder", "on"
        record = {name: each for name, each in vars(self).items() if name not in seldom or each}
        record |= {"encoder": cast(Any, self.encoder).num_res_blocks} if self.encoder else {}
        record["conditioning"] = record.pop("time_input")  # its name in files
        return describe(record | {"network": network})


@dataclass(frozen=True)
class ImportedSpec(_Spec):
    """Model of a published family, which is its own parameters and is not trained on.

    ``record`` names its files. ``label``: one of its origin's classes, or "all" for the mean over
    them; "" without classes.
    """

    record: Mapping[str, Any]
    origin: Origin
    label: str

    def log_snr(self, params: Params, images: UInt8[np.ndarray, "n h w c"]) -> None:
        """None: its schedule is its own."""

    def coder(self, params: Params) -> "Coder | None":
        return params.coder

    def noise_and_sde(
        self, params: Params, noise: NoiseFn, x: IntImages, key: PRNGKey | None = None
    ) -> tuple[NoiseFn, SDE]:
        return noise, self.sde

    @property
    def precision(self) -> str:
        return _precision(jnp.float32)

    @property
    def in_float32(self) -> "ImportedSpec":
        return self

    @classmethod
    def of(cls, model: ScoreModel, record: Mapping[str, Any], label: str) -> "ImportedSpec":
        """The spec of a model. Raises UserError for a label that is none of its classes."""
        check_label(model, label, "--config.eval.label")
        shape, pixels = cast(Any, model.shape), pixels_of(model)
        return cls(model.sde, model.eps, shape, pixels, record, model.origin, label)

    def at(self, params: Params) -> "ImportedSpec":
        return self

    def init(self, key: PRNGKey, images: IntImages) -> Params:
        raise UserError("a model of a published family can't be trained further")

    def noise(self, params: Params, dropout: PRNGKey | None = None) -> NoiseFn:
        return self.model(params).noise

    def model(self, params: Params) -> ScoreModel:
        return under(params, self.label)

    def measured(self, params: Params, estimator: Estimator) -> tuple[ScoreModel, Estimator]:
        if self.label == ALL:
            return params, ByLabels(estimator, self.origin.classes)
        return self.model(params), estimator

    def describe(self) -> dict[str, Any]:
        found = {name: value for name, value in vars(self).items() if name != "origin"}
        return describe(found | ({"classes": self.origin.classes} if self.label else {}))


ModelSpec = NetworkSpec | ImportedSpec


@dataclass(frozen=True)
class FlowSpec:
    """A flow dequantizer but for its parameters, of images with so many levels."""

    network: FlowPP
    levels: int

    def init(self, key: PRNGKey, images: IntImages) -> Params:
        """Parameters to begin with; they depend on these images."""

        @jax.jit
        def begin(images: IntImages) -> Params:
            x = images / (self.levels - 1)
            return self.network.init(key, jax.random.normal(key, x.shape), x)["params"]

        return begin(images)

    def dequantizer(self, params: Params) -> Flow:
        """The dequantizer of these parameters."""
        return Flow(Applied(self.network), params, self.levels)
