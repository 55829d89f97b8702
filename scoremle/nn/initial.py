"""The kernels that a network begins with."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scoremle.types import PRNGKey

__all__ = ["initializer"]

# So many are drawn where fewer would do: to compile another program would take longer.
FEW = 2**14


def initializer(scale: float = 1.0) -> Callable[..., Array]:
    """Uniform with variance 2 scale / (fan_in + fan_out); scale 0 stands for almost zero.

    The numbers are those of flax's ``variance_scaling(scale, "fan_avg", "uniform")``, for which
    XLA compiles programs for each shape. Here small kernels share one.
    """

    def begin(key: PRNGKey, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        size, fan = math.prod(shape), math.prod(shape[:-2]) * sum(shape[-2:]) / 2
        limit = np.sqrt(3 * np.asarray((scale or 1e-10) / fan, dtype))
        if size > FEW or isinstance(key, jax.core.Tracer):
            return _draw(key, limit, size).reshape(shape)
        # Of a key the first numbers are the same, however many are drawn.
        return jnp.asarray(np.asarray(_draw(key, limit, FEW))[:size].reshape(shape))

    return begin


@partial(jax.jit, static_argnums=2)
def _draw(key: PRNGKey, limit: Any, size: int) -> Float[Array, " {size}"]:
    return jax.random.uniform(key, (size,), limit.dtype, -1.0) * limit
