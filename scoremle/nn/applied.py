"""A network as a function of its parameters and its inputs."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from scoremle.numerics import check_call

__all__ = ["HIGHEST", "Applied", "matmul_precision"]

HIGHEST = "highest"


def matmul_precision() -> str:
    """Precision of matrix products in a network: the highest, unless JAX's config names one."""
    config: Any = jax.config
    return config.jax_default_matmul_precision or HIGHEST


@dataclass(frozen=True)
class Applied:
    """A ``network`` as a function ``apply(params, *inputs)``, of inputs such as x and label.

    Functions of equal networks are equal, so that one compiled program takes all models of an
    architecture. With ``channels`` the output has the first so many: later ones may be the
    predicted variance. Products have the precision of ``matmul_precision``, since JAX's default
    rounds factors to ten bits on a GPU. A call raises UserError where the network does not take so
    many inputs.
    """

    network: nn.Module
    channels: int | None = None

    def __call__(self, params: Any, *inputs: Any) -> Any:
        check_call(self.network, *inputs)
        return _apply(self, matmul_precision(), params, *inputs)


# A program calls a network in several places, and a command has several programs: this way Python
# goes through its layers once.
@partial(jax.jit, static_argnums=(0, 1))
def _apply(applied: Applied, precision: str, params: Any, *inputs: Any) -> Any:
    with jax.default_matmul_precision(precision):
        output: Any = applied.network.apply({"params": params}, *inputs)
    return output if applied.channels is None else output[..., : applied.channels]
