"""What ends work before its end: a user's mistake, the commonest of which is a name; a signal."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

__all__ = ["Stopped", "UserError", "choose"]

T = TypeVar("T")


class UserError(Exception):
    """A mistake that the user can mend: what was wrong, where, what to do, in one line.

    The command line prints it without a traceback and exits with code 2.
    """


class Stopped(Exception):
    """A signal ended the work; what was done is saved, and the user was told.

    The command line exits with 128 plus the signal's number, as shells count.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    """``table[name]``, in upper or lower case; or one line with the names there are."""
    key = name.lower()
    if key in table:
        return table[key]
    near = difflib.get_close_matches(key, table, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"unknown {what} {name!r}; {hint}there are: {', '.join(table)}")
