"""A few of the cases of a test for every run, and all of them for the long one."""

from collections.abc import Container, Iterable

import pytest

__all__ = ["some"]


def some(names: str, cases: Iterable, quick: Container) -> pytest.MarkDecorator:
    """Parametrizes by all cases; those that are not ``quick`` are left to the long tests."""
    several = "," in names
    return pytest.mark.parametrize(
        names,
        [
            pytest.param(*(case if several else (case,)), id=None,
                         marks=[] if case in quick else [pytest.mark.long])
            for case in cases
        ],
    )  # fmt: skip
