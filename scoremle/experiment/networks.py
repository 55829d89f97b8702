"""A score model without its parameters, by the names of a config.

Fields of a network are passed as keywords, so that an unknown one is an error at the start.
"""

import dataclasses
import math
from collections.abc import Callable
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

from scoremle.core.condition import conditioned
from scoremle.core.kernels import KERNELS
from scoremle.core.learned_schedules import POLYNOMIAL, first_schedule, learned_schedule
from scoremle.core.pixels import Pixels
from scoremle.core.prediction import noise_fn
from scoremle.core.pytree import describe
from scoremle.core.schedules import LinearLogSNR, Schedule
from scoremle.core.sde import SDE, VE, VP, LinearVE, SubVP, check_eps, with_schedule
from scoremle.data import ImageSet
from scoremle.errors import UserError, choose
from scoremle.experiment.config import as_fields
from scoremle.model import ScoreModel
from scoremle.nn import DDPMpp
from scoremle.nn.applied import HIGHEST, Applied, matmul_precision
from scoremle.types import IntImages, NoiseFn, PRNGKey, Scalar

if TYPE_CHECKING:
    from scoremle.core.codes import Coder

Params = Any
# Points at which a learned schedule is recorded.
POINTS = 65

SDES: dict[str, Callable[[Any], SDE]] = {
    "vpsde": lambda model: VP(model.beta_min, model.beta_max),
    "subvpsde": lambda model: SubVP(model.beta_min, model.beta_max),
    "vesde": lambda model: VE(model.sigma_min, model.sigma_max),
    "linearvesde": lambda model: LinearVE(model.sigma_max),
    # The priors of VDM and of i-DODE: N(0, I), and N(0, sigma_1^2 I).
    "vdm": lambda model: _of_log_snr("vp", model, 1.0),
    "idode": lambda model: _of_log_snr("vp", model),
    "idode_straight": lambda model: _of_log_snr("straight", model),
}
# The name that a model of a published family has in place of a network's (model.name).
IMPORTED = "published"
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Fields of the network itself, by their names in config.model.
NETWORK_FIELDS = {each.name for each in dataclasses.fields(DDPMpp)} - {
    "parent", "name", "dtype", "centered", "log_labels",
}  # fmt: skip

# Of a config and whether labels are sigma.
NETWORKS: dict[str, Callable[[Any, bool], nn.Module]] = {
    "ncsnpp": lambda config, log_labels: DDPMpp(
        **{name: lowered(config.model[name]) for name in NETWORK_FIELDS},
        centered=config.data.centered,
        log_labels=log_labels,
    ),
    "vdm": lambda config, _: _vdm_net(config.model),
}


def precision_of(dtype: DTypeLike) -> str:
    """The type of a computation, and that of its products if JAX's config has one."""
    products = matmul_precision()
    return str(jnp.dtype(dtype)) + f", matrix products {products}" * (products != HIGHEST)


def _trained(network: nn.Module, params: Params, dropout: PRNGKey, *inputs: Any) -> Any:
    return network.apply({"params": params}, *inputs, train=True, rngs={"dropout": dropout})


@dataclass(frozen=True)
class NetworkSpec:
    """A score model but for its parameters, of a network that configs name.

    ``eps`` is the smallest time; ``prediction`` and ``time_input`` are those of ``noise_fn``.
    ``learned``: the kind of a schedule that is learned beside the network, from that of ``sde``
    on; "": none is. With an ``encoder`` that is one by codes of the images, of which ``on`` bits
    are 1.
    """

    sde: SDE
    eps: float
    shape: tuple[int, int, int]
    pixels: Pixels
    network: nn.Module
    prediction: str
    time_input: str
    learned: str = ""
    encoder: nn.Module | None = None
    on: int = 0

    @property
    def dims(self) -> int:
        return math.prod(self.shape)

    def at(self, params: Params) -> "NetworkSpec":
        """The spec with the schedule that is among these parameters, if it is learned."""
        if not self.learned:
            return self
        schedule = self._polynomial(params) if self.encoder else learned_schedule(params["gamma"])
        return dataclasses.replace(self, sde=dataclasses.replace(self.sde, schedule=schedule))

    def _polynomial(self, params: Params) -> Schedule:
        from scoremle.core.polynomial_schedule import CodedPolynomial  # seldom needed

        begun: Any = self.sde.schedule
        return CodedPolynomial(params["gamma"], begun.log_snr_min, begun.log_snr_max, self.shape)

    def coder(self, params: Params) -> "Coder | None":
        """The coder of images; None if no noise depends on them."""
        if self.encoder is None:
            return None
        from scoremle.core.codes import Coder  # seldom needed

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
        return precision_of(self.network.dtype)

    @property
    def in_float32(self) -> "NetworkSpec":
        """This model, computing in float32."""
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
        from scoremle.core.polynomial_schedule import first_polynomial  # seldom needed

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
        return ScoreModel(self.noise(params), sde, self.eps, self.shape, self.pixels, coder=coder)

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


def spec_of(config: Any, images: ImageSet) -> NetworkSpec:
    """The network that a config names, for such images. Raises UserError for what can't be had."""
    if config.model.name == IMPORTED:
        raise UserError(
            f"model.name={IMPORTED} is that of a working directory which scoremle import made of"
            " files of others: it can be evaluated, scored and sampled"
        )
    if config.eval.label:
        raise UserError(f"eval.label={config.eval.label} is for models of classes: unset it")
    prediction, time_input = _reading(config)
    network = choose(NETWORKS, config.model.name, "network (model.name)")(
        config, time_input == "sigma"
    )
    sde = choose(SDES, config.training.sde, "SDE (training.sde)")(config.model)
    coded = config.model.schedule == POLYNOMIAL
    for section in ("training", "sampling"):
        check_eps(sde, config[section].smallest_time, f"{section}.smallest_time")
    return NetworkSpec(
        network=network.clone(dtype=choose(DTYPES, config.model.dtype, "model.dtype")),
        prediction=prediction,
        time_input=time_input,
        sde=sde,
        eps=config.training.smallest_time,
        learned=config.model.schedule.replace("fixed", ""),
        encoder=_encoder(config.model) if coded else None,
        on=config.model.latent_k if coded else 0,
        shape=images.shape,
        pixels=Pixels(images.levels, low=-1.0 if config.data.centered else 0.0),
    )


def _vdm_net(model: Any) -> nn.Module:
    from scoremle.nn.vdm import VDMNet  # seldom needed

    return VDMNet(
        num_res_blocks=model.num_res_blocks, attn_resolutions=model.attn_resolutions,
        **_of_blocks(model),
    )  # fmt: skip


def _encoder(model: Any) -> nn.Module:
    from scoremle.nn.vdm import MuLANEncoder  # seldom needed

    return MuLANEncoder(
        num_res_blocks=model.encoder_blocks, logits=model.latent_size, **_of_blocks(model)
    )


def _of_blocks(model: Any) -> dict[str, Any]:
    """Fields that VDM's network and MuLAN's encoder have alike."""
    return {
        "nf": model.nf, "dropout": model.dropout, "fourier_features": model.fourier_features,
        "gamma_min": -model.log_snr_max, "gamma_max": -model.log_snr_min, "remat": model.remat,
    }  # fmt: skip


def _of_log_snr(kernel: str, model: Any, prior_std: float | None = None) -> SDE:
    """An SDE whose log-SNR is linear in t, with the prior's scale, or that of the noise at t = 1.

    Raises UserError unless model.log_snr_min is below model.log_snr_max.
    """
    with as_fields("model"):
        schedule = LinearLogSNR(model.log_snr_min, model.log_snr_max)
    # In one precision, whatever JAX's is: the number is part of the identity of a model.
    last = float(KERNELS[kernel].sigma(jnp.float32(model.log_snr_min)))
    return SDE(kernel, schedule, last if prior_std is None else prior_std)


def _reading(config: Any) -> tuple[str, str]:
    """Prediction of the network, and its time input.

    Published networks predict the noise and take 999 t; for the geometric VE, they predict the
    score and take sigma. Networks that take the log-SNR predict the noise.
    """
    predicted, time_input = "eps", "time_999"
    if config.model.schedule == POLYNOMIAL:
        time_input = "mean_log_snr"
    elif config.model.embedding == "log_snr" or config.model.name.lower() == "vdm":
        time_input = "log_snr"
    elif config.training.sde.lower() == "vesde":
        predicted, time_input = "score", "sigma"
    if config.model.parameterization != "published":
        predicted = config.model.parameterization
    return predicted, time_input


def lowered(value: Any) -> Any:
    """A name in small letters; any other value as it is."""
    return value.lower() if isinstance(value, str) else value
