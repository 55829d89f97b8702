"""Work that Ctrl-C stops in the middle, once."""

from collections.abc import Callable
from typing import Any

__all__ = ["StoppedOnce"]


class StoppedOnce:
    """A function that Ctrl-C stops at its call of this number, and that counts its calls."""

    def __init__(self, function: Callable, number: int) -> None:
        self.function, self.number, self.calls = function, number, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls == self.number:
            raise KeyboardInterrupt
        return self.function(*arguments)
