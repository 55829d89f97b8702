"""Blocks of a network as calls: those that are equal are traced once, and on a CPU compiled once.

XLA writes all that a program calls into the place of the call, and then compiles each of a hundred
blocks for itself, equal or not. It leaves a call as it is that says so.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jax.experimental.xla_metadata import set_xla_metadata

__all__ = ["call"]


def call(block: nn.Module, *inputs: Any, remat: bool = False) -> Any:
    """``block(*inputs)``, where blocks of the same fields and inputs of the same shapes are one.

    Args:
        block: a module within another, which draws no random numbers but from its inputs.
        inputs: arrays, or None.
        remat: its derivative computes what is within the block again, and so keeps less.
    """
    if block.is_initializing():
        return block(*inputs)
    alike = block.clone(parent=None, name=None)
    # A GPU's compiler is not asked: there it was not measured.
    kept = "false" if jax.default_backend() == "cpu" else None
    with set_xla_metadata(inlineable=kept):
        return _call(alike, remat, block.variables, *inputs)


@partial(jax.jit, static_argnums=(0, 1))
def _call(block: nn.Module, remat: bool, variables: Any, *inputs: Any) -> Any:
    apply = jax.checkpoint(block.apply) if remat else block.apply
    with set_xla_metadata(inlineable=None):  # what it calls itself is small, and better fused
        return apply(variables, *inputs)
