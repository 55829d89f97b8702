"""Lossless compression of integer images by a model: as many bits as its bound states.

Its entropy coder is the library constriction, of the extra ``compress``.
"""

from scoremle import finder

__getattr__ = finder(__name__)
