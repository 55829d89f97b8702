"""Blocks of a network as calls: those that are equal are traced once, and on a CPU compiled once.

XLA writes all that a program calls into the place of the call, and then compiles each of a hundred
blocks for itself, equal or not. It leaves a call as it is that says so. What a derivative needs of
a block then crosses the border of a call, and is written to memory: so it is little.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jax.experimental.xla_metadata import set_xla_metadata

__all__ = ["call"]

# What is quickly computed again, and fused with what needs it. Of functions with a derivative of
# their own (custom_jvp_call) blocks have only activations.
CHEAP = frozenset({
    "abs", "add", "add_any", "broadcast_in_dim", "convert_element_type", "copy",
    "custom_jvp_call", "div", "eq", "erf", "erfc", "exp", "expm1", "ge", "gt", "integer_pow",
    "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "reshape",
    "rsqrt", "select_n", "sqrt", "square", "squeeze", "sub", "tanh",
})  # fmt: skip


def call(block: nn.Module, *inputs: Any, remat: bool = False) -> Any:
    """``block(*inputs)``, where blocks of the same fields and inputs of the same shapes are one.

    Args:
        block: a module within another, which draws no random numbers but from its inputs.
        inputs: arrays, or None.
        remat: its derivative computes all that is within the block again, and so keeps less.
    """
    if block.is_initializing():
        return block(*inputs)
    alike = block.clone(parent=None, name=None)
    # A GPU's compiler is not asked: there it was not measured.
    on_cpu = jax.default_backend() == "cpu"
    nothing = jax.checkpoint_policies.nothing_saveable
    keeps = nothing if remat else _what_is_dear if on_cpu else None
    with set_xla_metadata(inlineable="false" if on_cpu else None):
        return _call(alike, keeps, block.variables, *inputs)


def _what_is_dear(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name not in CHEAP


@partial(jax.jit, static_argnums=(0, 1))
def _call(
    block: nn.Module, keeps: Callable[..., bool] | None, variables: Any, *inputs: Any
) -> Any:
    apply = jax.checkpoint(block.apply, policy=keeps) if keeps else block.apply
    with set_xla_metadata(inlineable=None):  # what it calls itself is small, and better fused
        return apply(variables, *inputs)
