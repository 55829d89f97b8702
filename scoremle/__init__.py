"""Likelihoods of score-based diffusion models: trained by them, exact, and bounded.

Names and submodules are imported when they are first used, so that the command line can speak
before JAX loads.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "VP": "sde",
    "SubVP": "sde",
    "VE": "sde",
    "LinearVE": "sde",
    "UniformTime": "times",
    "UniformLogSNR": "times",
    "Pixels": "pixels",
    "bits_per_dim": "pixels",
    "Hutchinson": "divergence",
    "Exact": "divergence",
    "Adaptive": "ode",
    "Multistep": "multistep",
    "denoising_loss": "loss",
    "ode_log_likelihood": "likelihood",
    "likelihood_bound": "bound",
    "ode_sample": "sample",
    "DDPMpp": "nn",
    "UserError": "errors",
    "load": "trained",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from scoremle.bound import likelihood_bound
    from scoremle.divergence import Exact, Hutchinson
    from scoremle.errors import UserError
    from scoremle.likelihood import ode_log_likelihood
    from scoremle.loss import denoising_loss
    from scoremle.multistep import Multistep
    from scoremle.nn import DDPMpp
    from scoremle.ode import Adaptive
    from scoremle.pixels import Pixels, bits_per_dim
    from scoremle.sample import ode_sample
    from scoremle.sde import VE, VP, LinearVE, SubVP
    from scoremle.times import UniformLogSNR, UniformTime
    from scoremle.trained import load


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
