"""Likelihoods of score-based diffusion models: trained by them, exact, and bounded.

Names and submodules are imported when they are first used, so that the command line can speak
before JAX loads.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "VP": "core.sde",
    "SubVP": "core.sde",
    "VE": "core.sde",
    "LinearVE": "core.sde",
    "UniformTime": "core.times",
    "UniformLogSNR": "core.times",
    "Pixels": "core.pixels",
    "bits_per_dim": "core.pixels",
    "Hutchinson": "core.divergence",
    "Exact": "core.divergence",
    "Doubling": "solvers.multistep",
    "Multistep": "solvers.multistep",
    "denoising_loss": "core.loss",
    "ode_log_likelihood": "likelihood.ode",
    "likelihood_bound": "likelihood.bound",
    "ode_sample": "sampling.ode",
    "DDPMpp": "nn",
    "UserError": "errors",
    "ScoreModel": "model",
    "load": "experiment.trained",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from scoremle.core.divergence import Exact, Hutchinson
    from scoremle.core.loss import denoising_loss
    from scoremle.core.pixels import Pixels, bits_per_dim
    from scoremle.core.sde import VE, VP, LinearVE, SubVP
    from scoremle.core.times import UniformLogSNR, UniformTime
    from scoremle.errors import UserError
    from scoremle.experiment.trained import load
    from scoremle.likelihood.bound import likelihood_bound
    from scoremle.likelihood.ode import ode_log_likelihood
    from scoremle.model import ScoreModel
    from scoremle.nn import DDPMpp
    from scoremle.sampling.ode import ode_sample
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
