"""Arguments of public functions: each is one that the function can take, or a line says why not.

The line names the argument. It is a ``UserError``, which is a ``ValueError`` too. Numbers that are
traced are not known yet, and pass.
"""

import math
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Shaped, UInt64

from scoremle.core.pytree import as_part, known
from scoremle.errors import UserError
from scoremle.types import Data

__all__ = [
    "as_array", "as_data", "as_index", "as_reals", "as_shape", "check_choice", "check_count",
    "check_examples", "check_kind", "check_number", "check_part", "check_seed", "shown",
]  # fmt: skip


def shown(value: Any) -> str:
    """A value as an error shows it: of an array, type and shape.

    Args:
        value: any value.
    """
    if hasattr(value, "dtype") and np.ndim(value):
        return f"{value.dtype} of shape {np.shape(value)}"
    return (repr(value) if isinstance(value, str) else str(value))[:60]


def check_count(name: str, value: Any, least: int = 1, most: float = math.inf) -> None:
    """Raises UserError unless the value is a whole number from ``least`` to ``most``.

    Args:
        name: of the argument, for the error.
        value: the one given.
        least: the least that is allowed.
        most: the greatest that is allowed.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise UserError(f"{name} must be a whole number, not {shown(value)}")
    if not least <= value <= most:
        words = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise UserError(f"{name} must be {words}, not {value}")


def check_seed(seed: Any) -> None:
    """Raises UserError unless the seed is a whole number of 32 bits.

    Args:
        seed: the value given.
    """
    check_count("seed", seed, 0, 2**32 - 1)


def check_number(name: str, value: Any, above: float = -math.inf, below: float = math.inf) -> None:
    """Raises UserError unless the value is a finite real number above and below these.

    Args:
        name: of the argument, for the error.
        value: the one given; a traced number passes.
        above: what it must be greater than.
        below: what it must be less than.
    """
    if not known(value):
        return
    kinds = int | float | np.integer | np.floating | np.ndarray | jax.Array
    one = isinstance(value, kinds) and not isinstance(value, bool) and np.ndim(value) == 0
    if not (one and math.isfinite(value)):
        raise UserError(f"{name} must be a finite number, not {shown(value)}")
    if not above < float(value) < below:
        ends = [f"above {above:g}"] if above > -math.inf else []
        ends += [f"below {below:g}"] if below < math.inf else []
        raise UserError(f"{name} must be {' and '.join(ends)}, not {value}")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raises UserError unless the value is one of these words.

    Args:
        name: of the argument, for the error.
        value: the one given.
        choices: the words that are allowed.
    """
    if not (isinstance(value, str) and value in choices):
        raise UserError(f"{name} must be one of {', '.join(choices)}, not {shown(value)}")


def check_kind(name: str, value: Any, kind: Any, such: str) -> None:
    """Raises UserError unless the value is of a kind.

    Args:
        name: of the argument, for the error.
        value: the one given.
        kind: a class, a protocol, or a union.
        such: an example, for the error.
    """
    if isinstance(value, type) or not isinstance(value, kind):
        raise UserError(f"{name} must be such as {such}, not {shown(value)}")


def check_part(name: str, value: Any, kind: Any, such: str) -> None:
    """``check_kind`` of what programs are made of: it need not be a pytree.

    Args:
        name, value, kind, such: as ``check_kind`` takes them.

    Raises UserError as ``check_kind`` does.
    """
    check_kind(name, value, kind, such)
    for leaf in jax.tree.leaves(value):
        if isinstance(leaf, kind):
            as_part(type(leaf))


def check_examples(tree: Any, what: str) -> None:
    """Raises UserError for the first row with a number that is not finite, as far as known.

    Args:
        tree: any pytree of arrays, with a row for each example; traced arrays pass.
        what: its name, for the error.
    """
    for leaf in jax.tree.leaves(tree):
        here = known(leaf) and getattr(leaf, "is_fully_addressable", True)
        if not (here and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)):
            continue
        rows = np.isfinite(np.atleast_1d(np.asarray(leaf)))
        bad = ~rows.all(axis=tuple(range(1, rows.ndim)))
        if bad.any():
            raise UserError(f"{what} has a number that is not finite, in row {bad.argmax()}")


def as_array(x: Any, name: str) -> Shaped[Array | np.ndarray, "..."]:
    """Numbers as an array of JAX or of numpy, in a type of JAX.

    Args:
        x: an array, a list of numbers, or a number.
        name: of the argument, for the error.

    Raises UserError for what is not an array, or not one of numbers, and for masked numbers.
    """
    if isinstance(x, jax.Array) or not known(x):
        return jnp.asarray(x)
    if np.ma.is_masked(x):
        raise UserError(f"{name} has masked numbers: fill them, or leave their rows out")
    try:
        array = np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} is not an array of numbers: {error}") from None
    if array.dtype.kind == "f":  # of another byte order, or longer
        return array.astype(f"f{min(array.dtype.itemsize, 8)}", copy=False)
    if not (array.dtype.kind in "biuc" or jnp.issubdtype(array.dtype, jnp.floating)):
        raise UserError(f"{name} is not an array of numbers, but of {array.dtype}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def as_reals(x: Any, name: str) -> Float[np.ndarray, "..."]:
    """Reals as an array of numpy in float64.

    Args:
        x: an array, a list of numbers, or a number.
        name: of the argument, for the error.

    Raises UserError as ``as_array``, and for complex numbers.
    """
    array = np.asarray(as_array(x, name))
    _check_not_complex(array, name)
    return np.asarray(array, np.float64)


def _check_not_complex(array: Any, name: str) -> None:
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise UserError(f"{name} has complex numbers: give real and imaginary parts apart")


def as_data(x: ArrayLike, dtype: DTypeLike | None = None, name: str = "x") -> Data:
    """``x`` as a JAX array, in ``dtype``, or in its precision there or in float32.

    A density needs more digits than 16 bits have, whatever the precision of the network. Raises
    UserError for what is not an array of reals, a number that is not finite, and a ``dtype`` that
    JAX is not set up for.

    Args:
        x: [b *d] reals.
        dtype: None: that of ``x``, or float32 if it has fewer bits.
        name: of the argument, for the error.
    """
    if dtype is not None:
        _check_dtype(dtype)
    array = as_array(x, name)
    _check_not_complex(array, name)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(
            f"{name} is {array.dtype}, and a density is of reals: encode integers first, by"
            " scoremle.Pixels(levels).encode(x, u) with noise u in [0, 1)"
        )
    if not array.ndim:
        raise UserError(f"{name} is one number: it must have a row for each example")
    check_examples(array, name)
    with np.errstate(over="ignore"):
        data = jnp.asarray(array)
        data = data.astype(jnp.promote_types(data.dtype, jnp.float32) if dtype is None else dtype)
    check_examples(data, f"{name}, in {data.dtype},")
    return data


def _check_dtype(dtype: Any) -> None:
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = jnp.dtype(object)
    if not jnp.issubdtype(found, jnp.floating):
        raise UserError(f"dtype must be one of reals, such as 'float64', not {shown(dtype)}")
    if jnp.finfo(found).bits < 32:
        raise UserError(f"dtype {found} has too few digits for a density: compute in float32")
    if jax.dtypes.canonicalize_dtype(found) != found:
        raise UserError(
            f"{found} is off in JAX: call jax.config.update('jax_enable_x64', True) at"
            " the start of the program, or within jax.enable_x64(True)"
        )


def as_index(index: Any) -> UInt64[np.ndarray, "..."]:
    """The numbers of images. Raises UserError unless they are whole and of 64 bits.

    Args:
        index: whole numbers, of any shape.
    """
    # Of a list, numpy would make floats where a number has more than 63 bits.
    array = np.asarray(index, getattr(index, "dtype", object))
    whole = array.dtype.kind in "iu" or all(
        isinstance(i, int | np.integer) and not isinstance(i, bool) for i in array.flat
    )
    if array.size and not (whole and array.min() >= 0 and array.max() < 2**64):
        raise UserError("index must be whole numbers from 0 to 2**64 - 1")
    return array.astype(np.uint64)


def as_shape(shape: Any, *, of_batch: bool = False) -> tuple[int, ...]:
    """The shape of an example, or ``of_batch`` that of several, as a tuple.

    Args:
        shape: a sequence of whole numbers.
        of_batch: whether the first is a number of examples, which may be 0.

    Raises UserError unless it is of whole numbers. There may be no examples.
    """
    try:
        sizes = tuple(shape)
    except TypeError:
        sizes = None
    if sizes is None or (of_batch and not sizes):
        raise UserError(f"shape must be a tuple of whole numbers, not {shown(shape)}")
    for axis, size in enumerate(sizes):
        check_count("each size in shape", size, 0 if of_batch and axis == 0 else 1)
    return sizes
