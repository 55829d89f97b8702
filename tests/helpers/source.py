"""The package's source as its syntax trees show it: imports, docstrings, sizes, wrong changes.

Needs the standard library alone. A module is named by its file: ``scoremle/core/sde.py``.
"""

import ast
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import TypeGuard

from helpers.places import ROOT

__all__ = [
    "SOURCES", "changed", "defined", "described", "dotted", "exported", "imports",
    "lines_of_code", "listed", "longest_chain", "matches", "names_taken", "nodes", "undocumented",
]  # fmt: skip

SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in sorted((ROOT / "scoremle").rglob("*.py"))
}
_Described = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


# The syntax tree of a module, to be read by all that ask for it.
tree = cache(ast.parse)


@cache
def nodes(text: str) -> list[ast.AST]:
    """The nodes of a module's syntax tree."""
    return [*ast.walk(tree(text))]


def dotted(file: str) -> str:
    """The dotted name of a module: scoremle.core.sde."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(
    text: str, modules: Collection[str], *, top: bool = False, for_types: bool = False
) -> set[str]:
    """Dotted names of the modules that a file imports: anywhere, or at its top alone.

    ``top``: only what is imported together with the file; ``for_types``: and what type checkers
    see, under ``if TYPE_CHECKING``. A name that a module of the package has counts as that module.
    """
    names: set[str] = set()
    for node in _at_the_top(tree(text), for_types) if top else nodes(text):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "a relative import hides where it points"
            of_package = {f"{node.module}.{alias.name}" for alias in node.names} & set(modules)
            names |= of_package or {node.module}
    return names


def _at_the_top(module: ast.Module, for_types: bool) -> Iterator[ast.stmt]:
    for node in module.body:
        yield node
        if for_types and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from node.body


def names_taken(text: str, modules: Collection[str]) -> set[str]:
    """Dotted names that a text takes from modules of the package: by import, or written out."""
    names = set(re.findall(r"scoremle(?:\.\w+)+", text))
    try:
        python = nodes(text)
    except SyntaxError:  # a document
        return names
    aliases = {}
    for node in python:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names.add(full := f"{node.module}.{alias.name}")
                if full in modules:
                    aliases[alias.asname or alias.name] = full
    for node in python:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.add(f"{aliases.get(node.value.id)}.{node.attr}")
    return names


def described(text: str) -> Iterator[_Described]:
    """The module, and the classes and functions in it, that have a docstring."""
    for node in nodes(text):
        if isinstance(node, _Described) and ast.get_docstring(node) is not None:
            yield node


def changed(text: str, definition: str, old: str, new: str) -> str | None:
    """The module with ``new`` for ``old`` in a definition; None if ``old`` is not there once.

    The definition is a function, a class or a constant, by its dotted name. ``old`` is compared
    with the definition as ``ast.unparse`` writes it.
    """
    body: list[ast.stmt] = tree(text).body
    for name in definition.split("."):
        found = [node for node in body if _name(node) == name]
        if len(found) != 1:
            return None
        body = getattr(found[0], "body", [])
    (node,) = found
    plain = ast.unparse(node)
    if plain.count(old) != 1:
        return None
    lines = text.splitlines()
    decorated = [node, *getattr(node, "decorator_list", [])]
    first, last = min(each.lineno for each in decorated), node.end_lineno
    inside = textwrap.indent(plain.replace(old, new), " " * node.col_offset)
    return "\n".join([*lines[: first - 1], inside, *lines[last:], ""])


def _name(node: ast.stmt) -> str:
    """The name that a statement defines, if it defines one."""
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0])
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.target)
    return getattr(node, "name", "")


def defined(text: str) -> dict[str, bool]:
    """The public names that a module defines, and whether others see it: all but its constants.

    A function, a class, and what ``__all__`` lists are seen; a constant or an alias is its own.
    """
    seen, found = set(listed(text)), {}
    for node in tree(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = True
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            parts = [part for target in targets for part in ast.walk(target)]
            names = [part.id for part in parts if isinstance(part, ast.Name)]
            found |= {name: name in seen for name in names}
    return {name: of_all for name, of_all in found.items() if not name.startswith("_")}


def matches(text: str) -> Iterator[str]:
    """The patterns that tests give to ``match=``, also by the table of a parametrized test."""
    for function in ast.walk(ast.parse(text)):
        if not isinstance(function, ast.FunctionDef):
            continue
        given: list[ast.expr] = [
            node.value for node in ast.walk(function)
            if isinstance(node, ast.keyword) and node.arg == "match"
        ]  # fmt: skip
        names = [ast.unparse(node) for node in given]
        for decorator in function.decorator_list:
            match decorator:
                case ast.Call(args=[ast.Tuple(elts=columns), ast.List(elts=rows)]):
                    cells = [
                        cell for row in rows if isinstance(row, ast.Tuple)
                        for column, cell in zip(columns, row.elts, strict=True)
                        if ast.literal_eval(column) in names
                    ]  # fmt: skip
                    given += cells
        for node in given:
            if isinstance(node, ast.Constant | ast.JoinedStr):
                yield ast.unparse(node)


def undocumented(sources: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Yields exported functions, methods and records with the arguments that lack a text.

    A line below ``Args:`` is one, or the name in double backticks. What a base class or a protocol
    documents, others need not.
    """
    shown = exports(sources)
    classes = {
        node.name: node for text in sources.values() for node in tree(text).body if _is_class(node)
    }
    bases = {base for node in classes.values() for base in _bases(node)}
    methods = {
        name: {method.name for method in _methods(node)}
        for name, node in classes.items() if name in bases or "Protocol" in _bases(node)
    }  # fmt: skip
    for file, text in sources.items():
        for node in tree(text).body:
            if _name(node) not in shown[file]:
                continue
            if isinstance(node, ast.FunctionDef):
                yield f"{file}: {node.name}", _lacking(node, _arguments(node))
            elif _is_class(node):
                yield f"{file}: {node.name}", _lacking(node, _fields(node))
                above = _bases(node) if node.name in methods else methods
                elsewhere = set[str]().union(*(methods.get(name, set()) for name in above))
                for method in _methods(node):
                    if method.name not in elsewhere:
                        name = f"{file}: {node.name}.{method.name}"
                        yield name, _lacking(method, _arguments(method))


def silent(sources: Mapping[str, str]) -> Iterator[str]:
    """Yields exported functions and methods that raise an error and name none in a docstring.

    What a constructor raises, the class may say.
    """
    shown = exports(sources)
    for file, text in sources.items():
        for node in tree(text).body:
            if _name(node) not in shown[file]:
                continue
            inner = [each for each in getattr(node, "body", []) if _is_public(each)]
            for each in [node] if isinstance(node, ast.FunctionDef) else inner:
                said = ast.get_docstring(each) or ""
                if each.name.startswith("__"):
                    said += ast.get_docstring(node) or ""
                if _raises(each) and not re.search("[Rr]aises|Error", said):
                    yield f"{file}: {node.name}.{each.name}"


def _is_public(node: ast.stmt) -> bool:
    if not isinstance(node, ast.FunctionDef):
        return False
    return not node.name.startswith("_") or node.name in ("__init__", "__post_init__")


def _raises(function: ast.FunctionDef) -> bool:
    """Whether its own code raises an error, or calls a check that does."""
    return any(
        (isinstance(node, ast.Raise) and node.exc is not None)
        or (isinstance(node, ast.Call) and ast.unparse(node.func).startswith("check_"))
        for node in ast.walk(function)
    )  # fmt: skip


def _is_class(node: ast.stmt) -> TypeGuard[ast.ClassDef]:
    return isinstance(node, ast.ClassDef)


def _bases(node: ast.ClassDef) -> list[str]:
    return [ast.unparse(base).partition("[")[0] for base in node.bases]


def _methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    """The public methods of a class, without properties and overloads for type checkers."""
    return [
        each for each in node.body
        if isinstance(each, ast.FunctionDef) and not each.name.startswith("_")
        and not re.search("property|overload", " ".join(map(ast.unparse, each.decorator_list)))
    ]  # fmt: skip


def _fields(node: ast.ClassDef) -> list[str]:
    """What a class is made of: arguments of its constructor, or its fields."""
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            return _arguments(each)
    return [
        each.target.id for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        and not each.target.id.startswith("_") and "ClassVar" not in ast.unparse(each.annotation)
        and not (each.value and "init=False" in ast.unparse(each.value))
    ]  # fmt: skip


def _arguments(node: ast.FunctionDef) -> list[str]:
    a = node.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]
    return [each.arg for each in every if each.arg not in ("self", "cls")]


def _lacking(node: ast.FunctionDef | ast.ClassDef, names: list[str]) -> list[str]:
    text = ast.get_docstring(node) or ""

    def has(name: str) -> bool:
        line = rf"^\s+(?:\w+, )*{name}(?:, \w+)*: "
        return re.search(rf"{line}|``[^`]*\b{name}\b[^`]*``", text, re.M) is not None

    return [name for name in names if not name.startswith("_") and not has(name)]


def lines_of_code(text: str) -> int:
    """The number of lines that are not blank, nor a comment, nor of a docstring."""
    docstrings = {
        number
        for node in described(text)
        for number in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    return sum(
        number not in docstrings and line.strip() != "" and not line.lstrip().startswith("#")
        for number, line in enumerate(text.splitlines(), 1)
    )


def exported(text: str) -> int:
    """The number of entries of ``__all__``; one that unpacks another list counts as one."""
    return len(listed(text))


def listed(text: str) -> list[str]:
    """The entries of ``__all__``."""
    return [
        entry.value if isinstance(entry, ast.Constant) else ast.unparse(entry)
        for node in tree(text).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        and isinstance(node.value, ast.List | ast.Tuple)
        for entry in node.value.elts
    ]  # fmt: skip


def exports(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """The names of each file that its own ``__all__`` lists, or that of a package it is in."""
    found = {file: set(listed(text)) for file, text in sources.items()}
    modules = {dotted(file): file for file in sources}
    for file, text in sources.items():
        if not file.endswith("__init__.py"):
            continue
        for node in tree(text).body:
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                taken = {alias.name for alias in node.names} & set(listed(text))
                found[modules[node.module]] |= taken
    return found


def longest_chain(sources: Mapping[str, str]) -> list[str]:
    """The longest row of modules of which each imports the next at its top."""
    modules = {dotted(file): text for file, text in sources.items()}
    after = {
        module: sorted(imports(text, modules, top=True) & set(modules) - {module})
        for module, text in modules.items()
    }

    @cache
    def chain(module: str) -> list[str]:
        return [module, *max(map(chain, after[module]), key=len, default=[])]

    return max(map(chain, sorted(modules)), key=len)
