"""Importance weights of samples that carry their log-density, and maps whose density is exact."""

from scoremle.weights.flows import from_flow
from scoremle.weights.reweighting import Reweighted, reweigh

__all__ = ["Reweighted", "from_flow", "reweigh"]
