"""A page about one or more working directories, for a person to read."""

from scoremle import finder

__getattr__ = finder(__name__)
