"""Live objects of other libraries as models."""

from scoremle import finder

__getattr__ = finder(__name__)
