"""A PyTorch module translated to JAX by torchax: its parameters are leaves, as of any network.

Transposed convolutions are put right here: torchax mixes the groups of those that have some, of
several channels each. So are tables: PyTorch refuses an index beyond one, and torchax reads its
nearest row; here that is NaN.

torchax changes settings of PyTorch and of JAX when it is imported; they are put back. It gives
PyTorch's private backend the name "jax", which can't be undone.
"""

import inspect
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax.tree_util import Partial
from jaxtyping import Array
from torch import nn

# A module holds the arrays that it is traced with, and torchax has modes that it turns on and off.
_TRACING = threading.RLock()
# An environment variable and a field of jax.config.
TELEMETRY, OPTIONS = "ENABLE_RUNTIME_UPTIME_TELEMETRY", "jax_pjrt_client_create_options"
SWITCHED_OFF = "__dynamo_disable"  # in torch/_compile.py


@dataclass(frozen=True, eq=False)
class _Translated:
    """A module's function of its weights and inputs, which is translated again by a copy."""

    module: nn.Module
    function: Callable[..., Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return _function_of, (self.module,)

    def __call__(self, weights: dict[str, Array], *inputs: Array) -> Array:
        with _settings_kept(), _without_dynamo():
            return self.function(weights, inputs)


def translated(module: nn.Module) -> Partial:
    """``network(x, label, *condition)`` of a module, which from now on belongs to it.

    Raises ImportError where torchax is not installed, or does not fit this PyTorch.
    """
    function, weights = _extracted(module)
    # By the host, so that JAX is free to put them on its GPU: what torchax gives is bound to the
    # device of the module.
    weights = jax.tree.map(jnp.asarray, jax.device_get(weights))
    return Partial(_Translated(module, function), weights)


def _function_of(module: nn.Module) -> _Translated:
    return _Translated(module, _extracted(module)[0])


def _extracted(module: nn.Module) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function of a module that torchax makes, and its weights."""
    with _settings_kept():
        _import_torchax()
        import torchax
        from torchax.tensor import Environment

        environment = Environment()
        for operation, function in (
            (torch.ops.aten.convolution.default, _convolve),
            (torch.ops.aten.embedding.default, _embed),
            (torch.ops.aten.gather.default, _gather),
            (torch.ops.aten.index_select.default, _select),
            (torch.ops.aten.take.default, _take),
        ):
            environment.override_op_definition(operation, _of_tensors(environment, function))
        getitem, read = torch.Tensor.__getitem__, partial(_read, environment)
        environment.override_op_definition(getitem, read, is_view_op=True)
        weights, function = torchax.extract_jax(module, environment)
    return function, weights


def _import_torchax() -> None:
    """Imports it so that it is not an accelerator to others.

    PyTorch has one name for devices of others, and torchax takes it for JAX. DataParallel and the
    optimizers would go there. Who imported torchax before has it as it is.
    """
    if "torchax" not in sys.modules:
        from torchax import device_module

        device_module.is_available = lambda: False


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Restores at the end of the block all settings that torchax changes."""
    fast, telemetry = torch.backends.mha, os.environ.get(TELEMETRY)
    with _TRACING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fastpath, options = fast.get_fastpath_enabled(), getattr(jax.config, OPTIONS)
        # Fused attention is an operation that torchax does not have.
        fast.set_fastpath_enabled(False)
        try:
            yield
        finally:
            fast.set_fastpath_enabled(fastpath)
            jax.config.update(OPTIONS, options)
            if telemetry is None:
                os.environ.pop(TELEMETRY, None)


@contextmanager
def _without_dynamo() -> Iterator[None]:
    """Keeps PyTorch from importing its compiler, which takes two seconds, only to switch it off.

    PyTorch does that at the first call of a mode such as torchax's. It keeps the function without
    the compiler as an attribute of the mode's function: here the function itself.
    """
    from torchax.tensor import XLADispatchMode

    function: Any = inspect.unwrap(XLADispatchMode.__torch_dispatch__)
    if "torch._dynamo" in sys.modules or hasattr(function, SWITCHED_OFF):
        yield
        return
    setattr(function, SWITCHED_OFF, function)
    try:
        yield
    finally:
        delattr(function, SWITCHED_OFF)


def _of_tensors(environment: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of arrays as one of torchax's tensors."""

    def operation(*arguments: Any) -> Any:
        return environment.j2t_iso(function(*environment.t2j_iso(arguments)))

    return operation


def _embed(table: Array, rows: Array, *_: Any) -> Array:
    """Rows of a table; NaN below 0 and beyond its end."""
    return _select(table, 0, rows)


def _select(x: Array, axis: int, places: Array) -> Array:
    """torch.index_select; NaN below 0 and beyond the end."""
    return jnp.take(x, _inside(places, x.shape[axis]), axis=axis, mode="fill")


def _gather(x: Array, axis: int, places: Array, *_: Any) -> Array:
    """torch.gather, which may read fewer rows than there are; NaN below 0 and beyond the end."""
    axis %= x.ndim
    rows = (slice(None if i == axis else size) for i, size in enumerate(places.shape))
    places = _inside(places, x.shape[axis])
    return jnp.take_along_axis(x[tuple(rows)], places, axis=axis, mode="fill")


def _take(x: Array, places: Array) -> Array:
    """torch.take, whose places may be from the end; NaN beyond both ends."""
    return jnp.take(x.ravel(), places, mode="fill")


def _inside(places: Array, size: int) -> Array:
    """Places of which none is from the end: those below 0 are beyond it."""
    return jnp.where(places < 0, size, places)


def _read(environment: Any, tensor: Any, places: Any) -> Any:
    """tensor[places]; NaN where a tensor of whole numbers leads beyond the ends."""
    from torchax.ops.jtorch import getitem

    each = places if isinstance(places, tuple) else (places,)
    kinds = {one.dtype for one in each if isinstance(one, torch.Tensor)}
    if not kinds or torch.bool in kinds:
        return getitem(tensor, places)
    x, where = environment.t2j_iso((tensor, each))
    return environment.j2t_iso(x.at[where].get(mode="fill"))


def _convolve(x: Array, weight: Array, bias: Array | None, *how: Any) -> Array:
    """torch.convolution of [b c *d], by torchax group by group where that would mix the groups."""
    from torchax.ops.jaten import _aten_convolution

    *others, transposed, more, groups = how
    if not transposed or groups in (1, len(weight)):
        return _aten_convolution(x, weight, bias, *how)
    of_groups = zip(jnp.split(x, groups, 1), jnp.split(weight, groups), strict=True)
    y = [_aten_convolution(*each, None, *others, transposed, more, 1) for each in of_groups]
    whole = jnp.concatenate(y, axis=1)
    return whole if bias is None else whole + bias.reshape(-1, *[1] * (x.ndim - 2))
