"""Foundations: SDEs, times, predictions, pixels, traces, the loss."""

from scoremle import finder

__getattr__ = finder(__name__)
