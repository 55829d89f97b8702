"""From a config to what is trained and evaluated in a working directory."""

from scoremle import finder

__getattr__ = finder(__name__)
