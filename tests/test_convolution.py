"""Values and derivatives are those of JAX's own convolution, in the form of XLA's library."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoremle.xla import convolve

# Name: window, padding.
CASES: dict[str, tuple] = {
    "3x3": ((3, 3), "SAME"),
    "even": ((2, 4), "SAME"),
    "1x1": ((1, 1), [(0, 0), (0, 0)]),
    "uneven padding": ((3, 3), [(0, 2), (3, 1)]),
    "cropped": ((2, 3), [(-1, 0), (1, -1)]),
    "along a line": ((3,), [(1, 1)]),
}
AXES = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC")}


def case(name):
    window, padding = CASES[name]
    keys = jax.random.split(jax.random.key(0), 4)
    x, dx = jax.random.normal(keys[0], (2, 4, *(7, 6)[: len(window)], 3))
    kernel, dkernel = jax.random.normal(keys[1], (2, *window, 3, 5))
    strides, axes = (1,) * len(window), AXES[len(window)]

    def ours(x, kernel):
        return convolve(x, kernel, strides, padding, dimension_numbers=axes)

    def theirs(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=axes)

    return (x, kernel), (dx, dkernel), ours, theirs


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_of_both_kinds_and_orders_are_those_of_jax(x64, name):
    """A gradient, what it changes along a direction, and the gradient of a forward derivative."""
    given, along, ours, theirs = case(name)

    def found(convolved):
        def loss(*given):
            return jnp.sum(jnp.sin(convolved(*given)))

        def slope(*given):
            return jax.jvp(loss, given, along)[1]

        gradient = jax.grad(loss, (0, 1))
        return convolved(*given), jax.jvp(gradient, given, along), jax.grad(slope, (0, 1))(*given)

    jax.tree.map(close, *(jax.jit(found, static_argnums=0)(each) for each in (ours, theirs)))


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (1, 2)], ids=["images", "kernels", "both"])
def test_many_at_once(x64, axes):
    given, _, ours, theirs = case("3x3")
    several = [
        one if axis is None else jnp.stack([one, -one, one[::-1]], axis)
        for one, axis in zip(given, axes, strict=True)
    ]

    def gradients(convolved):
        def loss(*given):
            return jnp.sum(jnp.sin(convolved(*given)))

        return jax.vmap(jax.value_and_grad(loss, (0, 1)), axes)(*several)

    jax.tree.map(close, gradients(ours), gradients(theirs))


@pytest.mark.parametrize(
    "options",
    [{"strides": (2, 2)}, {"lhs_dilation": (2, 2)}, {"rhs_dilation": (1, 2)},
     {"feature_group_count": 3}],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_others_are_those_of_jax(options):
    groups = options.get("feature_group_count", 1)
    x, kernel = jnp.ones((1, 6, 6, 3)), jnp.ones((3, 3, 3 // groups, 6))
    options = {"dimension_numbers": AXES[2]} | options
    given = (x, kernel, options.pop("strides", (1, 1)), [(0, 0), (0, 0)])
    np.testing.assert_array_equal(
        convolve(*given, **options), jax.lax.conv_general_dilated(*given, **options)
    )


@pytest.mark.parametrize(("which", "forms"), [(0, 1), (1, 3)], ids=["ours", "those of JAX"])
def test_in_a_loop_gradients_are_in_the_form_of_the_library(which, forms):
    """XLA brings none into it there: of JAX's three convolutions, two have forms of their own."""
    (x, kernel), _, *both = case("3x3")
    kernel = kernel[..., :3]  # as many channels as x has

    def loss(x, kernel):
        def body(h, _):
            return jnp.tanh(both[which](h, kernel)), None

        return jnp.sum(jax.lax.scan(body, x, None, length=3)[0])

    text = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile().as_text()
    assert len(set(re.findall(r"dim_labels=([^,\s]+)", text))) == forms
