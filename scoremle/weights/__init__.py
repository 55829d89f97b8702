"""Importance weights of samples that carry their log-density."""

from scoremle.weights.reweighting import Reweighted, reweigh

__all__ = ["Reweighted", "reweigh"]
