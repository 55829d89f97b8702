"""The one exception that a user's mistake raises, and the commonest such mistake: a name."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

__all__ = ["UserError", "choose"]

T = TypeVar("T")


class UserError(Exception):
    """A mistake that the user can mend: what was wrong, where, what to do, in one line.

    The command line prints it without a traceback and exits with code 2.

    Example:
        >>> try:
        ...     scoremle.load("nowhere")
        ... except scoremle.UserError as error:
        ...     print(error)
        there is no folder or file nowhere, and no model of that name; there are: digits
    """


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    """``table[name]``, in upper or lower case; or one line with the names there are."""
    key = name.lower()
    if key in table:
        return table[key]
    near = difflib.get_close_matches(key, table, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"unknown {what} {name!r}; {hint}there are: {', '.join(table)}")
