"""Randomness that belongs to an image, and not to its place in a batch.

The key of image i, its index in the data set, in pass r is fold_in(fold_in(key, r), i), where the
two halves of the 64 bits of i are folded in one after the other. So a value does not depend on the
batch size, on the other images of the batch, or on how many devices share the work. Whatever is
random takes one key, or one for each example: one key means fold_in(key, place) at each place of
the batch.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Integer, Key, UInt32

from scoremle.core.arguments import shown
from scoremle.errors import UserError
from scoremle.types import Data, Keys, PRNGKey

__all__ = [
    "as_key", "as_keys", "example_keys", "fold_in", "image_keys", "key_of", "normal",
    "one_or_each", "per_example", "split",
]  # fmt: skip

IMPLEMENTATION = "threefry2x32"


def key_of(seed: int) -> PRNGKey:
    """The key of a seed, of the same generator whatever JAX's default is.

    Args:
        seed: a whole number.
    """
    return jax.random.key(seed, impl=IMPLEMENTATION)


def image_keys(key: PRNGKey, index: Integer[np.ndarray, " n"]) -> Key[Array, " n"]:
    """The keys of images by their index, a number of 64 bits, from one key.

    Args:
        key: one.
        index: [n] the images' numbers in their data set.

    Raises UserError for an array of keys in place of one.
    """
    key = as_key(key)
    index = np.asarray(index, np.uint64)
    high, low = (np.asarray(index >> np.uint64(shift), np.uint32) for shift in (32, 0))
    return _folded(key, high, low)


@jax.jit
def _folded(key: PRNGKey, high: UInt32[Array, " n"], low: UInt32[Array, " n"]) -> Key[Array, " n"]:
    """One program, where each operation by itself would be one."""
    return fold_in(fold_in(jnp.broadcast_to(key, len(high)), high), low)


def example_keys(key: Keys, n: int) -> Key[Array, " n"]:
    """A key for each of ``n`` examples: those given, or of one key by their places.

    Args:
        key: one, or [n].
        n: the number of examples.

    Raises UserError as ``one_or_each``.
    """
    key = one_or_each(key, n)
    if key.shape == ():
        return fold_in(jnp.broadcast_to(key, n), np.arange(n, dtype=np.uint32))
    return key


def one_or_each(key: Keys, n: int) -> Keys:
    """Keys with a type: one for all of ``n`` examples, or one for each.

    Args:
        key: one, or [n].
        n: the number of examples.

    Raises UserError for another number of keys, and as ``as_keys``.
    """
    key = as_keys(key)
    if key.shape not in ((), (n,)):
        raise UserError(f"{n} examples take one key or {n}, not keys of shape {key.shape}")
    return key


def as_keys(key: Any, name: str = "key") -> Keys:
    """Keys with a type, from such ones or from what ``jax.random.PRNGKey`` gives.

    Args:
        key: one, or an array of keys.
        name: of the argument, for the error.

    Raises UserError for what is neither, and for a generator other than threefry, whose draws
    would depend on the batch.
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", ())
    if dtype == np.uint32 and shape[-1:] == (2,):
        return jax.random.wrap_key_data(key, impl=IMPLEMENTATION)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise UserError(f"{name} must be one of jax.random.key(seed), not {shown(key)}")
    if (found := str(jax.random.key_impl(key))) != IMPLEMENTATION:
        such = f'jax.random.key(seed, impl="{IMPLEMENTATION}")'
        raise UserError(f"{name} must be one of {such}, not of {found}")
    return key


def as_key(key: Any) -> PRNGKey:
    """One key with a type, as ``as_keys`` gives it.

    Args:
        key: one.

    Raises UserError as ``as_keys``, and for an array of keys.
    """
    key = as_keys(key)
    if key.shape:
        raise UserError(f"key must be one, not keys of shape {key.shape}")
    return key


def fold_in(keys: Key[Array, " b"], data: ArrayLike) -> Keys:
    """``fold_in`` of each key, with the same number or one for each.

    Args:
        keys: [b].
        data: a number, or [b] of them.
    """
    return jax.vmap(jax.random.fold_in, (0, 0 if np.ndim(data) else None))(keys, data)


def split(keys: Keys, n: int = 2) -> Key[Array, "{n} *b"]:
    """``n`` keys of one key, or of each.

    Args:
        keys: one, or [b].
        n: how many to make of each.
    """
    if keys.shape == ():
        return jax.random.split(keys, n)
    return jax.vmap(lambda key: jax.random.split(key, n), out_axes=1)(keys)


def per_example(
    sampler: Callable[..., Array], keys: Key[Array, " b"], shape: tuple[int, ...], *args: object
) -> Array:
    """Draws ``sampler(key, shape, *args)`` for each example, by its own key.

    Args:
        sampler: a function such as ``jax.random.normal``.
        keys: [b].
        shape: of one draw.
        args: what ``sampler`` takes after the shape.
    """
    # Along one axis: the same numbers, which XLA compiles and draws sooner.
    size = math.prod(shape)
    return jax.vmap(lambda key: sampler(key, (size,), *args).reshape(shape))(keys)


def normal(key: Keys, like: Data) -> Data:
    """Standard normal noise for each example of ``like``, by one key or one for each.

    Args:
        key: one, or one for each example.
        like: [b *d] data, whose shape and type the noise has.
    """
    return per_example(jax.random.normal, example_keys(key, len(like)), like.shape[1:], like.dtype)
