"""Functions with a row for each example, compiled once: their programs are found again.

A program belongs to the shapes and types of its arrays, and to what else its arguments are made
of. Rows are filled up to a power of two, or a quarter of one where they are many, by copies of the
last one; what was found for the copies is cut off. So shapes that differ in rows alone share
programs. A row is computed from itself alone: its values stay as they are, up to rounding.

A function without parameters, such as a noise prediction that is no pytree, is part of a program
by its identity, with all that it closes over. Its programs end when it does: they keep no model
alive.

Within a program of the caller, where there are no numbers yet, a function is called as it is. A
derivative that is taken outside of one has programs, which are found again as well.
"""

import inspect
import logging
import weakref
from collections import defaultdict
from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial, PyTreeDef

from scoremle.core.pytree import known
from scoremle.devices import compiled

__all__ = ["Programs"]

logger = logging.getLogger(__name__)

Tree = Any  # any pytree
Cut = Callable[[Tree, int], Tree]
# A tree without its leaves, and the kinds of these; a whole number is its own.
Structure = tuple[PyTreeDef, tuple[str | int, ...]]
# Above so many rows, whose work is little, a step is a quarter of a power of two.
FEW = 1024
ARRAYS = jax.Array | np.ndarray | np.generic | float | complex


def _first_rows(found: Tree, n: int) -> Tree:
    return jax.tree.map(lambda leaf: leaf[:n], found)


class Programs:
    """``function(rows, *others)``, compiled. The attribute ``function`` is not.

    Args:
        function: of a tree of arrays, the first of which has a row for each example, as others may
            have, and of anything else. It gives a tree of arrays.
        cut: takes the first ``n`` examples of what it gives; by default the first rows of each.
    """

    def __init__(self, function: Callable[..., Tree], *, cut: Cut = _first_rows) -> None:
        update_wrapper(self, function)
        self.function, self._cut = function, cut
        self._programs: dict[tuple[Any, ...], _Program] = {}

    def __call__(self, rows: Tree, *others: Any) -> Tree:
        structure, arrays, fixed = _parts((rows, others))
        if not (all(map(_has_numbers, arrays)) and _is_hashable(structure)):
            return self.function(rows, *others)
        program, n, size = self._program(fixed), len(arrays[0]), _size(arrays[0])

        def filled() -> Tree:
            if structure not in program.of_any_rows:
                jax.eval_shape(lambda: self.function(_filled(rows, n, size + 1), *others))
                program.of_any_rows.add(structure)
            _, more, _ = _parts((_filled(rows, n, size), others))
            return _of_first(self._cut, program(structure, more), n)

        # What a function closes over may have rows of its own, and the numbers of its parameters
        # may be asked for: the next way does without. The last tells a mistake as it is.
        ways = {"filled": filled} if size > n else {}
        ways["compiled"] = lambda: program(structure, arrays)
        failed: set[str] = set()
        for name in [name for name in ways if name not in program.failed[structure]]:
            try:
                found = ways[name]()
                break
            except Exception as error:
                logger.info("%s can't be %s: %s", self.function.__name__, name, error)
                failed.add(name)
        else:
            found = self.function(rows, *others)
        program.failed[structure] |= failed
        return found

    def _program(self, fixed: list[Any]) -> "_Program":
        key = tuple(map(_identity, fixed))
        if key not in self._programs:
            held = [_held(thing, partial(self._programs.pop, key, None)) for thing in fixed]
            self._programs[key] = _Program(self.function, held)
        return self._programs[key]


class _Program:
    """That of some functions, for each structure.

    ``failed`` are the ways in which it can't be had, and ``of_any_rows`` has those that take one
    row more: so nothing in them, such as labels that a function closes over, has as many as a
    program by chance.
    """

    def __init__(self, function: Callable[..., Tree], held: list[Callable[[], Any]]) -> None:
        def run(structure: Structure, arrays: list[Any]) -> Tree:
            rows, others = _whole(structure, arrays, [thing() for thing in held])
            return function(rows, *others)

        # Derivatives are traced around the second.
        self._alone = compiled(run, static_argnums=0)
        self._within = jax.jit(run, static_argnums=0)
        self.failed: defaultdict[Structure, set[str]] = defaultdict(set)
        self.of_any_rows: set[Structure] = set()

    def __call__(self, structure: Structure, arrays: list[Any]) -> Tree:
        return (self._alone if known(arrays) else self._within)(structure, arrays)


def _parts(tree: Tree) -> tuple[Structure, list[Any], list[Any]]:
    """The structure, the arrays, and all else: functions without parameters, and other things."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=_is_bare)
    kinds = tuple(map(_kind, leaves))
    arrays, functions, things = (
        [leaf for leaf, kind in zip(leaves, kinds, strict=True) if kind == wanted]
        for wanted in ("array", "function", "thing")
    )
    return (treedef, kinds), arrays, [*(leaf.func for leaf in functions), *things]


def _whole(structure: Structure, arrays: list[Any], fixed: list[Any]) -> Tree:
    """The tree of these parts."""
    treedef, kinds = structure
    count = kinds.count("function")
    left = {
        "array": iter(arrays),
        "function": map(Partial, fixed[:count]),
        "thing": iter(fixed[count:]),
    }
    return treedef.unflatten(next(left[kind]) if kind in left else kind for kind in kinds)


def _is_bare(node: Any) -> bool:
    return isinstance(node, Partial) and not (node.args or node.keywords)


def _kind(leaf: Any) -> str:
    return "function" if _is_bare(leaf) else "array" if isinstance(leaf, ARRAYS) else "thing"


def _identity(thing: Any) -> Any:
    """Equal for what is the same; a method is made anew where it is taken."""
    return (id(thing.__self__), thing.__func__) if inspect.ismethod(thing) else id(thing)


def _held(thing: Any, ended: Callable[[], object]) -> Callable[[], Any]:
    """Gives the thing as long as others keep it, and tells its end; keeps it if none can tell."""
    weak = weakref.WeakMethod if inspect.ismethod(thing) else weakref.ref
    try:
        return weak(thing, lambda _: ended())
    except TypeError:
        return lambda: thing


def _has_numbers(array: Any) -> bool:
    """Not so where a program is traced. Derivatives of numbers have them."""
    return not isinstance(array, jax.core.Tracer) or array.to_concrete_value() is not None


def _is_hashable(structure: Structure) -> bool:
    try:
        hash(structure)
    except TypeError:
        return False
    return True


def _size(array: Any) -> int:
    """The rows of its program: as they are where there are none, and where devices share them."""
    n = len(array)
    on_host = isinstance(array, np.ndarray | jax.core.Tracer)
    if n == 0 or not (on_host or len(array.devices()) == 1):
        return n
    power = 1 << (n - 1).bit_length()
    step = power if n <= FEW else power // 8
    return -(-n // step) * step


@partial(jax.jit, static_argnums=(1, 2))
def _filled(rows: Tree, n: int, size: int) -> Tree:
    """The arrays of ``n`` rows with ``size`` of them; others stay."""

    def fill(leaf: Any) -> Any:
        if leaf.shape[:1] != (n,):
            return leaf
        return jnp.concatenate([leaf, jnp.broadcast_to(leaf[-1:], (size - n, *leaf.shape[1:]))])

    return jax.tree.map(fill, rows)


@partial(jax.jit, static_argnums=(0, 2))
def _of_first(cut: Cut, found: Tree, n: int) -> Tree:
    return cut(found, n)
