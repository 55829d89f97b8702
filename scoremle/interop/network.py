"""A PyTorch module as a network of JAX: the way of conversion, and a check of the result.

Translated by torchax it is compiled with all around it, and has every derivative. It stays in
PyTorch where torchax is not installed or can't translate it, and where it lies on a GPU that JAX
does not have. The way and its reason are logged, and the model's repr shows them.

Either way its output and a form v'Jv are compared with PyTorch's own before it is used.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array
from torch import Tensor, nn

from scoremle.core.prediction import BETWEEN_REMEDY
from scoremle.core.pytree import frozen_pytree, static
from scoremle.errors import UserError, first_line
from scoremle.interop.by_torch import InTorch
from scoremle.interop.by_torchax import translated
from scoremle.interop.frozen import Frozen
from scoremle.numerics import within_forms
from scoremle.types import Data, Labels

logger = logging.getLogger(__name__)

By = Literal["torchax", "torch"]
LabelKind = Literal["whole", "steps", "numbers"]
# How far values and forms may be off, as a share of their size.
TOLERANCE = 1e-4
# How far a form may be from differences of the values, and the steps of these, as a share of x.
SLOPE_TOLERANCE, STEPS = 0.1, (1e-2, 1e-3, 1e-4, 1e-1)
# Numbers that a condition may have, each of which is another to a module.
KINDS: dict[Any, str] = {
    jnp.floating: "reals", jnp.integer: "whole numbers", jnp.bool_: "truth values",
}  # fmt: skip


@frozen_pytree
class _AsThere:
    """Calls a network of float32 images [b c h w] with images [b h w c]; vectors stay.

    ``way``: how it came to JAX, in words. ``takes``: of each example of a condition, the kind of
    its numbers, and the shape of a row.
    """

    network: Callable[..., Data]
    way: str = static()
    takes: tuple[tuple[str, tuple[int, ...]], ...] = static(default=())

    def __call__(self, x: Data, label: Labels, *condition: Array) -> Data:
        found = tuple(_kind_of(_in_float32(each)) for each in condition)
        if found != self.takes:
            raise UserError(
                f"the module was made for {_in_words(self.takes)}, and is called with"
                f" {_in_words(found)}"
            )
        image = x.ndim == 4
        shown = jnp.moveaxis(x, -1, 1) if image else x
        y = self.network(*map(_in_float32, (shown, label, *condition))).astype(x.dtype)
        return jnp.moveaxis(y, 1, -1) if image else y


def network_of(
    module: nn.Module,
    x: np.ndarray,
    label: np.ndarray,
    *condition: np.ndarray,
    by: By | None,
    labels: LabelKind = "numbers",
) -> Callable[..., Data]:
    """``network(x, label, *condition)`` of a module, which is checked at a few such examples.

    Args:
        module: called as ``module(x, label, *condition)``, with images [b c h w].
        x: examples, images as [b h w c].
        label: the module's time input for each.
        condition: a third argument, if it takes one.
        by: the way; None: torchax, or torch where that can't be.
        labels: what they are: whole numbers, numbers of steps that may be fractions, or other
            numbers. A module that cuts off fractions or digits is named in a warning.

    Raises UserError if the module can't be used, and for what ``by`` names and can't be done.
    """
    frozen = Frozen(module)
    shown = np.moveaxis(x, -1, 1) if x.ndim == 4 else x
    inputs = [np.ascontiguousarray(_in_float32(a)) for a in (shown, label, *condition)]
    takes = tuple(map(_kind_of, inputs[2:]))
    if labels != "whole":
        check = _check_between_steps if labels == "steps" else _check_digits
        check(frozen, *(frozen.given(torch.from_numpy(a)) for a in inputs))
    truth = _Truth(frozen, inputs)
    on_gpu_alone = frozen.device.type != "cpu" and jax.default_backend() == "cpu"
    why = "JAX has no GPU here" * (by is None and on_gpu_alone)
    if by != "torch" and not why:
        try:
            network = translated(frozen.module)
            truth.compare(network, inputs)
        except Exception as error:
            if by is not None:
                raise UserError(f"{frozen.name} can't be translated: {_line(error)}") from error
            why = _line(error)
        else:
            way = "translated to JAX by torchax"
            logger.info("%s is %s", frozen.name, way)
            return _AsThere(network, way, takes)
    _check_device(frozen)
    truth.compare(InTorch(frozen), inputs)
    way = f"in PyTorch, on {frozen.device}: {why or 'by your choice'}"
    logger.log(logging.WARNING if why else logging.INFO, "%s stays %s", frozen.name, way)
    return _AsThere(InTorch(frozen), way, takes)


class _Truth:
    """Reference values of PyTorch itself: the output, and v'J'v for random signs v.

    Raises UserError if the output is not a function of each example alone.
    """

    def __init__(self, frozen: Frozen, inputs: Sequence[np.ndarray]) -> None:
        self.name = frozen.name
        tensors = [frozen.given(torch.from_numpy(a)) for a in inputs]
        value = frozen.quietly(*tensors)
        alone = [frozen.quietly(*(a[i : i + 1] for a in tensors)) for i in range(len(value))]
        if not _close(torch.cat(alone).cpu().numpy(), value.cpu().numpy()):
            raise UserError(
                f"{self.name} gives another output in another batch, or at every call: a density"
                " needs a function of each example alone"
            )
        self.v = np.random.default_rng(0).choice([-1.0, 1.0], inputs[0].shape).astype(np.float32)
        probes = frozen.given(torch.from_numpy(self.v[None]))
        self.value, (product,) = (a.cpu().numpy() for a in frozen.products(tensors, probes))
        self.terms = _by_example(self.v * product)
        _check_derivative(frozen, tensors, self.v, product)

    def compare(self, network: Callable[..., Data], inputs: Sequence[np.ndarray]) -> None:
        """Raises UserError unless the network agrees with the module."""
        x, *more = map(jnp.asarray, inputs)
        value, jv = _push(within_forms(network), x, self.v, more)
        if not _close(np.asarray(value), self.value):
            off = np.abs(value - self.value).max()
            raise UserError(f"{self.name}: its value differs from PyTorch's by {off:.1e}")
        terms = _by_example(self.v * np.asarray(jv))
        off = np.abs(terms.sum(axis=1) - self.terms.sum(axis=1))
        if not np.all(off <= TOLERANCE * np.maximum(np.abs(self.terms).sum(axis=1), 1e-6)):
            raise UserError(f"{self.name}: its v'Jv differs from PyTorch's by {off.max():.1e}")


def _check_derivative(
    frozen: Frozen, inputs: Sequence[Tensor], v: np.ndarray, product: np.ndarray
) -> None:
    """Raises UserError where J'v by PyTorch, the ``product``, is not that of the values.

    Its component in a direction is compared with differences of v'f over several steps, of which
    one must agree: a long one may cross a kink, and a short one has the rounding of the values.
    One direction is v, as in traces; the other J'v itself, in which no terms cancel.
    """
    x, *more = inputs
    axes = tuple(range(1, x.ndim))
    size = x.square().mean(dim=axes, keepdim=True).sqrt()
    length = np.sqrt(np.mean(np.square(product), axis=axes, keepdims=True))
    for direction in (v, product / np.maximum(length, 1e-30)):
        terms = _by_example(direction * product)
        most = SLOPE_TOLERANCE * np.maximum(np.abs(terms).sum(axis=1), 1e-3)
        wrong = np.ones(len(x), bool)
        for step in STEPS:
            move = step * size * frozen.given(torch.from_numpy(direction))
            up, down = (frozen.quietly(x + sign * move, *more) for sign in (1, -1))
            slope = ((up - down) / (2 * step * size)).cpu().numpy()
            wrong &= np.abs(_by_example(v * slope).sum(axis=1) - terms.sum(axis=1)) > most
            if not wrong.any():
                break
        else:
            raise UserError(
                f"{frozen.name} has a derivative by PyTorch that is not that of its values: take"
                " detach() and no_grad() out of its forward"
            )


def _check_between_steps(frozen: Frozen, x: Tensor, label: Tensor, *condition: Tensor) -> None:
    """Warns of a module that cuts off fractions of a step; raises UserError if it takes none."""
    step = label.trunc()
    try:
        here, near, next_ = (frozen.quietly(x, step + d, *condition) for d in (0.0, 0.3, 1.0))
    except UserError as error:
        try:
            frozen.quietly(x, step.long(), *condition)
        except UserError:
            return  # it fails for another reason, which the checks of all modules report
        raise UserError(f"{error}; it takes whole steps alone: {BETWEEN_REMEDY}") from None
    if torch.equal(here, near) and not torch.equal(here, next_):
        logger.warning(
            "%s cuts off fractions of a step, which the ODE falls on: %s",
            frozen.name, BETWEEN_REMEDY,
        )  # fmt: skip


def _check_digits(frozen: Frozen, x: Tensor, label: Tensor, *condition: Tensor) -> None:
    """Warns of a module that cuts off digits of its label, as one with a table of times does."""
    here, near, far = (frozen.quietly(x, s * label, *condition) for s in (1.0, 1 + 1e-5, 0.5))
    if torch.equal(here, near) and not torch.equal(here, far):
        logger.warning(
            "%s cuts off digits of its label, so that errors are larger than stated: give a table"
            " of times whole steps, by a Discrete schedule, time_input='step' and %s",
            frozen.name, BETWEEN_REMEDY,
        )  # fmt: skip


@jax.jit
def _push(network: Callable[..., Data], x: Data, v: Data, more: Sequence[Array]) -> Any:
    return jax.jvp(lambda x: network(x, *more), (x,), (v,))


def _check_device(frozen: Frozen) -> None:
    """Raises UserError where JAX's arrays are on a GPU that PyTorch can't use."""
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        raise UserError(
            f"{frozen.name} would stay in PyTorch, which sees no GPU, and JAX is on one: install a"
            " PyTorch with CUDA, or set JAX_PLATFORMS=cpu"
        )


def _close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max()))


def _by_example(a: np.ndarray) -> np.ndarray:
    return a.reshape(len(a), -1).astype(np.float64)


def _in_float32(a: Any) -> Any:
    """Reals in float32; others as they are. Raises UserError for what is not an array."""
    if not hasattr(a, "dtype"):
        raise UserError(f"a module takes one array as its condition, not a {type(a).__name__}")
    return a.astype(np.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a


def _kind_of(condition: Any) -> tuple[str, tuple[int, ...]]:
    """The kind of a condition's numbers, in words, and the shape of its rows."""
    dtype = condition.dtype
    found = (words for kind, words in KINDS.items() if jnp.issubdtype(dtype, kind))
    if not (words := next(found, "")):
        raise UserError(f"a module takes {', '.join(KINDS.values())}, and no {dtype}")
    return words, tuple(condition.shape[1:])


def _in_words(kinds: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    words = [f"{kind} of shape {('n', *shape)}" for kind, shape in kinds]
    return f"a condition of {', '.join(words)}".replace("'", "") if words else "no condition"


def _line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == "torchax":
        return "torchax is not installed: pip install 'scoremle[torchax]'"
    if "mixed math" in str(error):
        return "it uses tensors from outside of it: make them its buffers or submodules"
    return first_line(error, named=True)
