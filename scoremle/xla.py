"""Compilation of programs, and workarounds that XLA needs on a CPU to run them quickly.

Each workaround is for XLA's CPU compiler alone. It is chosen where a program is lowered, by the
platform, so that programs of other platforms have none of it. Measured with jaxlib 0.10.2:

    convolutions   JAX writes their gradients with channels elsewhere. Within a call or a loop
                   XLA's CPU compiler does not bring them into the form of its library, and they
                   take fifteen times as long (benchmarks/network.py). Here they are lowered in it,
                   those of a user's own networks, too.
    blocks         XLA writes out each call and compiles equal blocks anew. As calls that stay,
                   they compile in less than half the time, and run as fast (the same script).
    YNN            A library that XLA leaves much to. Convolutions are quicker without it, sums of
                   a gradient with it. Some sums of many rows are wrong (docs/troubleshooting.md).

Each is unnecessary with a jaxlib that does it by itself, as the script shows.
"""

import os
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# No public name leads to a lowering's rule.
from jax._src.interpreters.mlir import _lowerings, _platform_specific_lowerings
from jax.extend.core.primitives import conv_general_dilated_p, jit_p
from jax.interpreters import mlir
from jaxlib.mlir import ir
from jaxtyping import Array

# Programs


YNN = "xla_cpu_experimental_ynn_fusion_type"
SUMS = "LIBRARY_FUSION_TYPE_REDUCE"
# Without loops, what is compiled so runs no slower.
PRESET, FAST_COMPILE = "xla_cpu_opt_preset", "CPU_OPT_PRESET_FAST_COMPILE"

Option = tuple[str, str]  # a name and a value for XLA


def compiled(function: Callable[..., Any], *, gradients: bool = False, **options: Any) -> Any:
    """``jax.jit`` of a whole program, compiled as is quickest on the device at hand.

    A program of gradients, or of what is done with them, says so. No other function may be traced
    around it, as in ``jax.grad``: for that is ``jax.jit``.
    """
    wanted = {YNN: SUMS, PRESET: FAST_COMPILE} if gradients else {YNN: ""}
    return _Compiled(function, tuple(wanted.items()), options)


class _Compiled:
    """Looks up the device when it is called, and not where a module is imported."""

    def __init__(
        self, function: Callable[..., Any], wanted: tuple[Option, ...], options: dict[str, Any]
    ) -> None:
        self._function, self._wanted, self._options = function, wanted, options

    @cached_property
    def jitted(self) -> Any:
        wanted = dict(filter(_is_known, self._wanted))
        return jax.jit(self._function, compiler_options=wanted or None, **self._options)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.jitted(*arguments, **named)

    def lower(self, *arguments: Any, **named: Any) -> jax.stages.Lowered:
        return self.jitted.lower(*arguments, **named)


@cache
def _is_known(option: Option) -> bool:
    """Whether this XLA has the option for this device, and the user does not set it."""
    if jax.default_backend() != "cpu" or option[0] in os.environ.get("XLA_FLAGS", ""):
        return False
    try:
        jax.jit(jnp.negative, compiler_options=dict([option]))(0.0)
    except jax.errors.JaxRuntimeError:  # an earlier version, or a later one
        return False
    return True


# Blocks of a network as calls

# What is quickly computed again, and fused with what needs it. Of functions with a derivative of
# their own (custom_jvp_call) blocks have only activations.
CHEAP = frozenset({
    "abs", "add", "add_any", "broadcast_in_dim", "convert_element_type", "copy",
    "custom_jvp_call", "div", "eq", "erf", "erfc", "exp", "expm1", "ge", "gt", "integer_pow",
    "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "reshape",
    "rsqrt", "select_n", "sqrt", "square", "squeeze", "sub", "tanh",
})  # fmt: skip


# The name of a block's function, by which its calls are found where they are lowered.
BLOCK = "scoremle_block"


def compile_once(block: Any, *inputs: Any, remat: bool = False) -> Any:
    """Returns ``block(*inputs)``; blocks of the same fields and shapes of inputs compile once.

    A gradient keeps what is dear to compute, and computes the rest again: a quarter of the memory.

    Args:
        block: a module of Flax within another, which draws no random numbers but from its inputs.
        inputs: arrays, or None.
        remat: its derivative computes all that is within the block again, and so keeps less.
    """
    if block.is_initializing():
        return block(*inputs)
    keeps = jax.checkpoint_policies.nothing_saveable if remat else _what_is_dear
    return _block(block.clone(parent=None, name=None), keeps, block.variables, *inputs)


def _what_is_dear(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name not in CHEAP


def _apply(block: Any, keeps: Callable[..., bool], variables: Any, *inputs: Any) -> Any:
    return jax.checkpoint(block.apply, policy=keeps)(variables, *inputs)


_apply.__name__ = BLOCK
_block = jax.jit(_apply, static_argnums=(0, 1))


def _stays(context: Any, *arguments: Any, **params: Any) -> Any:
    """Lowers a call; that of a block says that it is not to be written out."""
    results = _lowered_call(context, *arguments, **params)
    if params["name"] == BLOCK and (values := jax.tree.leaves(results)):
        stays = ir.DictAttr.get({"inlineable": ir.StringAttr.get("false")})
        values[0].owner.attributes["mhlo.frontend_attributes"] = stays
    return results


_lowered_call = _lowerings[jit_p].rule
mlir.register_lowering(jit_p, _stays, platform="cpu", cacheable=False)

# Convolutions


def _channels_last(context: Any, x: Any, kernel: Any, **params: Any) -> Any:
    """Lowers a convolution in the form that XLA's library has: channels last, of all three."""
    *pixels, last = range(1, len(params["window_strides"]) + 2)
    wanted = jax.lax.ConvDimensionNumbers(
        (0, last, *pixels), (last, last - 1, *range(last - 1)), (0, last, *pixels)
    )
    numbers = params["dimension_numbers"]
    if numbers == wanted or params["batch_group_count"] > 1:
        return _lowered_convolution(context, x, kernel, **params)
    images, (made, seen, *window), found = numbers

    def convolved(x: Array, kernel: Array) -> Array:
        y = conv_general_dilated_p.bind(
            jnp.transpose(x, _last(images)), jnp.transpose(kernel, (*window, seen, made)),
            **params | {"dimension_numbers": wanted},
        )  # fmt: skip
        return jnp.transpose(y, np.argsort(_last(found)).tolist())

    return mlir.lower_fun(convolved, multiple_results=False)(context, x, kernel)


def _last(axes: Sequence[int]) -> tuple[int, ...]:
    """The axes of images, given as those of batch, channels and pixels, with channels last."""
    batch, channels, *pixels = axes
    return batch, *pixels, channels


_lowered_convolution = _platform_specific_lowerings["cpu"][conv_general_dilated_p].rule
mlir.register_lowering(conv_general_dilated_p, _channels_last, platform="cpu")
