"""Counts and changes of source: a package of four modules whose answers are known."""

import ast

import pytest
from helpers.source import changed, exported, imports, lines_of_code, longest_chain

SOURCES = {
    "scoremle/__init__.py": '''"""Two lines
of words."""

from scoremle.a import b  # a name of a package

__all__ = ["b", *more]
''',
    "scoremle/a/__init__.py": "",
    "scoremle/a/b.py": '''from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import scoremle.c


def f():
    """Words."""
    # a comment
    text = """
# within a text
"""
    import scoremle.c
''',
    "scoremle/c.py": "import scoremle.a.b\n__all__ = ('x',)\n",
}
MODULES = {"scoremle", "scoremle.a", "scoremle.a.b", "scoremle.c"}


def test_lines_of_code_leave_out_docstrings_comments_and_blank_lines():
    assert [lines_of_code(text) for text in SOURCES.values()] == [2, 0, 7, 2]


def test_exported_names_count_another_list_as_one():
    assert [exported(text) for text in SOURCES.values()] == [2, 0, 0, 1]


def test_imports_are_those_of_the_top_unless_others_are_wanted():
    inner = SOURCES["scoremle/a/b.py"]
    assert imports(inner, MODULES) == {"typing", "scoremle.c"}
    assert imports(inner, MODULES, top=True) == {"typing"}
    assert imports(inner, MODULES, top=True, for_types=True) == {"typing", "scoremle.c"}
    assert imports(SOURCES["scoremle/__init__.py"], MODULES) == {"scoremle.a.b"}


def test_the_longest_chain_is_of_imports_at_the_top():
    assert longest_chain(SOURCES) == ["scoremle", "scoremle.a.b"]


SOURCE = """
ROWS = {'a': 1,
        'b': 2}
# kept
@final
class C:
    limit: int = 3
    @cached
    def f(self, x):
        if (x
            > self.limit):  # too many
            return x
        return 0
"""


@pytest.mark.parametrize(
    "definition, old, new, line",
    [
        ("ROWS", "'b': 2", "'b': 1", "ROWS = {'a': 1, 'b': 1}"),
        ("C.limit", "3", "4", "    limit: int = 4"),
        ("C.f", "x > self.limit", "True", "        if True:"),
        ("C", "return 0", "return x", "        return x"),
    ],
)
def test_a_change_is_found_by_its_definition_and_text(definition, old, new, line):
    found = changed(SOURCE, definition, old, new)
    assert line in found.splitlines()
    plain, before = (ast.unparse(ast.parse(text)).splitlines() for text in (found, SOURCE))
    assert len(plain) == len(before) and sum(map(str.__ne__, plain, before)) == 1


@pytest.mark.parametrize(
    "definition, old",
    [("C.f", "nowhere"), ("C.f", "x"), ("C.g", "x"), ("D", "x"), ("ROWS.a", "1")],
)
def test_a_change_that_does_not_fit_gives_none(definition, old):
    assert changed(SOURCE, definition, old, "y") is None
