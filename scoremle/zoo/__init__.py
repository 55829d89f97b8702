"""Networks and files of others.

diffusers, improved- and guided-diffusion, EDM, VDM, i-DODE and MuLAN: the module of a family is
imported when a model of that family is met.
"""

from scoremle import finder

__getattr__ = finder(__name__)
