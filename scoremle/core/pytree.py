"""Records whose numbers are leaves: to be trained, jitted over, and described.

``jax.tree_util.register_dataclass`` calls the constructor with whatever has the structure of a
record: tracers, shapes or gradients, which no constructor should check. Here the constructor is
called only where it is written.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, TypeVar, cast, dataclass_transform

import jax
import numpy as np

from scoremle.errors import UserError

__all__ = ["describe", "frozen_pytree", "frozen_static", "known", "require", "static"]

T = TypeVar("T")


def static(*, recorded: str = "", **options: Any) -> Any:
    """A field that belongs to the structure: hashable, and not differentiated.

    Args:
        recorded: its name in files, if another; ``describe`` takes it.
        options: those of ``dataclasses.field``.
    """
    return dataclasses.field(metadata={"static": True, "recorded": recorded}, **options)


def pytree(cls: type[T]) -> type[T]:
    """Registers a dataclass: its fields are the children, but for the ``static`` ones."""
    names: dict[bool, list[str]] = {True: [], False: []}
    for field in dataclasses.fields(cast(Any, cls)):
        names[field.metadata.get("static", False)].append(field.name)

    def flatten(record: T) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children = [(jax.tree_util.GetAttrKey(n), getattr(record, n)) for n in names[False]]
        return children, tuple(getattr(record, n) for n in names[True])

    def unflatten(structure: tuple[Any, ...], children: Any) -> T:
        record = object.__new__(cls)
        for name, value in zip(names[True] + names[False], (*structure, *children), strict=True):
            object.__setattr__(record, name, value)
        return record

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def frozen_pytree(cls: Any = None, **options: bool) -> Any:
    """Makes a frozen dataclass, and registers it as ``pytree`` does.

    Args:
        cls: has the fields and methods; None: gives the decorator with these options.
        **options: those of ``dataclasses.dataclass``, such as ``eq``.
    """
    frozen = dataclasses.dataclass(frozen=True, **options)
    return pytree(frozen(cls)) if cls else lambda cls: pytree(frozen(cls))


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def frozen_static(cls: type[T]) -> type[T]:
    """Makes a frozen dataclass that belongs to the structure of a program, with all its fields.

    Args:
        cls: has the fields and methods.
    """
    return jax.tree_util.register_static(dataclasses.dataclass(frozen=True)(cls))


class _Same:
    """A thing, which equals itself alone."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)

    def __repr__(self) -> str:
        return repr(self.thing)  # a hash of a model is by it


def as_part(cls: type) -> None:
    """Makes things of a class parts of a program by their identity, as functions are.

    Args:
        cls: no pytree.
    """
    jax.tree_util.register_pytree_node(
        cls, lambda thing: ((), _Same(thing)), lambda same, _: same.thing
    )


def known(*values: Any) -> bool:
    """Whether these are numbers, and not tracers.

    Args:
        values: any pytrees.
    """
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def require(record: Any, holds: Callable[[], Any], words: str) -> None:
    """UserError with ``words`` unless it ``holds()``; nothing while its numbers are not known.

    Args:
        record: what is checked, for the error.
        holds: gives whether it is as it should be.
        words: what should be, for the error.
    """
    with jax.ensure_compile_time_eval():
        if known(record) and not _true(holds):
            raise UserError(f"{record}: {words}")


def _true(holds: Callable[[], Any]) -> bool:
    try:
        return bool(np.all(holds()))
    except (TypeError, ValueError):  # of what is not a number
        return False


def describe(value: Any) -> Any:
    """Returns the identity of a record as values of JSON: its type and all its numbers.

    A number is the shortest decimal of its float32, an array the hash of its float32: so it is the
    same before and after a record was on a device. A function is its name, and an object of a
    class of one's own is that of the class and all that it holds. Fields whose metadata have
    ``recorded`` False are left out.

    Args:
        value: a dataclass, a dict, a number, an array, a function, a word, a bool, None, or an
            object that holds such values.
    """
    if dataclasses.is_dataclass(value):
        inside = {
            field.metadata.get("recorded") or field.name: describe(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.metadata.get("recorded") is not False
        }
        return {"type": type(value).__name__, **inside}
    if isinstance(value, dict):
        return {name: describe(child) for name, child in value.items()}
    if value is None or isinstance(value, str | bool):
        return value
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "__dict__") and not isinstance(value, jax.Array):
        return {"type": describe(type(value)), **describe(vars(value))}
    array = np.asarray(value, np.float32)
    if array.ndim == 0:
        return float(str(array))
    return {"shape": list(array.shape), "sha256": hashlib.sha256(array.tobytes()).hexdigest()}
