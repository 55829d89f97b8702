"""Checks at each call that a function takes and gives what its annotations say.

jaxtyping's import hook marks all functions of the package. Its own decorator would check each
argument twice, and functions that are made anew at each call: a tenth of the tests' time.
"""

import contextlib
import functools
import typing
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

__all__ = ["install", "unchecked"]

# An int is a float, as for type checkers.
CONF = BeartypeConf(is_pep484_tower=True)

_scoped = jaxtyping.jaxtyped
_off = False


def install() -> None:
    """Has the functions of the package checked; to be called before anything of it is imported."""
    jaxtyping.jaxtyped = lambda typechecker: _marked
    jaxtyping.install_import_hook("scoremle", None)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Lets functions take whatever they are given, for the length of the context."""
    global _off
    _off = True
    try:
        yield
    finally:
        _off = False


def _marked(thing: Any) -> Any:
    if not isinstance(thing, type):
        return _checked(thing)
    if "__dataclass_fields__" in vars(thing):
        thing.__init__ = _checked(thing.__init__)
    return thing


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its types checked; one that is made anew at each call stays as it is."""
    if "<locals>" in function.__qualname__:
        return function
    # Most of the package's functions are not called in one process: a check is made when needed.
    typed = functools.cache(lambda: _typed(function))

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return (function if _off else typed())(*args, **kwargs)

    return called


def _typed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which checks the types of what it takes and gives."""
    hints = {name: _known(hint, function) for name, hint in function.__annotations__.items()}
    function.__annotations__ = hints
    typed = beartype(function, conf=CONF)
    return _scoped(typed, typechecker=None) if any(map(_has_shape, hints.values())) else typed


def _known(hint: Any, function: Callable[..., Any]) -> Any:
    """The type that a hint names; Any where it is imported for type checkers alone."""
    alone = SimpleNamespace(__annotations__={"": hint})
    try:
        return typing.get_type_hints(alone, function.__globals__, include_extras=True)[""]
    except NameError:
        return Any


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, type):
        return issubclass(hint, jaxtyping.AbstractArray)
    return any(map(_has_shape, typing.get_args(hint)))
