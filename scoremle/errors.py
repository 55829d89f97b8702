"""Exceptions that end work early: a user's mistake, such as an unknown name, and a signal."""

import difflib
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from traceback import walk_stack
from typing import TypeVar

T = TypeVar("T")


def in_a_line(text: str) -> str:
    """Puts the text in one line: each character that is not printable becomes an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def by(shape: Iterable[int]) -> str:
    """Sizes as they are read: 32x32x3."""
    return "x".join(map(str, shape))


def in_short(texts: Sequence[str], most: int) -> str:
    """The first texts of a list, and how many more there are."""
    more = len(texts) - most
    return ", ".join(texts[:most]) + f" and {more} more" * (more > 0)


class UserError(ValueError):
    """A mistake that the user can correct: what was wrong, where, what to do, in one line.

    An argument that a function can't take is one, and so is a file that can't be read. The command
    line prints it without a traceback and exits with code 2. Control characters and ends of lines,
    as names of files may have them, become escapes.

    Example:
        >>> try:
        ...     scoremle.load("nowhere")
        ... except scoremle.UserError as error:
        ...     print(error)
        there is no folder or file nowhere, and no model of that name; there are: digits
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(in_a_line(str(text)))


class Stopped(SystemExit):
    """Exit after a signal: not an ``Exception``, so that no handler takes it for a fault.

    The exit code is 128 plus the signal's number, as shells count. ``words`` are on how the work
    goes on.
    """

    def __init__(self, signal: int, words: str = "") -> None:
        super().__init__(128 + signal)
        self.signal, self.words = signal, words


def first_line(error: BaseException, *, named: bool = False) -> str:
    """The first line of an error's message, or its type where it has none.

    Args:
        error: of whatever kind.
        named: put its type in front, but for a UserError.
    """
    lines, kind = str(error).strip().splitlines(), type(error).__name__
    if not lines:
        return kind
    return f"{kind}: {lines[0]}" if named and not isinstance(error, UserError) else lines[0]


def warn(text: str) -> None:
    """Warns at the line that called this package, rather than at one of its own.

    Args:
        text: of the warning.
    """
    names = [frame.f_globals.get("__name__", "") for frame, _ in walk_stack(sys._getframe())]
    ours = [i for i, name in enumerate(names, 1) if name.partition(".")[0] == __package__]
    warnings.warn(text, stacklevel=max(ours) + 1)


@contextmanager
def named_as(name_of: Callable[[str], str], arguments: Iterable[str]) -> Iterator[None]:
    """Renames Python arguments in a UserError of the block to the user's flags or config fields.

    An argument is named where it begins the message, before "must be", and as ``name=value``.

    Args:
        name_of: makes of ``name``, or of ``name=True``, a flag or a field of a config.
        arguments: their names.
    """
    names = "|".join(arguments)
    named = re.compile(rf"(?<![\w.-])({names})(=True\b|(?==| must be))|^({names})\b")
    try:
        yield
    except UserError as error:
        raise UserError(named.sub(lambda match: name_of(match[0]), str(error))) from None


@contextmanager
def damaged(where: object, what: str, remedy: str = "; fetch it again") -> Iterator[None]:
    """Turns whatever exception a damaged file raises in the block into a UserError.

    Args:
        where: the file.
        what: of what kind it is, in words.
        remedy: what to do, at the end of the line.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{where}: cannot be read: {error.strerror}") from error
        raise UserError(f"{where}: {what} ({first_line(error)[:80]}){remedy}") from error


@contextmanager
def needing(what: str, extra: str) -> Iterator[None]:
    """Turns an ImportError in the block into a UserError that names the extra to install.

    Args:
        what: what needs it.
        extra: its name.
    """
    try:
        yield
    except ImportError:
        needs = f"{what} needs the extra {extra}: pip install 'scoremle[{extra}]'"
        raise UserError(needs) from None


def as_flag(argument: str) -> str:
    """The flag of an argument of Python: ``--skip-bad`` of ``skip_bad=True``."""
    return "--" + argument.removesuffix("=True").replace("_", "-")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of missing memory: Python's, or XLA's."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    """Returns ``table[name]``, in upper or lower case; other names raise UserError."""
    key = name.lower()
    if key in table:
        return table[key]
    raise UserError(f"unknown {what} {name!r}; {_there(key, table)}")


def no_model(place: object, names: Iterable[str]) -> UserError:
    """The UserError for a place that does not exist and is not one of the ``names`` of models."""
    there = _there(str(place), names)
    found = str(place) or "''"
    return UserError(f"there is no folder or file {found}, and no model of that name; {there}")


def no_labels(name: str = "label") -> UserError:
    """The UserError for a label of a model without classes; ``name`` is the caller's for it."""
    return UserError(f"this model takes no class labels: leave {name} out")


def no_chain(name_of: Callable[[str], str] = str) -> UserError:
    """The UserError for the steps of a model that has none of its own.

    ``name_of`` makes of an argument's name the caller's, such as a flag.
    """
    return UserError(
        f"this model has no chain of steps: {name_of('steps')}=1000 makes one of 1000 steps; or"
        f" take {name_of('estimator')}=ode or bound"
    )


def _there(name: str, names: Iterable[str]) -> str:
    """Lists the known names, after the one that may be meant."""
    names = list(names)
    near = nearest(name, names)
    return f"did you mean {near}? " * bool(near) + f"there are: {', '.join(names)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most similar to this one; "" if none is similar."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), "")
