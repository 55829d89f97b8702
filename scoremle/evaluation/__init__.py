"""Metrics over a data set, tables and pictures of them, and simple densities beside them."""

from scoremle import finder

__getattr__ = finder(__name__)
