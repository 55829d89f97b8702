"""Conditions of a noise prediction: pytrees of arrays, a row for each example or one for all.

A noise prediction under a condition is a function of (x, t) again.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from scoremle.core.arguments import as_array, check_examples
from scoremle.core.pytree import frozen_pytree
from scoremle.errors import UserError
from scoremle.numerics import as_pytree, check_call
from scoremle.types import AnyArray, Data, NoiseFn, Times

__all__ = ["Conditioned", "as_condition", "check_classes", "conditioned", "parted", "rows_of"]


@frozen_pytree
class Conditioned:
    """A noise prediction under a condition; with ``both``, if it predicts a variance too.

    Args:
        noise: a function of (x, t, condition).
        condition: any pytree of arrays, with a row for each example or one for all.
    """

    noise: Callable[..., Data]
    condition: Any

    def __call__(self, x: Data, t: Times) -> Float[AnyArray, "b *_d"]:
        given = x, t, self._whole(x)
        check_call(self.noise, *given)
        return self.noise(*given)

    @property
    def both(self) -> Callable[[Data, Times], tuple[Data, Data]]:
        both = self.noise.both  # type: ignore[attr-defined]
        return lambda x, t: both(x, t, self._whole(x))

    def _whole(self, x: Data) -> Any:
        return rows_of(self.condition, len(x), jnp)


def conditioned(noise: NoiseFn, condition: Any) -> NoiseFn:
    """The noise prediction under a condition; itself, where that is None.

    Args:
        noise: a function of (x, t), or of (x, t, condition).
        condition: any pytree of arrays, with a row for each example or one for all; or None.
    """
    return noise if condition is None else Conditioned(as_pytree(noise), condition)


def parted(noise: NoiseFn) -> tuple[Any, Any]:
    """The noise prediction under no condition, and its condition; None if it has none.

    Args:
        noise: as ``conditioned`` gives it.
    """
    return (noise.noise, noise.condition) if isinstance(noise, Conditioned) else (noise, None)


def as_condition(condition: Any, n: int) -> Any:
    """The arrays of a condition of ``n`` examples.

    Args:
        condition: any pytree of arrays, each with a row for each example or one for all; a number
            is one for all, and a list of numbers is an array.
        n: how many examples.

    Raises UserError for another number of rows, what are not numbers, and one that is not finite.
    """

    def checked(leaf: ArrayLike) -> Any:
        array = as_array(leaf, "condition")
        check_examples(array, "condition")
        rows, *_ = np.shape(array) or (1,)
        if rows not in (1, n):
            raise UserError(f"condition must have 1 row or {n}, not {rows}")
        return array

    return jax.tree.map(checked, condition, is_leaf=_of_numbers)


def _of_numbers(node: Any) -> bool:
    """Whether this is a list of numbers, or of such lists: an array elsewhere, too."""
    leaves = jax.tree.leaves(node) if isinstance(node, list) else []
    number = int | float | np.number | np.bool_
    return bool(leaves) and all(isinstance(leaf, number) for leaf in leaves)


def check_classes(labels: Any, classes: int) -> None:
    """Raises UserError for a label outside of 0 to ``classes`` - 1.

    Args:
        labels: a condition, or None.
        classes: how many there are.
    """
    for leaf in jax.tree.leaves(labels):
        numbers = np.asarray(leaf)
        beyond = numbers[(numbers < 0) | (numbers >= classes)]
        if beyond.size:
            raise UserError(f"condition has {beyond[0]}: classes are from 0 to {classes - 1}")


def rows_of(condition: Any, n: int, xp: ModuleType = np) -> Any:
    """A row of the condition for each of ``n`` examples, in arrays of ``xp``.

    Args:
        condition: as ``as_condition`` takes it, which raises UserError.
        n: how many examples.
        xp: numpy or jax.numpy.
    """

    def spread(given: Any) -> Any:
        array = xp.atleast_1d(xp.asarray(given))
        return xp.broadcast_to(array, (n, *array.shape[1:]))

    return jax.tree.map(spread, as_condition(condition, n))
