"""Compilation of programs, and workarounds that XLA needs on a CPU to run them quickly.

Each workaround is for XLA's CPU compiler alone. It is chosen where a program is lowered, by the
platform, so that programs of other platforms have none of it. Measured with jaxlib 0.10.2:

    convolutions   JAX writes their gradients with channels elsewhere. Within a call or a loop
                   XLA's CPU compiler does not bring them into the form of its library, and they
                   take twenty times as long (benchmarks/network.py). Here they are written in it.
    blocks         XLA writes out each call and compiles equal blocks anew. As calls that stay,
                   they compile in less than half the time, and run as fast (the same script).
    YNN            A library that XLA leaves much to. Convolutions are quicker without it, sums of
                   a gradient with it. Some sums of many rows are wrong (docs/troubleshooting.md).

Each is needless with the jaxlib that does it by itself: the script tells.
"""

import os
from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.interpreters.mlir import _lowerings  # no public name leads to a lowering's rule
from jax.extend.core import Primitive
from jax.extend.core.primitives import jit_p
from jax.interpreters import ad, batching, mlir
from jaxlib.mlir import ir
from jaxtyping import Array, Float

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
    """Asks which device there is when it is called, and not where a module is imported."""

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

Images = Float[Array, "b *pixels c"]
ConvKernel = Float[Array, "*window _c k"]
Convolved = Float[Array, "b *_out k"]
Padding = tuple[tuple[int, int], ...]


def convolve(
    x: Images,
    kernel: ConvKernel,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Convolved:
    """``jax.lax.conv_general_dilated`` of channels last, whose options it takes."""
    steps = {*strides, *(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ())}
    if steps != {1} or options.get("feature_group_count", 1) != 1:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:-1], kernel.shape[:-2], strides, padding)
    asked: Any = jax.config
    precision = options.get("precision") or asked.jax_default_matmul_precision
    padding = tuple((low, high) for low, high in padding)
    return _forward.bind(x, kernel, window=kernel.shape[:-2], padding=padding, precision=precision)


# The convolution of images with a kernel; its derivative by the images, of what is convolved and
# the kernel; that by the kernel, of what is convolved and the images. Each is bilinear, and each
# derivative of one is another of the three.
_forward, _by_images, _by_kernel = (
    Primitive(f"convolution{name}") for name in ("", "_by_images", "_by_kernel")
)


def _convolved(
    x: Images, kernel: ConvKernel, *, window: tuple[int, ...], padding: Padding, precision: Any
) -> Convolved:
    pixels, places = tuple(range(1, x.ndim - 1)), tuple(range(x.ndim - 2))
    images = (0, x.ndim - 1, *pixels)
    axes = jax.lax.ConvDimensionNumbers(images, (x.ndim - 1, x.ndim - 2, *places), images)
    return jax.lax.conv_general_dilated(
        x, kernel, (1,) * len(pixels), padding, dimension_numbers=axes, precision=precision
    )


def _images_of(g: Convolved, kernel: ConvKernel, **fixed: Any) -> Images:
    """The derivative by the images, as JAX has it."""
    axes = zip(g.shape[1:-1], fixed["window"], fixed["padding"], strict=True)
    pixels = [size + n - 1 - low - high for size, n, (low, high) in axes]
    x = jax.ShapeDtypeStruct((len(g), *pixels, kernel.shape[-2]), g.dtype)
    return jax.linear_transpose(lambda x: _convolved(x, kernel, **fixed), x)(g)[0]


def _kernel_of(g: Convolved, x: Images, **fixed: Any) -> ConvKernel:
    """The derivative by the kernel, as JAX has it."""
    kernel = jax.ShapeDtypeStruct((*fixed["window"], x.shape[-1], g.shape[-1]), g.dtype)
    return jax.linear_transpose(lambda kernel: _convolved(x, kernel, **fixed), kernel)(g)[0]


def _images_of_on_cpu(g: Convolved, kernel: ConvKernel, **fixed: Any) -> Images:
    """A convolution with the kernel turned around, and its channels exchanged."""
    window, padding = fixed["window"], fixed["padding"]
    behind = tuple(
        (n - 1 - low, n - 1 - high) for n, (low, high) in zip(window, padding, strict=True)
    )
    turned = jnp.flip(kernel, range(len(window))).swapaxes(-1, -2)
    return _convolved(g, turned, **fixed | {"padding": behind})


def _kernel_of_on_cpu(g: Convolved, x: Images, **fixed: Any) -> ConvKernel:
    """A convolution of the images with ``g`` as kernel, images and channels exchanged."""
    found = _convolved(x.swapaxes(0, -1), jnp.moveaxis(g, 0, -2), **fixed)
    return jnp.moveaxis(found, 0, -2)


def _register(
    primitive: Primitive,
    function: Callable[..., Array],
    on_cpu: Callable[..., Array],
    transposes: tuple[Callable[..., Any], Callable[..., Any]],
) -> None:
    fixed = ("window", "padding", "precision")

    def shape(*arguments: Any, **fixed: Any) -> Any:
        found = jax.eval_shape(partial(function, **fixed), *arguments)
        return jax.core.ShapedArray(found.shape, found.dtype)

    def batched(
        arguments: tuple[Array, Array], axes: tuple[Any, Any], **fixed: Any
    ) -> tuple[Array, int]:
        """Under ``jax.vmap``: more images. Of several kernels, derivatives are those of JAX."""
        first, second = arguments
        if axes[1] is not None or primitive is _by_kernel:
            return jax.vmap(partial(function, **fixed), axes)(first, second), 0
        first = jnp.moveaxis(first, axes[0], 0)
        found = primitive.bind(first.reshape(-1, *first.shape[2:]), second, **fixed)
        return found.reshape(*first.shape[:2], *found.shape[1:]), 0

    primitive.def_impl(jax.jit(primitive.bind, static_argnames=fixed))
    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    mlir.register_lowering(
        primitive, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu"
    )
    ad.defbilinear(primitive, *transposes)
    batching.primitive_batchers[primitive] = batched


_register(
    _forward, _convolved, _convolved,
    (lambda g, x, kernel, **fixed: _by_images.bind(g, kernel, **fixed),
     lambda g, x, kernel, **fixed: _by_kernel.bind(g, x, **fixed)),
)  # fmt: skip
_register(
    _by_images, _images_of, _images_of_on_cpu,
    (lambda x, g, kernel, **fixed: _forward.bind(x, kernel, **fixed),
     lambda x, g, kernel, **fixed: _by_kernel.bind(g, x, **fixed)),
)  # fmt: skip
_register(
    _by_kernel, _kernel_of, _kernel_of_on_cpu,
    (lambda kernel, g, x, **fixed: _forward.bind(x, kernel, **fixed),
     lambda kernel, g, x, **fixed: _by_images.bind(g, kernel, **fixed)),
)  # fmt: skip
