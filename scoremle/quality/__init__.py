"""Quality of samples: features of images, and distances between sets of them."""

from scoremle import finder

__getattr__ = finder(__name__)
