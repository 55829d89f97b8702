"""Functions of models, or with a row for each example, compiled once: programs are found again.

A program belongs to the shapes and types of its arrays, and to what else its arguments are made
of. ``Programs`` fill rows up to a power of two, or a quarter of one where they are many, by copies
of the last one; what was found for the copies is cut off. So shapes that differ in rows alone
share programs. A row is computed from itself alone: its values stay as they are, up to rounding.

A function, such as a noise prediction that is not a pytree, is part of a program by its identity,
with all that it closes over. Its programs end when it does: they keep no model alive. A
``functools.partial`` is by its function and its options, as far as these have a hash.

Within a program of the caller, where there are no numbers yet, a function is called as it is. A
derivative that is taken outside of one has programs, which are found again as well.
"""

import inspect
import logging
import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial, PyTreeDef

from scoremle.core.pytree import known
from scoremle.numerics import power_of_two
from scoremle.xla import compiled

__all__ = ["OfModels", "Programs"]

logger = logging.getLogger(__name__)

Tree = Any  # any pytree
Cut = Callable[[Tree, int], Tree]
# The kinds of leaves: what is an argument of a program, and what is a part of it by its identity,
# such as a function. Any other is a part by its value, such as a whole number, and its own kind.
ARRAY, THING = object(), object()
# A tree without its leaves, and the kinds of these.
Structure = tuple[PyTreeDef, tuple[Any, ...]]
# Above so many rows, whose work is little, a step is a quarter of a power of two.
FEW = 1024
ARRAYS = jax.Array | np.ndarray | np.generic | float | complex
# What JAX puts around a functools.partial in its own.
SHIM: Any = type(Partial(partial(print)).func)


def _first_rows(found: Tree, n: int) -> Tree:
    return jax.tree.map(lambda leaf: leaf[:n], found)


class OfModels:
    """A compiled function: a program for each kind of arguments, which is made when first called.

    Its attribute ``function`` is the function that was given, which is not compiled.

    Args:
        function: of models, arrays, and of anything else. It gives a tree of arrays.
    """

    def __init__(self, function: Callable[..., Tree]) -> None:
        update_wrapper(self, function)
        self.function = function
        self._programs: dict[tuple[Any, ...], _Program] = {}

    def __call__(self, *arguments: Any, **named: Any) -> Tree:
        program, given, structure = self.parted(*arguments, **named)
        return program(*given, **structure)

    def parted(self, *arguments: Any, **named: Any) -> tuple["_Program", tuple[Any], dict]:
        """The program for ``arguments`` and ``named`` ones, and its own: arrays and a structure.

        The structure is all else that the arguments are made of. It holds no model.
        """
        structure, arrays, things = _parts((arguments, named))
        return self._program(things), (arrays,), {"structure": structure}

    def _program(self, things: list[Any]) -> "_Program":
        key = tuple(map(_identity, things))
        if key not in self._programs:
            held = [_held(thing, partial(self._programs.pop, key, None)) for thing in things]
            self._programs[key] = _Program(self.function, held)
        return self._programs[key]


class Programs(OfModels):
    """A compiled ``function(rows, *others)``, whose rows are filled up to those of a program.

    Args:
        function: of a tree of arrays, the first of which has a row for each example, as others may
            have, and of anything else. It gives a tree of arrays.
        cut: takes the first ``n`` examples of what it gives; by default the first rows of each.
    """

    def __init__(self, function: Callable[..., Tree], *, cut: Cut = _first_rows) -> None:
        super().__init__(function)
        self._cut = jax.jit(cut, static_argnums=1)

    def __call__(self, rows: Tree, *others: Any) -> Tree:
        structure, arrays, things = _parts(((rows, *others), {}))
        if not (all(map(_has_numbers, arrays)) and _is_hashable(structure)):
            return self.function(rows, *others)
        program, n, size = self._program(things), len(arrays[0]), _size(arrays[0])

        def filled() -> Tree:
            _, more, _ = _parts(((_filled(rows, n, size), *others), {}))
            return self._cut(program(more, structure=structure), n)

        # What a function closes over may have rows of its own, and it may need the
        # numbers of its parameters: the next way is without. The last raises a mistake as it is.
        ways = {"filled": filled} if size > n and self.takes_any_rows(rows, *others) else {}
        ways["compiled"] = lambda: program(arrays, structure=structure)
        failed = program.failed[structure, tuple(map(np.shape, arrays))]
        impossible = set[str]()
        for name in [name for name in ways if name not in failed]:
            try:
                found = ways[name]()
                break
            except jax.errors.JaxRuntimeError:
                raise  # the program is there: what went wrong when it ran may not do so again
            except Exception as error:
                logger.debug("%s can't be %s: %s", self.function.__name__, name, error)
                impossible.add(name)
        else:
            found = self.function(rows, *others)
        failed |= impossible
        return found

    def takes_any_rows(self, rows: Tree, *others: Any) -> bool:
        """Whether the function takes one row more than its program has.

        It does not where something beside the rows has a row for each example, such as labels
        that a function closes over. One row more, since these may have as many as the program.

        Args:
            rows: as the function takes them.
            others: what it takes after them.
        """
        structure, arrays, things = _parts(((rows, *others), {}))
        n, size = len(arrays[0]), _size(arrays[0])
        found = self._program(things).takes_any_rows
        case = structure, size, tuple(map(np.shape, _parts(others)[1]))
        if case not in found:
            try:
                jax.eval_shape(lambda: self.function(_filled(rows, n, size + 1), *others))
                found[case] = True
            except Exception as error:
                logger.debug("%s does not take any rows: %s", self.function.__name__, error)
                found[case] = False
        return found[case]


class _Program:
    """A compiled function with the things among its arguments; it takes the other parts of these.

    ``failed`` are the ways in which a call can't be made, by structure and shapes of arrays.
    ``takes_any_rows`` is by structure, by how many rows the program has, and by the shapes of
    the arguments beside the rows.
    """

    def __init__(self, function: Callable[..., Tree], held: list[Callable[[], Any]]) -> None:
        def run(arrays: list[Any], structure: Structure) -> Tree:
            arguments, named = _whole(structure, arrays, [thing() for thing in held])
            return function(*arguments, **named)

        # Derivatives are traced around the second.
        self._alone = compiled(run, static_argnames="structure")
        self._within = jax.jit(run, static_argnames="structure")
        self.lower = self._alone.lower
        self.failed: defaultdict[tuple[Any, ...], set[str]] = defaultdict(set)
        self.takes_any_rows: dict[tuple[Any, ...], bool] = {}

    def __call__(self, arrays: list[Any], *, structure: Structure) -> Tree:
        return (self._alone if known(arrays) else self._within)(arrays, structure=structure)


class _Partial(NamedTuple):
    """A ``jax.tree_util.Partial`` whose function is a leaf, too."""

    function: Any
    arguments: Tree
    keywords: Tree


class _Bound(_Partial):
    """A ``functools.partial``, whose options are parts of a program by their values."""


@dataclass(frozen=True)
class _Option:
    """A number that is part of a program, and its type: 1 equals True, and programs differ."""

    value: Any
    kind: type


def _parts(tree: Tree) -> tuple[Structure, list[Any], list[Any]]:
    """Takes a tree apart: its structure, its arrays, and its things."""
    leaves, treedef = jax.tree.flatten(_opened(tree))
    kinds = tuple(map(_kind, leaves))
    arrays, things = (
        [leaf for leaf, kind in zip(leaves, kinds, strict=True) if kind is wanted]
        for wanted in (ARRAY, THING)
    )
    return (treedef, kinds), arrays, things


def _whole(structure: Structure, arrays: list[Any], things: list[Any]) -> Tree:
    """Puts a tree together of what ``_parts`` gave."""
    treedef, kinds = structure
    left = {ARRAY: iter(arrays), THING: iter(things)}
    return _closed(treedef.unflatten(next(left.get(kind, iter([kind]))) for kind in kinds))


def _opened(tree: Tree) -> Tree:
    def opened(node: Any) -> Any:
        if not isinstance(node, partial):
            return _opened(node.fun) if isinstance(node, SHIM) else node
        parts = _opened((node.func, node.args, node.keywords))
        if isinstance(node, Partial):
            return _Partial(*parts)
        if any(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(parts)):
            return node  # by its identity: arrays have no hash
        return _Bound(*jax.tree.map(_option, parts))

    return jax.tree.map(opened, tree, is_leaf=lambda node: isinstance(node, partial))


def _option(leaf: Any) -> Any:
    return _Option(leaf, type(leaf)) if isinstance(leaf, int | ARRAYS) else leaf


def _closed(tree: Tree) -> Tree:
    def closed(node: Any) -> Any:
        if not isinstance(node, _Partial):
            return node.value if isinstance(node, _Option) else node
        function, arguments, keywords = _closed(tuple(node))
        kind = partial if isinstance(node, _Bound) else Partial
        return kind(function, *arguments, **keywords)

    return jax.tree.map(closed, tree, is_leaf=lambda node: isinstance(node, _Partial))


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, ARRAYS):
        return ARRAY
    # Methods are equal if their owner is the same object.
    by_identity = inspect.ismethod(leaf) or type(leaf).__eq__ is object.__eq__
    return THING if by_identity or not _is_hashable(leaf) else _option(leaf)


def _identity(thing: Any) -> Any:
    """Identifies an object. Python makes a new object of a method each time it is looked up."""
    return (id(thing.__self__), thing.__func__) if inspect.ismethod(thing) else id(thing)


def _held(thing: Any, ended: Callable[[], object]) -> Callable[[], Any]:
    """A function that gives the thing, which it keeps alive only if that has no weak references.

    ``ended`` is called when the thing ends.
    """
    weak = weakref.WeakMethod if inspect.ismethod(thing) else weakref.ref
    try:
        return weak(thing, lambda _: ended())
    except TypeError:
        return lambda: thing


def _has_numbers(array: Any) -> bool:
    """Whether an array has numbers: not in a traced program, but in derivatives of numbers."""
    return not isinstance(array, jax.core.Tracer) or array.to_concrete_value() is not None


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _size(array: Any) -> int:
    """The number of rows of the program that takes an array of some rows.

    It is that of the array where this has none, and where several devices share it.
    """
    n = len(array)
    on_host = isinstance(array, np.ndarray | jax.core.Tracer)
    if n == 0 or not (on_host or len(array.devices()) == 1):
        return n
    power = power_of_two(n)
    step = power if n <= FEW else power // 8
    return -(-n // step) * step


@partial(jax.jit, static_argnums=(1, 2))
def _filled(rows: Tree, n: int, size: int) -> Tree:
    """The rows with ``size`` in place of ``n``, by copies of the last; arrays of others stay."""

    def fill(leaf: Any) -> Any:
        if leaf.shape[:1] != (n,):
            return leaf
        return jnp.concatenate([leaf, jnp.broadcast_to(leaf[-1:], (size - n, *leaf.shape[1:]))])

    return jax.tree.map(fill, rows)
