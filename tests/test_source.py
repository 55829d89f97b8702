"""The script that counts code: a package of three modules whose counts are known."""

from helpers.source import exported, imports, lines_of_code, longest_chain

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


def test_imports_are_those_of_the_top_unless_others_are_asked_for():
    inner = SOURCES["scoremle/a/b.py"]
    assert imports(inner, MODULES) == {"typing", "scoremle.c"}
    assert imports(inner, MODULES, top=True) == {"typing"}
    assert imports(inner, MODULES, top=True, for_types=True) == {"typing", "scoremle.c"}
    assert imports(SOURCES["scoremle/__init__.py"], MODULES) == {"scoremle.a.b"}


def test_the_longest_chain_is_of_imports_at_the_top():
    assert longest_chain(SOURCES) == ["scoremle", "scoremle.a.b"]
