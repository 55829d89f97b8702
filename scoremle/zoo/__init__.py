"""Networks and files of others: diffusers, improved- and guided-diffusion, EDM.

A module of a family is imported when a model of it is met.
"""

from scoremle import finder

__getattr__ = finder(__name__)
