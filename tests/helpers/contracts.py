"""What a function takes and gives is what its annotations say, checked whenever it is called."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

__all__ = ["checked"]

# An int is a float, as for type checkers.
CONF = BeartypeConf(is_pep484_tower=True)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its types checked; one that is made anew at each call stays as it is."""
    return function if "<locals>" in function.__qualname__ else beartype(function, conf=CONF)
