"""Log-likelihoods and bounds of data, each with its error."""

from scoremle import finder

__getattr__ = finder(__name__)
