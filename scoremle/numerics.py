"""Small numerical helpers: stable logarithms, sums and broadcasts over the data axes, checks."""

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Shaped

from scoremle.devices import in_any_process, of_this_process
from scoremle.errors import UserError
from scoremle.types import AnyArray, Data, NoiseFn, PerExample, Times


def floating(t: ArrayLike) -> Times:
    """Numbers as an array of floats, in its precision there."""
    t = jnp.asarray(t)
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)


def power_of_two(n: int) -> int:
    """The least power of two that is not below ``n``, at least 1."""
    return 1 << max(n - 1, 0).bit_length()


def log1mexp(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """log(1 - e^-x) for x > 0, without the loss of digits of 1 - e^-x near x = 0."""
    return jnp.log(-jnp.expm1(-x))


def expand(s: Shaped[Array, "..."], like: Data) -> Shaped[Array, "..."]:
    """Appends axes of length one to ``s``, so that it multiplies ``like`` example by example."""
    return jnp.reshape(s, s.shape + (1,) * (like.ndim - s.ndim))


def varies(x: Shaped[np.ndarray, "n *d"]) -> Bool[np.ndarray, "*d"]:
    """Whether two examples differ, in each dimension: a standard deviation may be of rounding."""
    return np.max(x, axis=0) > np.min(x, axis=0)


def dims_of(x: Shaped[AnyArray, "b *d"]) -> int:
    """Dimensions of one example; there may be none."""
    return math.prod(x.shape[1:])


def permutation(size: int, *key: int) -> Integer[np.ndarray, " size"]:
    """A permutation of ``range(size)`` that depends on the key alone, on any numpy version."""
    return np.argsort(random_words(size, *key), kind="stable")


def random_words(size: int, *key: int) -> Integer[np.ndarray, " size"]:
    """Raw 64-bit words of PCG64, whose stream numpy promises to keep."""
    return np.random.PCG64(np.random.SeedSequence(key)).random_raw(size)


def sum_data(x: Data) -> PerExample:
    """Sum over every axis but the batch's."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def sum_over(s: Float[AnyArray, "b *_d"], x: Data) -> PerExample:
    """Sum over the data axes of ``x``; ``s`` has a number for each example, or for each entry.

    Along an axis of length one it has the same number for all.
    """
    return dims_of(x) * s if s.ndim == 1 else sum_data(jnp.broadcast_to(expand(s, x), x.shape))


def mean_square(x: Data) -> PerExample:
    """Mean of squares over every axis but the batch's."""
    return jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim)))


def compensated_add(total: Array, lost: Array, term: Array) -> tuple[Array, Array]:
    """One step of Kahan's sum: ``total + term``, and the digits that the addition lost.

    A log-density of several thousand nats is wanted to a tenth of a nat after many float32 steps.
    """
    term = term - lost
    new = total + term
    return new, (new - total) - term


def not_finite(tree: Any) -> str:
    """The name of the first array in a tree with a number that is not finite; "" if none has."""
    named = jax.tree_util.tree_leaves_with_path(tree)
    bad = in_any_process(np.array([_has_not_finite(leaf) for _, leaf in named], bool))
    if not bad.any():
        return ""
    return jax.tree_util.keystr(named[bad.argmax()][0], simple=True, separator="/")


def _has_not_finite(leaf: Any) -> bool:
    """Whether this process's part of an array has a number that is not finite."""
    reals = jnp.issubdtype(getattr(leaf, "dtype", float), jnp.inexact)
    return reals and not all(np.isfinite(part).all() for part in of_this_process(leaf))


def check_finite(params: Any, where: object) -> None:
    """UserError that names the first array of parameters with a number that is not finite."""
    if name := not_finite(params):
        raise UserError(
            f"{where}: its parameters are not all finite numbers (the first that are not: {name});"
            " take another checkpoint, or train anew"
        )


def all_finite(x: Data) -> Bool[Array, " b"]:
    """Whether each example has finite numbers alone."""
    return jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))


def check_finite_values(
    finite: Bool[Array | np.ndarray, " b"], numbers: Integer[np.ndarray, " b"], what: str
) -> None:
    """Raises UserError if values of examples are not finite; it names the first by its number."""
    bad = ~np.asarray(finite)
    if bad.any():
        raise UserError(
            f"{what} {numbers[bad.argmax()]} is not a finite number: check the model's parameters,"
            " and its prediction, time_input and pixels"
        )


def typical(errors: Float[Array | np.ndarray, " b"]) -> str:
    """Root mean square of errors, in words."""
    size = np.sqrt(np.mean(np.square(errors)))
    return "unknown" if np.isnan(size) else f"{size:.2g}"


def as_pytree(noise: NoiseFn, name: str = "noise") -> NoiseFn:
    """A noise prediction that may be an argument of a compiled function.

    A bare callable belongs to the program, and so do the arrays that it closes over. Raises
    UserError, with the ``name`` of the argument, for what is not a function.
    """
    check_function(name, noise)
    bare = jax.tree_util.all_leaves([noise])
    return jax.tree_util.Partial(noise) if bare else noise


def check_function(name: str, value: Any) -> None:
    """Raises UserError for what is not a function, with the ``name`` of the argument."""
    if not callable(value):
        raise UserError(f"{name} must be a function, not a {type(value).__name__}")


def predict(noise: NoiseFn, x: Data, t: Times) -> Data:
    """eps(x, t), in the precision of ``x``. Of no examples, the network is not called.

    Raises UserError as ``output_of``.
    """
    if len(x) == 0:
        return jnp.zeros_like(x)
    found = output_of(noise, x, t)
    return found.astype(x.dtype)


def output_of(function: Any, x: Data, *others: Any, channels: int = 1) -> Float[AnyArray, "b *_d"]:
    """The output of a function of ``x`` and others.

    Raises UserError, which names the function, where it does not take so many arguments, and for
    what is not an array of reals of the shape of ``x``, times so many channels: other shapes would
    be broadcast, and whole numbers have no derivative.
    """
    check_call(function, x, *others)
    output = function(x, *others)
    shape, wanted = getattr(output, "shape", None), x.shape
    if channels > 1:
        wanted = (*wanted[:-1], channels * wanted[-1])
    if shape is None:
        gives = "None" if output is None else f"a {type(output).__name__}"
    elif shape != wanted:
        gives = f"shape {shape}"
    elif not jnp.issubdtype(output.dtype, jnp.floating):
        gives = str(output.dtype)
    else:
        return output
    raise UserError(
        f"{_named(function)} gives {gives} where x has {x.shape}: it must give an array of reals"
        f" of shape {wanted}"
    )


def check_call(function: Any, *arguments: Any, **named: Any) -> None:
    """Raises UserError for a function that does not take these arguments, as far as is known."""
    try:
        inspect.signature(function).bind(*arguments, **named)
    except TypeError as error:
        words = " and ".join([f"{len(arguments)} arguments", *named])
        raise UserError(f"{_named(function)} is called with {words}: {error}") from None
    except ValueError:  # one of C has no signature
        return


def _named(function: Any) -> str:
    """A function, or the one that is within others, by its name, file and line."""
    while not hasattr(function, "__code__"):
        names = "func", "network", "noise", "__wrapped__"
        within = [name for name in names if hasattr(function, name)]
        if not within:
            return f"the {type(function).__name__}"
        function = getattr(function, within[0])
    code = function.__code__
    return f"{code.co_name} ({code.co_filename}, line {code.co_firstlineno})"


def predict_ranged(noise: NoiseFn, x: Data, t: Times) -> tuple[Data, Data | None]:
    """``predict``, and v of a network with a learned range of variances: None of another.

    Such a noise prediction has ``both``, which gives the two.
    """
    if not hasattr(noise, "both"):
        return predict(noise, x, t), None
    found, v = noise.both(x, t) if len(x) else (x, x)
    return found.astype(x.dtype), v


def within_forms(noise: NoiseFn) -> NoiseFn:
    """The noise prediction in a form that has v'Jv, where J is its derivative in x.

    A part of it that has no derivative in forward mode (a network of another library) offers
    ``transposed``: the same values, and J'v for Jv. The form is the same number, as long as all
    around such a part multiplies examples by scalars.
    """

    def has(node: object) -> bool:
        return hasattr(node, "transposed")

    return jax.tree.map(lambda node: node.transposed if has(node) else node, noise, is_leaf=has)
