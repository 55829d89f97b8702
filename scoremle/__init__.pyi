# The names of the package: for type checkers, and for __init__.py, which imports a name from the
# module here when it is first used.
from collections.abc import Callable
from typing import Any

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
from scoremle.core.divergence import Hierarchical as Hierarchical
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

__version__: str

def finder(package: str) -> Callable[[str], Any]: ...
