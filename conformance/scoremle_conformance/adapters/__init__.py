"""The libraries that the suite comes with an adapter for, by name."""

import importlib

from scoremle_conformance.adapter import Adapter

__all__ = ["ADAPTERS", "adapter_class"]

# name -> module and class; a module imports its library
ADAPTERS = {
    name: f"scoremle_conformance.adapters.{place}"
    for name, place in {
        "sample": "sample:Sample",
        "scoremle": "of_scoremle:ScoreMLE",
        "flow_matching": "of_flow_matching:FlowMatching",
        "torchdiffeq": "of_torchdiffeq:TorchDiffEq",
        "zuko": "of_zuko:Zuko",
        "azula": "of_azula:Azula",
        "diffrax": "of_diffrax:Diffrax",
        "sbi": "of_sbi:FMPE",
        "sbi_npse": "of_sbi:NPSE",
        "score_models": "of_score_models:ScoreModels",
        "torchcfm": "of_torchcfm:TorchCFM",
        "torchebm": "of_torchebm:TorchEBM",
        "gensbi": "of_gensbi:GenSBI",
        "bayesflow": "of_bayesflow:BayesFlow",
    }.items()
}


def adapter_class(library: str) -> type[Adapter]:
    """By a name of ADAPTERS, or by ``module:Class``.

    Raises ValueError for another name, and ImportError where the library is not installed.
    """
    place = ADAPTERS.get(library, library)
    module, _, name = place.partition(":")
    if not name:
        raise ValueError(
            f"there is no adapter {library!r}: name one of {', '.join(ADAPTERS)}, or module:Class"
        )
    found = getattr(importlib.import_module(module), name, None)
    if not (isinstance(found, type) and issubclass(found, Adapter)):
        raise ValueError(f"{place} is not a subclass of scoremle_conformance.Adapter")
    return found
