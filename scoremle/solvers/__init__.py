"""Initial value problems, and the probability flow as one."""

from scoremle import finder

__getattr__ = finder(__name__)
