"""Functions of arrays that are numpy's, torch's or JAX's: the array says which."""

import sys
from typing import Any

import numpy as np

__all__ = ["like", "namespace"]

FRAMEWORKS = {"torch": "torch", "jax": "jax.numpy", "jaxlib": "jax.numpy"}


def namespace(x: Any) -> Any:
    """The module whose functions take ``x``. Its framework is loaded, since there is an ``x``."""
    return sys.modules[FRAMEWORKS.get(type(x).__module__.split(".")[0], "numpy")]


def like(values: Any, x: Any) -> Any:
    """Real ``values`` as an array of the framework, precision and device of ``x``."""
    xp = namespace(x)
    if type(values).__module__.split(".")[0] == type(x).__module__.split(".")[0] != "numpy":
        return values
    if xp.__name__ == "torch":
        return xp.as_tensor(values, dtype=x.dtype, device=x.device)
    return xp.asarray(values, np.empty(0, x.dtype).real.dtype)
