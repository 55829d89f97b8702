"""Likelihoods of data under diffusion and flow models, each with its error.

    import scoremle

    model = scoremle.load("digits")                     # a small model that the package ships
    images = scoremle.data.load("digits").test[:16]     # uint8 (16, 8, 8, 1)
    scores = model.score(images, passes=4)             # bits/dim of each image, with its error

What there is, by what it is for; ``help(scoremle.NAME)`` has an example of each:

    a model                     load  ScoreModel  noise_fn  Pixels  DDPMpp
    what score gives            Scores  bits_per_dim
    how it is measured          ByOde  ByElbo  Uniform  TruncatedNormal
    images of a pipeline        Scorer
    vectors of other scales     Affine  Bounded  Chain
    of arrays, in nats          ode_log_likelihood  elbo  importance_bound
    traces and solvers          Hutchinson  Orthogonal  FixedProbe  Exact
                                Multistep  Doubling
    what noise is added when    VP  SubVP  VE  LinearVE; or SDE with a Schedule: Cosine  Discrete
                                GeometricSigma  KarrasSigma  LinearBeta  LinearLogSNR
                                LinearSigma  PerDimension
    training                    fit  denoising_loss  UniformTime  UniformLogSNR  AlphaSquared
                                BinnedLogSNR
    samples and latents         ode_sample  ode_encode  dpm_solver_sample  ddim_sample
                                euler_sample  pc_sample  PredictorCorrector  Samples
    a mistake you can correct   UserError

Names and rooms are imported when they are first used, so that the command line can print before
JAX loads.
"""

import importlib

# True to type checkers. `typing` is not imported for it: no signal is handled yet.
TYPE_CHECKING = False
__version__ = "0.3.0.dev0"

# The names of the package, by the module that has them.
_NAMES = {
    "core.sde": "SDE VE VP LinearVE SubVP",
    "core.schedules": "Cosine Discrete GeometricSigma KarrasSigma LinearBeta LinearLogSNR"
        " LinearSigma PerDimension Schedule",
    "core.prediction": "noise_fn",
    "core.bijectors": "Affine Bounded Chain",
    "core.times": "AlphaSquared BinnedLogSNR UniformLogSNR UniformTime",
    "core.pixels": "Pixels bits_per_dim",
    "core.dequantize": "TruncatedNormal Uniform",
    "core.divergence": "Exact FixedProbe Hutchinson Orthogonal",
    "core.loss": "denoising_loss",
    "solvers.doubling": "Doubling",
    "solvers.multistep": "Multistep",
    "likelihood.ode": "ode_log_likelihood",
    "likelihood.elbo": "elbo",
    "likelihood.importance": "importance_bound",
    "likelihood.images": "ByElbo ByOde",
    "sampling.ode": "euler_sample ode_encode ode_sample",
    "sampling.samples": "Samples",
    "sampling.exponential": "ddim_sample dpm_solver_sample",
    "sampling.predictor_corrector": "PredictorCorrector pc_sample",
    "model": "ScoreModel",
    "likelihood.scores": "Scores",
    "training.fit": "fit",
    "experiment.models": "load",
    "experiment.scorer": "Scorer",
    "nn": "DDPMpp",
    "errors": "UserError",
}  # fmt: skip
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    # Each under its own name: for type checkers these are names of the package, too.
    from scoremle import anomaly as anomaly
    from scoremle import core as core
    from scoremle import data as data
    from scoremle import evaluation as evaluation
    from scoremle import experiment as experiment
    from scoremle import interop as interop
    from scoremle import likelihood as likelihood
    from scoremle import nn as nn
    from scoremle import published as published
    from scoremle import quality as quality
    from scoremle import report as report
    from scoremle import sampling as sampling
    from scoremle import solvers as solvers
    from scoremle import training as training
    from scoremle import weights as weights
    from scoremle.core.bijectors import Affine as Affine
    from scoremle.core.bijectors import Bounded as Bounded
    from scoremle.core.bijectors import Chain as Chain
    from scoremle.core.dequantize import TruncatedNormal as TruncatedNormal
    from scoremle.core.dequantize import Uniform as Uniform
    from scoremle.core.divergence import Exact as Exact
    from scoremle.core.divergence import FixedProbe as FixedProbe
    from scoremle.core.divergence import Hutchinson as Hutchinson
    from scoremle.core.divergence import Orthogonal as Orthogonal
    from scoremle.core.loss import denoising_loss as denoising_loss
    from scoremle.core.pixels import Pixels as Pixels
    from scoremle.core.pixels import bits_per_dim as bits_per_dim
    from scoremle.core.prediction import noise_fn as noise_fn
    from scoremle.core.schedules import Cosine as Cosine
    from scoremle.core.schedules import Discrete as Discrete
    from scoremle.core.schedules import GeometricSigma as GeometricSigma
    from scoremle.core.schedules import KarrasSigma as KarrasSigma
    from scoremle.core.schedules import LinearBeta as LinearBeta
    from scoremle.core.schedules import LinearLogSNR as LinearLogSNR
    from scoremle.core.schedules import LinearSigma as LinearSigma
    from scoremle.core.schedules import PerDimension as PerDimension
    from scoremle.core.schedules import Schedule as Schedule
    from scoremle.core.sde import SDE as SDE
    from scoremle.core.sde import VE as VE
    from scoremle.core.sde import VP as VP
    from scoremle.core.sde import LinearVE as LinearVE
    from scoremle.core.sde import SubVP as SubVP
    from scoremle.core.times import AlphaSquared as AlphaSquared
    from scoremle.core.times import BinnedLogSNR as BinnedLogSNR
    from scoremle.core.times import UniformLogSNR as UniformLogSNR
    from scoremle.core.times import UniformTime as UniformTime
    from scoremle.errors import UserError as UserError
    from scoremle.experiment.models import load as load
    from scoremle.experiment.scorer import Scorer as Scorer
    from scoremle.likelihood.elbo import elbo as elbo
    from scoremle.likelihood.images import ByElbo as ByElbo
    from scoremle.likelihood.images import ByOde as ByOde
    from scoremle.likelihood.importance import importance_bound as importance_bound
    from scoremle.likelihood.ode import ode_log_likelihood as ode_log_likelihood
    from scoremle.likelihood.scores import Scores as Scores
    from scoremle.model import ScoreModel as ScoreModel
    from scoremle.nn import DDPMpp as DDPMpp
    from scoremle.sampling.exponential import ddim_sample as ddim_sample
    from scoremle.sampling.exponential import dpm_solver_sample as dpm_solver_sample
    from scoremle.sampling.ode import euler_sample as euler_sample
    from scoremle.sampling.ode import ode_encode as ode_encode
    from scoremle.sampling.ode import ode_sample as ode_sample
    from scoremle.sampling.predictor_corrector import PredictorCorrector as PredictorCorrector
    from scoremle.sampling.predictor_corrector import pc_sample as pc_sample
    from scoremle.sampling.samples import Samples as Samples
    from scoremle.solvers.doubling import Doubling as Doubling
    from scoremle.solvers.multistep import Multistep as Multistep
    from scoremle.training.fit import fit as fit


if not TYPE_CHECKING:  # with it, every misspelt name would have a type

    def __getattr__(name: str) -> object:
        if name in _HOME:
            return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        if name in _submodules():
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _submodules() -> set[str]:
    import pkgutil

    names = {module.name for module in pkgutil.iter_modules(__path__)}
    return names - {"__main__"}


def __dir__() -> list[str]:
    return sorted({*__all__, *_submodules()})
