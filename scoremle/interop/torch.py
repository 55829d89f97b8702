"""A PyTorch module as a ScoreModel; and denoisers, velocities and pipelines, by what they mean.

    model = from_module(net, schedule="linear", shape=(32, 32, 3), pixels=Pixels(256))

How a module comes to JAX, and how that is checked, is in ``network.py``.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoremle.core.arguments import as_array, as_shape, check_choice, shown
from scoremle.core.betas import betas
from scoremle.core.pixels import Pixels
from scoremle.core.prediction import TIME_INPUTS, Between, TimeInput, noise_fn, time_input_of
from scoremle.core.schedules import (
    Discrete,
    GeometricSigma,
    KarrasSigma,
    LinearBeta,
    LinearLogSNR,
    LinearSigma,
    Schedule,
)
from scoremle.core.sde import SDE
from scoremle.errors import UserError, needing
from scoremle.model import ScoreModel
from scoremle.numerics import check_finite, expand
from scoremle.types import Data, Labels

if TYPE_CHECKING:
    from torch import nn

    from scoremle.interop.network import By

__all__ = ["from_module", "from_velocity"]

# The smallest time of schedules that are not a table of steps.
EPS = 1e-5
# Where the open ends of a straight path are cut: a signal of e^-9, and a noise of e^-6.65. Nearer
# to the data the solver states too large an error of a network that is not quite right there.
OPEN_ENDS = (-18.0, 13.3)


def from_module(
    module: "nn.Module",
    *,
    schedule: str | Schedule | SDE,
    shape: tuple[int, ...],
    prediction: str = "eps",
    time_input: str | TimeInput | None = None,
    between: Between | None = None,
    pixels: Pixels | None = None,
    eps: float | None = None,
    condition: ArrayLike | Sequence[float] | None = None,
    by: "By | None" = None,
) -> ScoreModel:
    """The model of a PyTorch module, ``module(x, label)`` or ``module(x, label, condition)``.

    The module gets images [b c h w] or vectors [b d], in float32, and a label for each. It is
    copied, and the copy is in evaluation mode: what happens to the module later changes nothing.

    Args:
        module: gives an output of the shape of x.
        schedule: the noise at each time: the name of DDPM's betas of 1000 steps ("linear",
            "cosine", "scaled_linear", "sigmoid"), an SDE, or a schedule. One of sigmas is VE,
            others are VP.
        shape: of one example, (h, w, c) or (d,).
        prediction: what its output means: "eps", "score", "x_0", "v", "u", "unit_u", "-u" or
            "edm".
        time_input: its label for t: "step", "time", "time_999", "alpha", "sigma", "log_snr",
            "mean_log_snr", "c_noise", or a function of (sde, t); None: the step, where the
            schedule has steps.
        between: "interpolate" for a module that takes whole steps alone, as one with a table of
            times (``nn.Embedding``) does, or with labels that it makes integers: it gets integers,
            and its outputs at the two steps on either side are mixed. None: it gets any number.
        pixels: what its images are, such as Pixels(256); None where the data are reals.
        eps: the smallest time; None: the first step, or 1e-5.
        condition: an example of a third argument, as ``ScoreModel.condition_on`` takes it, for the
            check; None if the module takes none.
        by: "torchax" or "torch", the way to JAX; None: torchax if it can.

    A module that turns out to take whole steps alone is named in a warning.

    Raises UserError for a module that can't be used, whatever is wrong with it; for a schedule,
    prediction, time_input, ``between`` or shape that there is not; and where PyTorch is not
    installed.
    """
    network_of = _with_torch(module)
    if by is not None:
        check_choice("by", by, ("torchax", "torch"))
    sde = _sde(schedule)
    if time_input is None and not isinstance(sde.schedule, Discrete):
        raise UserError(
            "say what the label of the module is: time_input is a function of (sde, t), or one"
            f" of {', '.join(TIME_INPUTS)}"
        )
    label_is = "step" if time_input is None else time_input
    as_noise = partial(
        noise_fn, sde=sde, prediction=prediction, time_input=label_is, between=between
    )
    as_noise(module)
    x, label = _examples(sde, label_is, as_shape(shape))
    given = () if condition is None else (_rows(condition, len(x)),)
    label = label if between is None else label.astype(np.int32)
    labels = "whole" if between else "steps" if label_is == "step" else "numbers"
    noise = as_noise(network_of(module, x, label, *given, by=by, labels=labels))
    first = sde.schedule.eps if isinstance(sde.schedule, Discrete) else EPS
    return ScoreModel(noise, sde, first if eps is None else eps, shape, pixels)


def from_edm(
    denoiser: "nn.Module",
    *,
    shape: tuple[int, ...],
    pixels: Pixels | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    condition: ArrayLike | Sequence[float] | None = None,
    by: "By | None" = None,
) -> ScoreModel:
    """The model of a denoiser D(x, sigma) of EDM: the mean of x_0, where x = x_0 + sigma z.

    The noise is (x - D) / sigma: near sigma_min it has an error of about 1e-7 / sigma_min.

    Args:
        denoiser: gets x and a sigma for each example.
        shape: of one example, (h, w, c) or (d,).
        pixels: what its images are; None where the data are reals.
        sigma_min: the least noise that it was trained with, where likelihoods start.
        sigma_max: the most, the standard deviation of the prior.
        condition: an example of a third argument; None if there is none.
        by: the way to JAX, as of ``from_module``.

    Raises UserError as ``from_module`` does. Source: Karras et al., arXiv 2206.00364.
    """
    return from_module(
        denoiser, schedule=KarrasSigma(sigma_min, sigma_max), shape=shape,
        prediction="x_0", time_input="sigma", pixels=pixels, condition=condition, by=by,
    )  # fmt: skip


def from_velocity(
    velocity: "nn.Module",
    *,
    data_at: int,
    shape: tuple[int, ...],
    pixels: Pixels | None = None,
    log_snr: tuple[float, float] = OPEN_ENDS,
    condition: ArrayLike | Sequence[float] | None = None,
    by: "By | None" = None,
) -> ScoreModel:
    """The model of the velocity u(x, t) of a straight path: flow matching, rectified flow.

    The path has all noise at one end and none at the other, where no log-SNR is finite: it is cut
    at both. The density is that of the data with the noise at the upper cut.

    Args:
        velocity: gets x and a t from 0 to 1 for each example, and gives dx/dt.
        data_at: the t of the data: 1 where x = (1 - t) z + t x_0, 0 where x = (1 - t) x_0 + t z.
        shape: of one example, (h, w, c) or (d,).
        pixels: what its images are; None where the data are reals.
        log_snr: the least and the greatest log-SNR, log((1 - t)^2 / t^2) where data are at 0.
        condition: an example of a third argument; None if there is none.
        by: the way to JAX, as of ``from_module``.

    Raises UserError as ``from_module`` does, and for another ``data_at``.
    Sources: Lipman et al., arXiv 2210.02747; Liu et al., arXiv 2209.03003.
    """
    if np.ndim(data_at) or data_at not in (0, 1):
        raise UserError(f"data_at is the t of the data, 0 or 1, not {shown(data_at)}")
    if np.shape(as_array(log_snr, "log_snr")) != (2,):
        raise UserError(f"log_snr must be two numbers, the least and the greatest, not {log_snr}")
    schedule = LinearLogSNR(*log_snr)
    prior_std = math.exp(-np.logaddexp(0, log_snr[0] / 2))  # of the noise where the path is cut
    return from_module(
        velocity, schedule=SDE("straight", schedule, prior_std), shape=shape,
        prediction="-u" if data_at else "u", time_input="alpha" if data_at else "sigma",
        pixels=pixels, condition=condition, by=by,
    )  # fmt: skip


def from_azula(
    denoiser: Any, *, shape: tuple[int, ...], pixels: Pixels | None = None, by: "By | None" = None
) -> ScoreModel:
    """The model of a ``Denoiser`` of azula, from t = 0 to t = 1 of its schedule.

    It gives the mean of x_0, and the noise has an error of about 1e-7 / sigma as in ``from_edm``.

    Args:
        denoiser: ``denoiser(x_t, t).mean`` and ``denoiser.schedule(t)``, which gives alpha, sigma.
        shape: of one example, (h, w, c) or (d,).
        pixels: what its images are; None where the data are reals.
        by: the way to JAX, as of ``from_module``.

    Raises UserError as ``from_module`` does, and for a module without such a schedule.
    """
    _with_torch(denoiser)
    from scoremle.interop.wrappers import DenoiserMean, times_of

    if not hasattr(denoiser, "schedule"):
        raise UserError(f"{type(denoiser).__name__} has no schedule, as azula's denoisers have")
    times = times_of(denoiser.schedule)
    ends = (float(times.log_snr[0]), float(times.log_snr[-1]))
    return from_module(
        DenoiserMean(denoiser), schedule=LinearLogSNR(*ends), shape=shape, prediction="x_0",
        time_input=times, pixels=pixels, by=by,
    )  # fmt: skip


def from_diffusers(pipeline: Any) -> ScoreModel:
    """The model of a live ``DDPMPipeline``, or any with a UNet2DModel, natively in JAX.

    Its parameters are copied, and nothing of it runs in PyTorch.

    Args:
        pipeline: of diffusers.

    Raises UserError for a pipeline that ``scoremle.load`` would refuse as a folder, and for a
    network of another class.
    """
    from scoremle.zoo import diffusers  # Flax is slow to import

    name = type(pipeline).__name__
    diffusers.refuse_latents(name, getattr(pipeline, "config", {}))
    for part in ("unet", "scheduler"):
        if not hasattr(getattr(pipeline, part, None), "config"):
            raise UserError(f"{name} has no {part} of diffusers: a pipeline of it is wanted")
    unet = getattr(pipeline.unet, "_orig_mod", pipeline.unet)  # what torch.compile was given
    state = unet.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        raise UserError(f"the unet of {name} is on the device meta, without numbers: load them")
    weights = {name: a.float().cpu().numpy() for name, a in state.items()}
    # A class of one's own may compute something else of the same parameters.
    config, scheduler = (
        dict(part.config) | {"_class_name": type(part).__name__}
        for part in (unet, pipeline.scheduler)
    )
    model = diffusers.assembled(config, scheduler, lambda: weights, name)
    check_finite(model.noise, name)
    return model


def _with_torch(module: "nn.Module") -> Any:
    """``network_of``, where PyTorch is installed and this is one of its modules."""
    with needing("a module of PyTorch", "torch"):
        from torch import nn
    from scoremle.interop.network import network_of

    if not isinstance(module, nn.Module):
        raise UserError(
            f"module must be a torch.nn.Module, not a {type(module).__name__}: for a function,"
            " write a module whose forward calls it"
        )
    return network_of


def _sde(schedule: str | Schedule | SDE) -> SDE:
    if isinstance(schedule, SDE):
        sde = schedule
    elif isinstance(schedule, str):
        try:
            sde = SDE("vp", Discrete.of_betas(betas(schedule)), 1.0)
        except UserError as error:
            raise UserError(f"schedule: {error}") from None
    elif isinstance(schedule, LinearBeta):
        sde = SDE(schedule.kernel, schedule, 1.0)
    elif isinstance(schedule, GeometricSigma | KarrasSigma | LinearSigma):
        sde = SDE("ve", schedule, schedule.sigma_max)
    elif isinstance(schedule, Schedule):
        sde = SDE("vp", schedule, 1.0)
    else:
        raise UserError(
            f"schedule must be a name, a schedule or an SDE, not a {type(schedule).__name__}"
        )
    if sde.schedule.per_dimension:
        raise UserError("a PyTorch module needs a schedule that all dimensions share")
    return sde


def _examples(
    sde: SDE, time_input: str | TimeInput, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Two examples of the module's input, and of its time input."""
    if len(shape) not in (1, 3):
        raise UserError(f"shape must be (h, w, c) of images or (d,) of vectors, not {shape}")
    z = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)

    @jax.jit  # one program, where each operation by itself would be one
    def examples() -> tuple[Data, Labels]:
        t, x = jnp.asarray([0.3, 0.7]), jnp.asarray(z)
        x = expand(jnp.hypot(sde.alpha(t) / 2, sde.sigma(t)), x) * x
        return x, time_input_of(time_input)(sde, t)

    x, label = examples()
    return np.asarray(x), np.asarray(label)


def _rows(condition: ArrayLike | Sequence[float], n: int) -> np.ndarray:
    rows = np.atleast_1d(np.asarray(as_array(condition, "condition")))
    if not len(rows):
        raise UserError("condition is empty: give an example of the module's third argument")
    return np.broadcast_to(rows[:1], (n, *rows.shape[1:]))
