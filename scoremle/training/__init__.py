"""A training step, the loop around it, checkpoints, and where numbers go."""

from scoremle import finder

__getattr__ = finder(__name__)
