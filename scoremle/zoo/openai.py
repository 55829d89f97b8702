"""Models of improved-diffusion and guided-diffusion: a ``.pt`` of tensors, beside it its flags.

The flags that the authors' scripts take (``--num_channels 128 ...``) are in no checkpoint. They
are a JSON object in a file of the same name: ``model.json`` beside ``model.pt``. Those of the
diffusion are diffusion_steps, noise_schedule (linear or cosine), predict_xstart, learn_sigma,
sigma_small and rescale_timesteps. The network takes the number of the step, rescaled to 0..1000
with rescale_timesteps, whose default depends on the library: it must be given unless there are
1000 steps. With learn_sigma it predicts the variance of its steps, too.

Nothing in a ``.pt`` is run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from jax.tree_util import Partial

from scoremle.core.betas import betas
from scoremle.core.prediction import RangedNoise, TimeInput, noise_fn
from scoremle.core.schedules import Discrete
from scoremle.core.sde import SDE
from scoremle.devices import placed
from scoremle.errors import UserError
from scoremle.files import inside, named, read_json
from scoremle.likelihood.steps import BySteps
from scoremle.model import ScoreModel
from scoremle.nn.applied import Applied
from scoremle.published import pytorch
from scoremle.records import check_record
from scoremle.types import Times
from scoremle.zoo.adm import ADM, CHANNELS, adm_params
from scoremle.zoo.families import FOR_ANY_OTHER, flags_beside, named_errors, published_model

RESCALED_TO = 1000.0


class _Diffusion(TypedDict, total=False):
    diffusion_steps: int
    noise_schedule: str
    predict_xstart: bool
    rescale_timesteps: bool
    sigma_small: bool


def rescaled_step(sde: SDE, t: Times) -> Times:
    """Time input of a network trained with rescale_timesteps: the step's number times 1000/T."""
    schedule = cast(Discrete, sde.schedule)
    return schedule.label(t) * (RESCALED_TO / schedule.steps)


def files(path: Path) -> dict[str, Path]:
    """Files that ``load`` reads, as ``model.pt`` and its flags."""
    return {"model.pt": path, "model.json": flags_beside(path)}


def load(path: Path) -> ScoreModel:
    """The model of a checkpoint, by the flags in the file beside it.

    Raises UserError if there are none, or if they do not fit the tensors.
    """
    place = flags_beside(path)
    if not place.is_file():
        raise UserError(
            f"{path}: a .pt does not say its architecture. For a network of improved- or"
            f" guided-diffusion, write the flags that it was trained with to {place}, such as"
            f' {{"image_size": 64, "num_channels": 128, ...}}; {FOR_ANY_OTHER}'
        )
    flags = read_json(inside(place.parent, place.name))
    with named_errors(place, "these flags make no model"):
        check_record(flags, _Diffusion, "the flags")
        network, schedule = ADM.from_flags(flags), _schedule(flags)
        time_input = _time_input(flags, schedule.steps)
    sde = SDE("vp", schedule, 1.0)
    params = placed(adm_params(pytorch.tensors(named(path)), network))
    prediction = noise_fn(
        Partial(Applied(network), params), sde,
        prediction="x_0" if flags.get("predict_xstart") else "eps",
        time_input=time_input,
    )  # fmt: skip
    noise = RangedNoise(prediction) if network.learn_sigma else prediction
    shape = (network.image_size, network.image_size, CHANNELS)
    return published_model(
        noise, sde, schedule.eps, shape,
        chain=BySteps(variance=_variance(flags)),
        classes=network.num_classes if network.class_cond else 0,
    )  # fmt: skip


def _time_input(flags: Mapping[str, Any], steps: int) -> str | TimeInput:
    """Time input of the network. Raises UserError where the libraries' defaults differ."""
    if steps != RESCALED_TO and "rescale_timesteps" not in flags:
        raise UserError(
            f"the flags need rescale_timesteps where there are {steps} steps: True is"
            " improved-diffusion's default, False guided-diffusion's"
        )
    return rescaled_step if flags.get("rescale_timesteps") else "step"


def _variance(flags: Mapping[str, Any]) -> str:
    """Kind of variance of the authors' chain, whose estimates are clipped."""
    if flags.get("learn_sigma"):
        return "learned"
    return "small" if flags.get("sigma_small") else "large"


def _schedule(flags: Mapping[str, Any]) -> Discrete:
    name, steps = flags.get("noise_schedule", "linear"), flags.get("diffusion_steps", 1000)
    if name not in ("linear", "cosine"):
        raise UserError(f"noise_schedule must be linear or cosine, not {name!r}")
    if steps < 2:
        raise UserError(f"diffusion_steps must be at least 2, not {steps}")
    return Discrete.of_betas(betas(name, steps))
