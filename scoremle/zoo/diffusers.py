"""Models of diffusers: a pipeline's folder, or that of a UNet2DModel, natively in JAX.

    model_index.json, unet/config.json, unet/diffusion_pytorch_model.safetensors (or .bin),
    scheduler/scheduler_config.json; or all of these flat in one folder

The scheduler's config gives the noise and the meaning of the output:

    betas (DDPM and its kin)     log-SNRs of steps; the network takes the number of the step
    sigmas (ScoreSdeVeScheduler) the VE SDE of score_sde; the network takes sigma, gives the score

Likelihoods start at the first step, the last log-SNR that the network was trained at; of sigmas at
``sampling_eps``. Pixels k are encoded as 2k/255 - 1; of sigmas as k/255.

Latent models (Stable Diffusion and its kin) are refused: theirs is a density of latents, and no
number of it can be compared with another model's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.tree_util import Partial

from scoremle.core.betas import betas, with_no_signal_at_the_end
from scoremle.core.pixels import Pixels
from scoremle.core.prediction import RangedNoise, noise_fn
from scoremle.core.schedules import Discrete
from scoremle.core.sde import SDE, VE
from scoremle.devices import placed
from scoremle.errors import UserError
from scoremle.files import inside, read_json
from scoremle.likelihood.steps import BySteps
from scoremle.model import ScoreModel
from scoremle.nn.applied import Applied
from scoremle.published import pytorch, safetensors
from scoremle.records import check_record
from scoremle.zoo.families import PIPELINE_INDEX, PIXELS, published_model
from scoremle.zoo.unet2d import UNet2D, unet2d_params

__all__ = ["assembled", "refuse_latents"]

PREDICTION_TYPES = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}
# The variances for which the bound of a chain is known. With "learned" there is none here; where
# none is given, it is the default of DDPM's scheduler.
VARIANCES = {
    None: "small",
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "fixed_large_log": "large",
    "learned_range": "learned",
}
# Fields by which the noise or the time input is another, with the value at which it is not.
NEUTRAL = {"snr_shift_scale": 1, "timestep_type": "discrete", "use_flow_sigmas": False}
# For networks of EDM or flow matching, by diffusers.
OTHER_NOISE = (
    "give the network to from_edm, from_velocity or from_module of scoremle.interop.torch"
)
# Cut of an SNR of zero: the least that float32 distinguishes from no signal.
LEAST_LOG_SNR = -20.0
SCHEDULER = "scheduler_config.json"
# All that `load` may read of a folder but the weights.
CONFIGS = (PIPELINE_INDEX, "config.json", "unet/config.json", SCHEDULER, f"scheduler/{SCHEDULER}")
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


@dataclass(frozen=True)
class Scheduler:
    """Fields of a scheduler's config that set the noise and the meaning of the output."""

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: list[float] | None = None
    prediction_type: str = "epsilon"
    predict_epsilon: bool = True  # of 2022, in place of prediction_type
    rescale_betas_zero_snr: bool = False
    variance_type: str | None = None
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = False

    @property
    def ranged(self) -> bool:
        """Whether the second half of the network's output is a learned range of variances."""
        return self.variance_type == "learned_range"

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Scheduler":
        """The scheduler of a config; a field that it lacks has its default."""
        given = _known(cls, config)
        if not given.get("predict_epsilon", True):
            given.setdefault("prediction_type", "sample")
        return cls(**given)


@dataclass(frozen=True)
class SigmaScheduler:
    """Fields of a ScoreSdeVeScheduler's config that set the noise."""

    sigma_min: float = 0.01
    sigma_max: float = 1348.0
    sampling_eps: float = 1e-5


def _known(form: type[Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a form that a config has, which has others, too."""
    return {f.name: config[f.name] for f in fields(form) if f.name in config}


class _Convention(NamedTuple):
    """The noise that a network was trained with, its output, and its two inputs.

    ``ranged``: half of its output is a learned range of variances.
    """

    sde: SDE
    eps: float
    prediction: str
    time_input: str
    ranged: bool = False
    chain: BySteps | None = None
    pixels: Pixels = PIXELS


def load(path: Path) -> ScoreModel:
    """The model in a folder. Raises UserError for what is missing, or can't be served."""
    return assembled(*_configs(path), lambda: _tensors(path), str(path))


def check_configs(path: Path) -> None:
    """Raises UserError for configs in a folder that declare what can't be served."""
    _declared(*_configs(path), str(path))


def weights_of(path: Path) -> list[str]:
    """The names that the weights in a folder may have, the better ones first."""
    return [Path(_network_folder(path), name).as_posix() for name in WEIGHTS]


def _configs(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The network's and the scheduler's config."""
    index, network = _there(path, PIPELINE_INDEX), _network_folder(path)
    refuse_latents(str(path), read_json(index) if index else {})
    if not (config := _there(path, network, "config.json")):
        raise UserError(f"{path / network} has no config.json: a diffusers folder needs it")
    scheduler = read_json(_scheduler(path))
    form = SigmaScheduler if _of_sigmas(scheduler) else Scheduler
    check_record(scheduler, form, _scheduler(path))
    return read_json(config), scheduler


def files(path: Path) -> dict[str, Path]:
    """Files of a folder that ``load`` reads, by their names in a pipeline's folder."""
    network, (weights, file) = _network_folder(path), _weights(path)
    found = {
        "unet/config.json": inside(path, network, "config.json"),
        f"unet/{weights}": file,
        f"scheduler/{SCHEDULER}": _scheduler(path),
    }
    index = _there(path, PIPELINE_INDEX)
    return found | ({PIPELINE_INDEX: index} if index else {})


def assembled(
    config: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    weights: Callable[[], Mapping[str, np.ndarray]],
    place: str,
) -> ScoreModel:
    """The model of a network's and a scheduler's config and the network's state dict.

    ``weights`` gives that once the configs are known to be good. Raises UserError for what can't
    be served, with ``place``, where it is from.

    Args:
        config: of the network.
        scheduler: its config.
        weights: gives the tensors by name.
        place: where it is from.
    """
    network, convention = _declared(config, scheduler, place)
    channels = network.in_channels
    size: Any = network.sample_size  # which is there, by now
    height, width = size if isinstance(size, tuple) else (size, size)
    params = placed(unet2d_params(weights(), network))
    noise = noise_fn(
        Partial(Applied(network, None if convention.ranged else channels), params), convention.sde,
        prediction=convention.prediction, time_input=convention.time_input,
    )  # fmt: skip
    return published_model(
        RangedNoise(noise) if convention.ranged else noise, convention.sde, convention.eps,
        (height, width, channels), chain=convention.chain, pixels=convention.pixels,
        classes=0 if network.class_embed_type else network.num_class_embeds or 0,
    )  # fmt: skip


def _declared(
    config: Mapping[str, Any], scheduler: Mapping[str, Any], place: str
) -> tuple[UNet2D, _Convention]:
    """The network and its convention. UserError for what can't be served."""
    network = UNet2D.from_config(config)
    sigmas = _of_sigmas(scheduler)
    convention = _by_sigmas(scheduler) if sigmas else _by_betas(scheduler, place)
    channels, out = network.in_channels, network.out_channels
    if out not in (channels, 2 * channels):
        raise UserError(f"{place}: {out} channels out of {channels} are not noise")
    if convention.ranged and out == channels:
        raise UserError(f"{place}: variance_type is learned_range, and the network predicts none")
    if (network.time_embedding_type == "fourier") != sigmas:
        raise UserError(
            f"{place}: time_embedding_type is {network.time_embedding_type!r}, and its scheduler"
            f" gives {'sigmas' if sigmas else 'the numbers of steps'}: {OTHER_NOISE}"
        )
    if network.sample_size is None:
        raise UserError(f"{place}: the network's config has no sample_size")
    return network, convention


def _of_sigmas(scheduler: Mapping[str, Any]) -> bool:
    """Whether the scheduler is that of score_sde's VE SDE."""
    return scheduler.get("_class_name") == "ScoreSdeVeScheduler"


def _by_sigmas(scheduler: Mapping[str, Any]) -> _Convention:
    """The score of images in [0, 1] by the VE SDE, as score_sde trains it."""
    given = SigmaScheduler(**_known(SigmaScheduler, scheduler))
    sde = VE(given.sigma_min, given.sigma_max)
    pixels = Pixels.of_points(256, 0, 1)
    return _Convention(sde, given.sampling_eps, "score", "sigma", pixels=pixels)


def _by_betas(scheduler: Mapping[str, Any], place: str) -> _Convention:
    """The convention of a chain of steps. UserError for a scheduler that has none."""
    _check_noise(scheduler, place)
    given = Scheduler.of(scheduler)
    if given.prediction_type not in PREDICTION_TYPES:
        raise UserError(
            f"{place}: prediction_type {given.prediction_type!r} is not one of"
            f" {[*PREDICTION_TYPES]}"
        )
    schedule = schedule_of(given)
    return _Convention(
        SDE("vp", schedule, 1.0), schedule.eps, PREDICTION_TYPES[given.prediction_type], "step",
        given.ranged, _steps(given),
    )  # fmt: skip


def _check_noise(scheduler: Mapping[str, Any], place: str) -> None:
    """Raises UserError for a scheduler without betas, and for one that does more than they say."""
    if "beta_schedule" not in scheduler and scheduler.get("trained_betas") is None:
        raise UserError(
            f"{place}: its scheduler has no betas, which define the noise: {OTHER_NOISE}"
        )
    for name, value in NEUTRAL.items():
        if scheduler.get(name, value) != value:
            raise UserError(f"{place}: its scheduler has {name} {scheduler[name]!r}, not {value}")


def _steps(scheduler: Scheduler) -> BySteps | None:
    """The bound of the scheduler's chain; None of one that clips in a way of its own."""
    variance, clip = VARIANCES.get(scheduler.variance_type), scheduler.clip_sample
    other = scheduler.thresholding or (clip and scheduler.clip_sample_range != 1)
    return None if variance is None or other else BySteps(variance=variance, clip=clip)


@np.errstate(all="ignore")  # what is not a number in the end is refused, not warned of on the way
def schedule_of(scheduler: Scheduler) -> Discrete:
    """The log-SNR at each step of a scheduler. Raises UserError for another schedule."""
    try:
        found: Any = scheduler.trained_betas
        if found is None:
            found = betas(
                scheduler.beta_schedule, scheduler.num_train_timesteps,
                scheduler.beta_start, scheduler.beta_end,
            )  # fmt: skip
        # As diffusers has them: what the network was trained by.
        found = np.asarray(found, np.float32)
        if scheduler.rescale_betas_zero_snr:
            found = with_no_signal_at_the_end(found)
        return Discrete.of_betas(found, log_snr_min=LEAST_LOG_SNR)
    except ValueError as error:
        raise UserError(f"scheduler config: {error}") from None


def _there(path: Path, *names: str) -> Path | None:
    """A file in the folder; None if there is none."""
    return inside(path, *names) if path.joinpath(*names).is_file() else None


def refuse_latents(place: str, parts: Mapping[str, Any]) -> None:
    """Raises UserError for the parts of a latent model, as ``model_index.json`` lists them.

    A part that is optional and left out is [None, None] there.

    Args:
        place: where it is from.
        parts: of the pipeline.
    """
    present = {name for name, part in parts.items() if part not in ([None, None], (None, None))}
    if latent := {"vae", "vqvae", "text_encoder", "transformer"} & present:
        raise UserError(
            f"{place} is a {parts.get('_class_name', 'pipeline')} with a {sorted(latent)[0]}:"
            " it is a model of latents, and has no likelihood of images"
        )


def _network_folder(path: Path) -> str:
    return "unet" if (path / "unet/config.json").is_file() else ""


def _scheduler(path: Path) -> Path:
    for folder, *names in ((path, "scheduler"), (path,), (path.parent, "scheduler")):
        if file := _there(folder, *names, SCHEDULER):
            return file
    raise UserError(
        f"{path} has no {SCHEDULER}, in it or in scheduler/: it says what noise"
        " the network was trained with"
    )


def _weights(path: Path) -> tuple[str, Path]:
    """Name of the weights, and their path."""
    network = _network_folder(path)
    for name in WEIGHTS:
        if file := _there(path, network, name):
            return name, file
    raise UserError(f"no {' or '.join(WEIGHTS)} in {path / network}")


def _tensors(path: Path) -> Mapping[str, np.ndarray]:
    name, file = _weights(path)
    return safetensors.read(file) if name.endswith(".safetensors") else pytorch.tensors(file)
