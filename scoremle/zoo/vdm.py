"""Models of VDM, i-DODE and MuLAN: a state in Flax's msgpack, and perhaps fields beside it.

Kingma et al., arXiv 2107.00630; Zheng et al., 2305.03935; Sahoo et al., 2312.13236. The shapes of
the averaged parameters are those of the network; its learned schedule, if it has one, and MuLAN's
encoder are among them. All other fields have the value of all published configs, or are in a
JSON object in a file of the same name (``ckpt.json`` beside ``ckpt.flax``):

    image_size            height and width of the images: 32
    gamma_min, gamma_max  the ends of -log-SNR, and of its embedding: -13.3 and 5
    velocity              the network predicts a velocity: of VDM false, of i-DODE true,
                          of MuLAN true with 128 channels (CIFAR-10), else false
    schedule              the path, "VP" or "SP" (straight): "VP"
    latent_k              the number of bits of MuLAN's code that are 1: 15

The prior is N(0, I) of VDM and MuLAN, and N(0, sigma_1^2 I) of i-DODE.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from scoremle.core.codes import Coder
from scoremle.core.kernels import KERNELS
from scoremle.core.learned_schedules import learned_schedule
from scoremle.core.pixels import Pixels
from scoremle.core.polynomial_schedule import CodedPolynomial, first_polynomial
from scoremle.core.prediction import noise_fn
from scoremle.core.schedules import LinearLogSNR, Schedule
from scoremle.core.sde import SDE
from scoremle.devices import check_room, placed
from scoremle.errors import UserError
from scoremle.files import inside, named, read_json
from scoremle.model import ScoreModel
from scoremle.nn.applied import Applied
from scoremle.nn.vdm import MuLANEncoder, VDMNet
from scoremle.published import state_dict
from scoremle.records import Size, check_record
from scoremle.training.checkpoints import Damaged, first_difference, leaves
from scoremle.zoo.families import flags_beside, named_errors, published_model

# The kernel of a path, and the velocity that networks predict there.
PATHS = {"VP": ("vp", "v"), "SP": ("straight", "unit_u")}
# Bits of MuLAN's code that are 1; channels of its network that was trained as a velocity.
MULAN_ON, MULAN_VELOCITY = 15, 128


class _Fields(TypedDict, total=False):
    image_size: Size
    gamma_min: float
    gamma_max: float
    velocity: bool
    schedule: str
    latent_k: Size


def files(path: Path) -> dict[str, Path]:
    """Files that ``load`` reads, as ``model.flax`` and its fields, if there are any."""
    beside = flags_beside(path)
    return {"model.flax": path} | ({"model.json": beside} if beside.is_file() else {})


def load(path: Path) -> ScoreModel:
    """The model of a training state.

    Raises UserError for a damaged file, one of another family, and parameters or fields that are
    not those of the network.
    """
    fields, beside = {}, flags_beside(path)
    if beside.is_file():
        fields = read_json(inside(beside.parent, beside.name))
        check_record(fields, _Fields, beside)
    with named_errors(path, "its parameters are not VDM's"):
        try:
            ema = state_dict.read(named(path))["ema_params"]
        except Damaged as error:
            raise UserError(f"it can't be read as a training state: {error}") from None
        check_room(ema)
        return _model(ema, fields)


def _model(ema: Mapping[str, Any], fields: Mapping[str, Any]) -> ScoreModel:
    path = fields.get("schedule", "VP")
    if path not in PATHS:
        raise UserError(f"schedule is {path!r}: known here are {', '.join(PATHS)}")
    score, learned = ema["score_model"], ema.get("gamma")
    low, high = -fields.get("gamma_max", 5.0), -fields.get("gamma_min", -13.3)
    size, (kernel, velocity) = fields.get("image_size", 32), PATHS[path]
    channels = len(score["conv_out"]["bias"])
    shape, coder = (size, size, channels), None
    ends = {"gamma_min": -high, "gamma_max": -low}
    schedule: Schedule
    if "encoder_model" in ema:
        coder = _coder(ema["encoder_model"], shape, fields.get("latent_k", MULAN_ON), ends)
        schedule = _polynomial(ema["gamma"], coder.bits, shape, low, high)
    else:
        schedule = learned_schedule(placed(learned)) if learned else LinearLogSNR(low, high)
    network = _fitting(
        VDMNet, score, shape, (), (coder.bits if coder else 1,),
        attn_resolutions=(size,) if "down.attn_0" in score else (), **ends,
    )  # fmt: skip
    last = float(KERNELS[kernel].sigma(jnp.asarray(low)))
    sde = SDE(kernel, schedule, 1.0 if learned else last)
    by_default = network.nf == MULAN_VELOCITY if coder else not learned
    noise = noise_fn(
        Partial(Applied(network), placed(score)), sde,
        prediction=velocity if fields.get("velocity", by_default) else "eps",
        time_input="mean_log_snr",
    )  # fmt: skip
    model = published_model(noise, sde, 0.0, shape, pixels=Pixels(), middles=True)
    return replace(model, coder=coder)


def _coder(
    params: Mapping[str, Any], shape: tuple[int, int, int], on: int, ends: Mapping[str, float]
) -> Coder:
    """MuLAN's encoder. UserError for other parameters, and for too many bits that are 1."""
    bits = len(params["dense_layer_final"]["bias"])
    if on > bits:
        raise UserError(f"latent_k is {on}, and its code has {bits} bits")
    network = _fitting(MuLANEncoder, params, shape, logits=bits, **ends)
    return Coder(Partial(Applied(network), placed(params)), bits, on)


def _polynomial(
    params: Mapping[str, Any], bits: int, shape: tuple[int, ...], low: float, high: float
) -> CodedPolynomial:
    """MuLAN's schedule. UserError for other parameters."""
    make = partial(first_polynomial, bits, math.prod(shape))
    if words := first_difference(leaves(params), leaves(jax.eval_shape(make, jax.random.key(0)))):
        raise UserError(f"its schedule {words}")
    return CodedPolynomial(placed(params), low, high, shape)


def _fitting(
    make: Callable[..., Any], params: Mapping[str, Any], *shapes: tuple[int, ...], **options: Any
) -> Any:
    """A network of these parameters, for an image and other inputs. UserError if there is none."""
    kernel = params["conv_in"]["kernel"]
    network = make(
        nf=kernel.shape[-1],
        num_res_blocks=sum(name.startswith("down.block_") for name in params),
        fourier_features=kernel.shape[2] > shapes[0][-1],
        **options,
    )
    inputs = (jax.ShapeDtypeStruct((1, *each), jnp.float32) for each in shapes)
    made = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    if words := first_difference(leaves(params), leaves(made)):
        raise UserError(f"its network {words}")
    return network
