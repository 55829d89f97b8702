"""Models of EDM: tensors in a ``.safetensors``, beside it the network's fields in a ``.json``.

Karras et al., arXiv 2206.00364. Their ``.pkl`` brings Python with it, which runs when the file is
opened; so it is refused, and docs/howto/any-model.md has the lines that write both files from it.
With y = x / alpha, s = sigma / alpha and the network F, a denoiser there is

    EDMPrecond   c_skip y + c_out F(c_in y; log(s) / 4)       s from 0.002 to 80, as it is sampled
    VPPrecond    y - s F(x; 999 t), so that F is eps          the VP SDE
    VEPrecond    y + s F(y; log(s / 2)), so that F is -eps    s from 0.02 to 100
    iDDPMPrecond y - s F(x; step), so that F is eps           the cosine chain of 1000 steps

The last is how improved diffusion trains; its network predicts the variance of its steps, too.
Classes are a condition: a number, where the authors have a row with a single 1.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import jax.numpy as jnp
import numpy as np

from scoremle.core.betas import betas
from scoremle.core.prediction import RangedNoise, TimeInput, noise_fn
from scoremle.core.schedules import Discrete, KarrasSigma
from scoremle.core.sde import SDE, VE, VP
from scoremle.devices import check_room
from scoremle.errors import UserError
from scoremle.files import inside, named, read_json
from scoremle.likelihood.steps import BySteps
from scoremle.model import ScoreModel
from scoremle.published import safetensors
from scoremle.records import Count, Number, Size, check_record
from scoremle.types import Times
from scoremle.zoo.edm_networks import check_field, dhariwal, song
from scoremle.zoo.families import named_errors, published_model

# Where sampling begins and ends.
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
SIGMA_DATA = 0.5
# The smallest time. Of VE, sigma there is sigma_min but for a few parts in ten thousand.
EPS = 1e-5
STEPS = 1000
# Of the cosine chain: what a step leaves of the signal's variance at least, and the offset.
LEAST_KEPT, OFFSET = 0.001, 0.008
# Of training, and of what else has no effect here.
WITHOUT_EFFECT = {"dropout", "label_dropout", "use_fp16", "augment_dim"}


@dataclass(frozen=True)
class Preconditioning:
    """SDE of a network, and the scaling of its input and output.

    ``ranged``: half of its output is a learned range of variances.
    """

    sde: SDE
    eps: float
    prediction: str
    time_input: str | TimeInput
    sigma_data: float = SIGMA_DATA
    sign: float = 1.0
    ranged: bool = False


def log_half_sigma(sde: SDE, t: Times) -> Times:
    """Noise input of the network in VEPrecond."""
    return jnp.log(sde.sigma(t) / 2)


def _edm(fields: dict[str, Any]) -> Preconditioning:
    for limit in ("sigma_min", "sigma_max"):  # of sigmas that may be given: there are more
        fields.pop(limit, None)
    sde = SDE("ve", KarrasSigma(SIGMA_MIN, SIGMA_MAX), SIGMA_MAX)
    return Preconditioning(sde, EPS, "edm", "c_noise", fields.pop("sigma_data", SIGMA_DATA))


def _vp(fields: dict[str, Any]) -> Preconditioning:
    low, width = fields.pop("beta_min", 0.1), fields.pop("beta_d", 19.9)
    _only(fields, M=STEPS)
    if not 0 < (eps := fields.pop("epsilon_t", EPS)) < 1:
        raise UserError(f"epsilon_t is {eps}: it must be above 0 and below 1")
    return Preconditioning(VP(low, low + width), eps, "eps", "time_999")


def _ve(fields: dict[str, Any]) -> Preconditioning:
    sde = VE(fields.pop("sigma_min", 0.02), fields.pop("sigma_max", 100.0))
    return Preconditioning(sde, EPS, "eps", log_half_sigma, sign=-1.0)


def _iddpm(fields: dict[str, Any]) -> Preconditioning:
    _only(fields, C_1=LEAST_KEPT, C_2=OFFSET)
    schedule = Discrete.of_betas(betas("cosine", fields.pop("M", STEPS)))
    return Preconditioning(SDE("vp", schedule, 1.0), schedule.eps, "eps", "step", ranged=True)


def _only(fields: dict[str, Any], **known: float) -> None:
    """Takes out fields that have one value that is known here. UserError for another."""
    for name, value in known.items():
        if (given := fields.pop(name, value)) != value:
            raise UserError(f"{name} is {given}: known here is {value}")


PRECONDITIONINGS = {
    "EDMPrecond": _edm, "VPPrecond": _vp, "VEPrecond": _ve, "iDDPMPrecond": _iddpm,
}  # fmt: skip
NETWORKS = {"SongUNet": song, "DhariwalUNet": dhariwal}
# Layers whose output is the network's.
OUTPUT = re.compile(r".*(aux_conv|out_conv)\.(weight|bias)")
# Buffers of filters and of a table of sigmas, and what augmentation adds in training.
NOT_NEEDED = re.compile(r".*\.resample_filter|u|map_augment\.weight")
PREFIX = "model."
# Fields that the file may have, of any class and network.
_Fields = TypedDict("_Fields", {
    "class": str, "model_type": str, "img_resolution": Size, "img_channels": Size,
    "label_dim": Count, "channel_mult_emb": Count, "model_channels": Size,
    "channel_mult": list[Size], "num_blocks": Size, "attn_resolutions": list[Size],
    "embedding_type": str, "channel_mult_noise": Count, "encoder_type": str,
    "decoder_type": str, "resample_filter": list[Count], "sigma_data": float, "beta_min": float,
    "beta_d": float, "epsilon_t": float, "sigma_min": float, "sigma_max": Number, "M": Count,
    "C_1": float, "C_2": float,
}, total=False)  # fmt: skip


def files(path: Path) -> dict[str, Path]:
    """Files that ``load`` reads, as ``model.safetensors`` and its fields."""
    return {"model.safetensors": path, "model.json": path.with_suffix(".json")}


def load(path: Path) -> ScoreModel:
    """The model of a file of tensors and the fields beside it.

    Raises UserError for a pickle, for fields that are missing or not known, and for tensors that
    do not fit them.
    """
    if path.suffix == ".pkl":
        raise UserError(
            f"{path}: a pickle of EDM runs code when it is opened, so it is not opened; write its"
            " tensors and fields to two files as docs/howto/any-model.md shows"
        )
    place = path.with_suffix(".json")
    if not place.is_file():
        raise UserError(
            f"{path}: tensors alone do not say their network. Write its fields to {place} as"
            " docs/howto/any-model.md shows for EDM"
        )
    fields = read_json(inside(place.parent, place.name))
    check_record(fields, _Fields, place)
    tensors = safetensors.read(named(path))
    with named_errors(path, f"its tensors do not fit {place.name}"):
        return _model(fields, tensors)


def _model(given: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> ScoreModel:
    fields = {name: value for name, value in given.items() if name not in WITHOUT_EFFECT}
    check_field(fields, "class", PRECONDITIONINGS)
    check_field(fields, "model_type", NETWORKS)
    how = PRECONDITIONINGS[fields.pop("class")](fields)
    make = NETWORKS[fields.pop("model_type")]
    check_room(tensors)
    arrays = {name.removeprefix(PREFIX): array for name, array in tensors.items()}
    state = {
        name: np.float32(how.sign if OUTPUT.fullmatch(name) else 1) * array
        for name, array in arrays.items() if not NOT_NEEDED.fullmatch(name)
    }  # fmt: skip
    noise = noise_fn(
        make(fields, state, how.ranged), how.sde,
        prediction=how.prediction, time_input=how.time_input, sigma_data=how.sigma_data,
    )  # fmt: skip
    size, channels = fields["img_resolution"], fields["img_channels"]
    return published_model(
        RangedNoise(noise) if how.ranged else noise, how.sde, how.eps, (size, size, channels),
        chain=BySteps(variance="learned") if how.ranged else None,
        classes=fields.get("label_dim", 0),
    )  # fmt: skip
