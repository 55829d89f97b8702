"""Models of VDM and i-DODE: a training state in Flax's msgpack, and perhaps fields beside it.

Kingma et al., arXiv 2107.00630; Zheng et al., arXiv 2305.03935. The shapes of the averaged
parameters are those of the network, and its learned schedule, if it has one, is among them. What
they leave open has the value of all published configs, or stands in a JSON object in a file of the
same name (``ckpt.json`` beside ``ckpt.flax``):

    image_size            height and width of the images: 32
    gamma_min, gamma_max  the ends of -log-SNR, and of its embedding: -13.3 and 5
    velocity              the network predicts a velocity: false with a learned schedule, else true
    schedule              the path, "VP" or "SP" (straight): "VP"

The prior is N(0, I) of VDM, with a learned schedule, and N(0, sigma_1^2 I) of i-DODE.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from scoremle.core.kernels import KERNELS
from scoremle.core.learned_schedules import learned_schedule
from scoremle.core.pixels import Pixels
from scoremle.core.prediction import noise_fn
from scoremle.core.schedules import LinearLogSNR
from scoremle.core.sde import SDE
from scoremle.devices import check_room, placed
from scoremle.errors import UserError, first_line
from scoremle.files import inside, named, read_json
from scoremle.model import ScoreModel
from scoremle.nn.applied import Applied
from scoremle.nn.vdm import VDMNet
from scoremle.published import state_dict
from scoremle.records import Size, check_record
from scoremle.training.checkpoints import Damaged, first_difference, leaves
from scoremle.zoo.families import flags_beside
from scoremle.zoo.family import published_model

# The kernel of a path, and the velocity that networks predict there.
PATHS = {"VP": ("vp", "v"), "SP": ("straight", "unit_u")}


class _Fields(TypedDict, total=False):
    image_size: Size
    gamma_min: float
    gamma_max: float
    velocity: bool
    schedule: str


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
    try:
        ema = state_dict.read(named(path))["ema_params"]
        check_room(ema)
        return _model(ema, fields)
    except Damaged as error:
        raise UserError(f"{path} can't be read as a training state: {error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # A state may hold anything at all.
        words = first_line(error, named=True)
        raise UserError(f"{path}: its parameters are not VDM's: {words}") from None


def _model(ema: Mapping[str, Any], fields: Mapping[str, Any]) -> ScoreModel:
    if "encoder_model" in ema:
        raise UserError("a model of MuLAN, whose noise depends on the image: not known here")
    path = fields.get("schedule", "VP")
    if path not in PATHS:
        raise UserError(f"schedule is {path!r}: known here are {', '.join(PATHS)}")
    score, learned = ema["score_model"], ema.get("gamma")
    low, high = -fields.get("gamma_max", 5.0), -fields.get("gamma_min", -13.3)
    size, (kernel, velocity) = fields.get("image_size", 32), PATHS[path]
    network, channels = _network(score, size), len(score["conv_out"]["bias"])
    network = network.clone(gamma_min=-high, gamma_max=-low)
    schedule = learned_schedule(placed(learned)) if learned else LinearLogSNR(low, high)
    last = float(KERNELS[kernel].sigma(jnp.asarray(low)))
    sde = SDE(kernel, schedule, 1.0 if learned else last)
    noise = noise_fn(
        Partial(Applied(network), placed(score)), sde,
        prediction=velocity if fields.get("velocity", not learned) else "eps",
    )  # fmt: skip
    shape = size, size, channels
    return published_model(noise, sde, 0.0, shape, pixels=Pixels(), middles=True)


def _network(score: Mapping[str, Any], size: int) -> VDMNet:
    """The network of these parameters. UserError if there is none."""
    kernel, channels = score["conv_in"]["kernel"], len(score["conv_out"]["bias"])
    network = VDMNet(
        nf=kernel.shape[-1],
        num_res_blocks=sum(name.startswith("down.block_") for name in score),
        attn_resolutions=(size,) if "down.attn_0" in score else (),
        fourier_features=kernel.shape[2] > channels,
    )
    x = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    labels = jax.ShapeDtypeStruct((1,), jnp.float32)
    made = jax.eval_shape(network.init, jax.random.key(0), x, labels)["params"]
    if words := first_difference(leaves(score), leaves(made)):
        raise UserError(f"its network {words}")
    return network
