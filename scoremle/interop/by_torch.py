"""A network that stays in PyTorch, called from compiled JAX programs.

PyTorch's own forward mode lacks rules for attention and normalisation, so that derivatives are
products J'v of reverse mode. A trace needs only v'Jv, and v'J'v is the same number: within it
(``numerics.within_forms``) the network has a derivative in forward mode that gives J'v for Jv.
Everywhere else it has one in reverse mode, and none in forward mode.

Arrays go by ``buffer_callback``, which hands over memory. ``pure_callback`` would make JAX arrays
of them first, and wait for a thread that waits for it.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax.custom_batching import custom_vmap
from jax.experimental.buffer_callback import ExecutionContext, buffer_callback
from jaxtyping import Array

from scoremle.core.divergence import Probes
from scoremle.core.pytree import frozen_static
from scoremle.interop.frozen import Frozen
from scoremle.types import AnyArray, Data, Labels

# x, label, condition
Inputs = tuple[AnyArray, ...]


@frozen_static
class InTorch:
    """``network(x, label, *condition)`` of a frozen module; x as the module wants it.

    ``for_forms``: it has J'v in place of the derivative Jv in x.
    """

    frozen: Frozen
    for_forms: bool = False

    def __call__(self, x: Data, label: Labels, *condition: Array) -> Data:
        inputs = (x, label, *condition)
        if self.for_forms:
            return _transposed(self.frozen, inputs)
        return _products(self.frozen, inputs, jnp.zeros((0, *x.shape), x.dtype))[0]

    @property
    def transposed(self) -> "InTorch":
        """The network with J'v in place of Jv; its values are the same."""
        return InTorch(self.frozen, for_forms=True)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _transposed(frozen: Frozen, inputs: Inputs) -> Data:
    return InTorch(frozen)(*inputs)


@_transposed.defjvp
def _transposed_jvp(
    frozen: Frozen, primals: tuple[Inputs], tangents: tuple[Inputs]
) -> tuple[Data, Data]:
    """Only x is perturbed in a trace. The derivatives for all probes are one call."""
    ((inputs,), (dx, *_)) = primals, tangents[0]

    def alone(inputs: Inputs, v: Data) -> tuple[Data, Data]:
        y, products = _products(frozen, inputs, v[None])
        return y, products[0]

    def together(size: int, batched: list, inputs: Inputs, v: Probes) -> tuple:
        if not any(batched[0]):
            return _products(frozen, inputs, v), (False, True)
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, tuple(batched))
        return jax.vmap(alone, axes)(inputs, v), (True, True)

    both = custom_vmap(alone)
    both.def_vmap(together)
    return both(inputs, dx)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _products(frozen: Frozen, inputs: Inputs, probes: Probes) -> tuple[Data, Probes]:
    """f at the inputs, and J'v in x for each of the probes."""
    return _called(frozen, frozen.products, (inputs[0], probes), inputs, probes)


def _products_forward(frozen: Frozen, inputs: Inputs, probes: Probes) -> tuple:
    return _products(frozen, inputs, probes), (inputs, probes)


def _products_backward(frozen: Frozen, kept: tuple, cotangents: tuple) -> tuple:
    inputs, probes = kept
    of_inputs, of_probes = _called(
        frozen, frozen.pull_back, (inputs, probes), inputs, probes, *cotangents
    )
    real = [jnp.issubdtype(a.dtype, jnp.floating) for a in inputs]
    return tuple(d if r else None for d, r in zip(of_inputs, real, strict=True)), of_probes


_products.defvjp(_products_forward, _products_backward)


def _called(frozen: Frozen, method: Callable, like: Any, *arguments: Any) -> Any:
    """The arrays of ``method(*arguments)``, of the shapes and types of ``like``."""

    def run(context: ExecutionContext, out: Any, *buffers: Any) -> None:
        outputs = [torch.from_dlpack(buffer) for buffer in jax.tree.leaves(out)]
        with _stream_of(context, outputs[0].device):
            found = method(*jax.tree.map(lambda a: frozen.given(torch.from_dlpack(a)), buffers))
            for output, tensor in zip(outputs, jax.tree.leaves(found), strict=True):
                output.copy_(tensor)

    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), like)
    return buffer_callback(run, shapes, vmap_method="sequential")(*arguments)


def _stream_of(
    context: ExecutionContext, device: torch.device
) -> contextlib.AbstractContextManager:
    """Runs PyTorch on JAX's CUDA stream in the block, so that JAX waits for its results."""
    if device.type == "cpu":
        return contextlib.nullcontext()
    return torch.cuda.stream(torch.cuda.ExternalStream(context.stream, device=device))
