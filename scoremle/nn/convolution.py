"""A convolution whose derivatives are convolutions of images, channels last.

JAX writes the gradients of a convolution with its channels elsewhere. On a CPU, XLA brings them
into the form of its library, which is channels last, but not in the body of a loop or of a call:
there they take twenty times as long (benchmarks/blocks.py). So here they are written in that form.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

__all__ = ["Conv", "convolve"]

Images = Float[Array, "b *pixels c"]
Kernel = Float[Array, "*window _c k"]
Convolved = Float[Array, "b *_out k"]
Padding = tuple[tuple[int, int], ...]


def convolve(
    x: Images,
    kernel: Kernel,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Convolved:
    """``jax.lax.conv_general_dilated`` of channels last, whose options it takes.

    On a CPU, a convolution of stride 1 without dilation or groups has the derivatives above.
    """
    steps = {*strides, *(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ())}
    plain = steps == {1} and options.get("feature_group_count", 1) == 1
    if not plain or jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:-1], kernel.shape[:-2], strides, padding)
    asked: Any = jax.config
    precision = options.get("precision") or asked.jax_default_matmul_precision
    return _bind(x, kernel, tuple((low, high) for low, high in padding), precision)


Conv = partial(nn.Conv, conv_general_dilated=convolve)


def _by_lax(x: Images, kernel: Kernel, *, padding: Padding, precision: Any) -> Convolved:
    pixels = tuple(range(1, x.ndim - 1))
    window = tuple(range(x.ndim - 2))
    images = (0, x.ndim - 1, *pixels)
    axes = jax.lax.ConvDimensionNumbers(images, (x.ndim - 1, x.ndim - 2, *window), images)
    strides = (1,) * len(pixels)
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=axes, precision=precision
    )


_convolution = Primitive("convolution")


def _bind(x: Images, kernel: Kernel, padding: Padding, precision: Any) -> Convolved:
    return _convolution.bind(x, kernel, padding=padding, precision=precision)


def _gradient_of_images(
    g: Convolved, x: Any, kernel: Kernel, *, padding: Padding, precision: Any
) -> Array:
    """With the kernel turned around, and its channels exchanged."""
    window = kernel.shape[:-2]
    behind = tuple(
        (n - 1 - low, n - 1 - high) for n, (low, high) in zip(window, padding, strict=True)
    )
    turned = jnp.flip(kernel, range(len(window))).swapaxes(-1, -2)
    return _bind(g, turned, behind, precision)


def _gradient_of_kernel(
    g: Convolved, x: Images, kernel: Any, *, padding: Padding, precision: Any
) -> Array:
    """Of the images with the gradient as their kernel, where images and channels are exchanged."""
    images, turned = x.swapaxes(0, -1), jnp.moveaxis(g, 0, -2)
    return jnp.moveaxis(_bind(images, turned, padding, precision), 0, -2)


def _batched(
    arguments: tuple[Array, Array], axes: tuple[Any, Any], **fixed: Any
) -> tuple[Array, int]:
    """Under ``jax.vmap``: more images. Of several kernels, derivatives are those of JAX."""
    x, kernel = arguments
    if axes[1] is not None:
        by_lax: Any = partial(_by_lax, **fixed)
        return jax.vmap(by_lax, axes)(x, kernel), 0
    x = jnp.moveaxis(x, axes[0], 0)
    images = _bind(x.reshape(-1, *x.shape[2:]), kernel, **fixed)
    return images.reshape(*x.shape[:2], *images.shape[1:]), 0


def _shape(x: Any, kernel: Any, **fixed: Any) -> Any:
    found = jax.eval_shape(partial(_by_lax, **fixed), x, kernel)
    return jax.core.ShapedArray(found.shape, found.dtype)


_convolution.def_impl(jax.jit(_by_lax, static_argnames=("padding", "precision")))
_convolution.def_abstract_eval(_shape)
mlir.register_lowering(_convolution, mlir.lower_fun(_by_lax, multiple_results=False))
ad.defbilinear(_convolution, _gradient_of_images, _gradient_of_kernel)
batching.primitive_batchers[_convolution] = _batched
