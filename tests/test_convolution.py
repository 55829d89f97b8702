"""On a CPU convolutions are lowered in the form of XLA's library, with equal values."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core.primitives import conv_general_dilated_p
from jax.interpreters import mlir

from scoremle import xla

LINE, PLANE = ("NWC", "WIO", "NWC"), ("NHWC", "HWIO", "NHWC")
# Name: window, padding, other options.
CASES: dict[str, tuple] = {
    "3x3": ((3, 3), "SAME", {}),
    "even": ((2, 4), "SAME", {}),
    "1x1": ((1, 1), [(0, 0), (0, 0)], {}),
    "uneven padding": ((3, 3), [(0, 2), (3, 1)], {}),
    "cropped": ((2, 3), [(-1, 0), (1, -1)], {}),
    "along a line": ((3,), [(1, 1)], {}),
    "strides": ((3, 3), [(1, 1), (0, 1)], {"window_strides": (2, 3)}),
    "doubled": ((3, 2), [(1, 1), (0, 1)], {"lhs_dilation": (2, 1)}),
    "wide": ((3, 2), [(2, 2), (1, 1)], {"rhs_dilation": (2, 3)}),
    "groups": ((3, 3), [(1, 1), (1, 1)], {"feature_group_count": 2}),
    "channels first": ((3, 2), [(1, 1), (0, 1)], {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}),
    "other axes": ((3, 2), [(1, 1), (0, 1)], {"dimension_numbers": ("HNWC", "IHOW", "WCNH")}),
}
CHANNELS, OUT = 4, 6


def case(name):
    """Images and kernel, their changes, and two convolutions: JAX's, and sums of products."""
    window, padding, options = CASES[name]
    options = {"window_strides": (1,) * len(window), "padding": padding} | options
    axes = options.setdefault("dimension_numbers", PLANE if len(window) == 2 else LINE)
    groups, letters = options.get("feature_group_count", 1), "HW"[-len(window) :]
    keys = jax.random.split(jax.random.key(0), 2)
    both = jax.random.normal(keys[0], (2, 4, *(7, 6)[: len(window)], CHANNELS))
    kernels = jax.random.normal(keys[1], (2, *window, CHANNELS // groups, OUT))
    (x, dx), (kernel, dkernel) = (
        [jnp.transpose(a, [plain.index(letter) for letter in given]) for a in pair]
        for pair, plain, given in zip(
            (both, kernels), (f"N{letters}C", f"{letters}IO"), axes[:2], strict=True
        )
    )

    def ours(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, **options)

    def sums(x, kernel):
        x = jnp.transpose(x, [axes[0].index(letter) for letter in f"N{letters}C"])
        kernel = jnp.transpose(kernel, [axes[1].index(letter) for letter in f"{letters}IO"])
        found = summed(x, kernel, **options)
        return jnp.transpose(found, [f"N{letters}C".index(letter) for letter in axes[2]])

    return (x, kernel), (dx, dkernel), ours, sums


def summed(
    x, kernel, window_strides, padding, dimension_numbers, lhs_dilation=None, rhs_dilation=None,
    feature_group_count=1,
):  # fmt: skip
    """The sum over the places of the kernel of products with images that are moved."""
    *window, of_group, out = kernel.shape
    ones = (1,) * len(window)
    between, apart = lhs_dilation or ones, rhs_dilation or ones
    if padding == "SAME":
        padding = [((k - 1) // 2, k // 2) for k in window]
    around = [(low, high, n - 1) for (low, high), n in zip(padding, between, strict=True)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])
    reach = [(k - 1) * d for k, d in zip(window, apart, strict=True)]
    sizes = [n - r for n, r in zip(x.shape[1:-1], reach, strict=True)]
    total = 0
    for place in np.ndindex(*window):
        starts = [p * d for p, d in zip(place, apart, strict=True)]
        stops = [start + size for start, size in zip(starts, sizes, strict=True)]
        part = jax.lax.slice(
            x, (0, *starts, 0), (len(x), *stops, x.shape[-1]), (1, *window_strides, 1)
        )
        part = part.reshape(*part.shape[:-1], feature_group_count, of_group)
        weights = kernel[place].reshape(of_group, feature_group_count, -1)
        total = total + jnp.einsum("...gc,cgk->...gk", part, weights)
    return total.reshape(*total.shape[:-2], out)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_of_both_kinds_and_orders_are_those_of_sums(x64, name):
    """A gradient, what it changes along a direction, and the gradient of a forward derivative."""
    given, along, ours, sums = case(name)

    def found(convolved):
        def loss(*given):
            return jnp.sum(jnp.sin(convolved(*given)))

        def slope(*given):
            return jax.jvp(loss, given, along)[1]

        gradient = jax.grad(loss, (0, 1))
        return convolved(*given), jax.jvp(gradient, given, along), jax.grad(slope, (0, 1))(*given)

    jax.tree.map(close, *(jax.jit(found, static_argnums=0)(each) for each in (ours, sums)))


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (1, 2)], ids=["images", "kernels", "both"])
def test_many_at_once(x64, axes):
    given, _, ours, sums = case("3x3")
    several = [
        one if axis is None else np.stack([one, -one, one[::-1]], axis)
        for one, axis in zip(map(np.asarray, given), axes, strict=True)
    ]

    def gradients(convolved):
        def loss(*given):
            return jnp.sum(jnp.sin(convolved(*given)))

        return jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1)), axes))(*several)

    jax.tree.map(close, gradients(ours), gradients(sums))


@pytest.mark.parametrize(
    ("rule", "forms"), [("_channels_last", 1), ("_lowered_convolution", 3)], ids=["ours", "JAX's"]
)
def test_in_a_loop_gradients_are_in_the_form_of_the_library(rule, forms):
    """XLA brings none into it there: of JAX's three convolutions, two have forms of their own."""
    (x, kernel), _, convolved, _ = case("3x3")
    kernel = kernel[..., :CHANNELS]

    def loss(x, kernel):
        def body(h, _):
            return jnp.tanh(convolved(h, kernel)), None

        return jnp.sum(jax.lax.scan(body, x, None, length=3)[0])

    mlir.register_lowering(conv_general_dilated_p, getattr(xla, rule), platform="cpu")
    try:
        text = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile().as_text()
    finally:
        mlir.register_lowering(conv_general_dilated_p, xla._channels_last, platform="cpu")
    assert len(set(re.findall(r"dim_labels=([^,\s]+)", text))) == forms
