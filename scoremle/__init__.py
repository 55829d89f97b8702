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
    traces and solvers          Hutchinson  Hierarchical  Orthogonal  FixedProbe  Exact
                                Multistep  Doubling
    the noise at each time      VP  SubVP  VE  LinearVE; or SDE with a Schedule: Cosine  Discrete
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

__version__ = "0.3.0.dev0"

# The module of each name, by what type checkers read: from scoremle.MODULE import NAME as NAME.
_STUB = __spec__.loader.get_data(f"{__path__[0]}/__init__.pyi").decode()
_IMPORTS = [line.split() for line in _STUB.splitlines() if line.startswith("from scoremle.")]
_HOME = {name: module for _, module, _, name, *_ in _IMPORTS}

__all__ = ["__version__", *_HOME]


def finder(package: str):
    """The ``__getattr__`` of a package, which imports a module of it when that is first named.

    Args:
        package: its name.
    """

    def find(name: str) -> object:
        try:
            return importlib.import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{package}.{name}":  # another, which the module needs
                raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    return finder(__name__)(name)


def _submodules() -> set[str]:
    import pkgutil

    return {module.name for module in pkgutil.iter_modules(__path__)} - {"__main__"}


def __dir__() -> list[str]:
    return sorted({*__all__, *_submodules()})
