"""How likely is this under a diffusion or flow model, and how sure are you?

``ScoreModel`` holds a noise prediction, what noise is added when, and what images are; ``load``
gives one of a working directory. Names and rooms are imported when they are first used, so that
the command line can speak before JAX loads.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

_HOME = {
    "SDE": "core.sde",
    "VE": "core.sde",
    "VP": "core.sde",
    "LinearVE": "core.sde",
    "SubVP": "core.sde",
    "Cosine": "core.schedules",
    "Discrete": "core.schedules",
    "GeometricSigma": "core.schedules",
    "KarrasSigma": "core.schedules",
    "LinearBeta": "core.schedules",
    "LinearLogSNR": "core.schedules",
    "LinearSigma": "core.schedules",
    "PerDimension": "core.schedules",
    "Schedule": "core.schedules",
    "noise_fn": "core.prediction",
    "BinnedLogSNR": "core.times",
    "UniformLogSNR": "core.times",
    "UniformTime": "core.times",
    "Pixels": "core.pixels",
    "bits_per_dim": "core.pixels",
    "TruncatedNormal": "core.dequantize",
    "Uniform": "core.dequantize",
    "Exact": "core.divergence",
    "FixedProbe": "core.divergence",
    "Hutchinson": "core.divergence",
    "Orthogonal": "core.divergence",
    "denoising_loss": "core.loss",
    "Doubling": "solvers.multistep",
    "Multistep": "solvers.multistep",
    "ode_log_likelihood": "likelihood.ode",
    "likelihood_bound": "likelihood.bound",
    "importance_bound": "likelihood.importance",
    "ByBound": "likelihood.images",
    "ByOde": "likelihood.images",
    "choose_nodes": "likelihood.nodes",
    "euler_sample": "sampling.ode",
    "ode_encode": "sampling.ode",
    "ode_sample": "sampling.ode",
    "ddim_sample": "sampling.exponential",
    "dpm_solver_sample": "sampling.exponential",
    "PredictorCorrector": "sampling.predictor_corrector",
    "pc_sample": "sampling.predictor_corrector",
    "ScoreModel": "model",
    "Scores": "model",
    "load": "experiment.models",
    "Scorer": "experiment.scorer",
    "DDPMpp": "nn",
    "UserError": "errors",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from scoremle.core.dequantize import TruncatedNormal, Uniform
    from scoremle.core.divergence import Exact, FixedProbe, Hutchinson, Orthogonal
    from scoremle.core.loss import denoising_loss
    from scoremle.core.pixels import Pixels, bits_per_dim
    from scoremle.core.prediction import noise_fn
    from scoremle.core.schedules import (
        Cosine,
        Discrete,
        GeometricSigma,
        KarrasSigma,
        LinearBeta,
        LinearLogSNR,
        LinearSigma,
        PerDimension,
        Schedule,
    )
    from scoremle.core.sde import SDE, VE, VP, LinearVE, SubVP
    from scoremle.core.times import BinnedLogSNR, UniformLogSNR, UniformTime
    from scoremle.errors import UserError
    from scoremle.experiment.models import load
    from scoremle.experiment.scorer import Scorer
    from scoremle.likelihood.bound import likelihood_bound
    from scoremle.likelihood.images import ByBound, ByOde
    from scoremle.likelihood.importance import importance_bound
    from scoremle.likelihood.nodes import choose_nodes
    from scoremle.likelihood.ode import ode_log_likelihood
    from scoremle.model import ScoreModel, Scores
    from scoremle.nn import DDPMpp
    from scoremle.sampling.exponential import ddim_sample, dpm_solver_sample
    from scoremle.sampling.ode import euler_sample, ode_encode, ode_sample
    from scoremle.sampling.predictor_corrector import PredictorCorrector, pc_sample
    from scoremle.solvers.multistep import Doubling, Multistep


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _submodules():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _submodules() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(__path__)}


def __dir__() -> list[str]:
    return sorted({*__all__, *_submodules()})
