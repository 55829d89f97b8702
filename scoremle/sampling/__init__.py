"""Samplers: by the probability flow, the reverse SDE, and what is known of a sample."""

from scoremle import finder

__getattr__ = finder(__name__)
