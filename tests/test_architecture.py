"""Imports point to an earlier row, never back, and no two modules import each other.

The table stands in docs/architecture.md too.
"""

import ast
from pathlib import Path

import pytest
from helpers.places import ROOT

PACKAGE = ROOT / "scoremle"
# Modules of the root that every room may import.
BASE = {
    "errors", "terminal", "records", "types", "numerics", "files", "resumable", "progress",
    "devices", "processes",
}  # fmt: skip
ROWS = (
    ("base",),
    ("core",),
    ("solvers",),
    ("likelihood", "sampling", "nn"),
    ("model",),
    # --- above: mathematics. No config, no files, no Flax outside nn ---
    ("data", "training"),
    ("quality", "evaluation", "published"),
    ("interop",),
    ("experiment",),
    ("report",),
    ("cli",),
)
ROW = {room: i for i, row in enumerate(ROWS) for room in row}
MATHEMATICS = {room for row in ROWS[:5] for room in row} - {"base"}
FRAMEWORKS = {"flax", "optax", "orbax", "ml_collections", "absl", "tensorflow", "torch", "PIL"}
MOST_AT_THE_ROOT = 13
FILES = sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = ("scoremle", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


MODULES = {dotted(path): path for path in FILES}


def room_of(module: str) -> str:
    """The room of a module by its dotted name; "base" for those that lie at the root."""
    name = module.split(".")[1] if "." in module else "__init__"
    return "base" if name in BASE else name


def imports(path: Path, *, top: bool = False) -> set[str]:
    """Dotted names of all that a file imports, wherever in it, or at its top alone."""
    tree, names = ast.parse(path.read_text()), set()
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it points"
            of_package = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            names |= of_package or {node.module}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_to_an_earlier_row(path):
    room = room_of(dotted(path))
    if room in ("__init__", "__main__"):  # the flat names that people type; the program
        return
    assert room in ROW, f"{room} has no row: give it one, here and in the documentation"
    for name in imports(path) & set(MODULES) - {"scoremle"}:
        other = room_of(name)
        earlier = other == room or ROW[other] < ROW[room]
        assert earlier, f"{room} imports {name}, which is not in an earlier row"


def test_no_modules_import_each_other():
    left = {module: imports(path, top=True) & set(MODULES) for module, path in MODULES.items()}
    while free := {module for module, others in left.items() if not others & set(left)}:
        left = {module: others for module, others in left.items() if module not in free}
    assert not left, f"a circle among {sorted(left)}"


def test_the_root_holds_rooms_and_little_else():
    beside = [p.name for p in PACKAGE.glob("*.py")]
    assert len(beside) <= MOST_AT_THE_ROOT, sorted(beside)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_mathematics_knows_no_config_no_files_and_no_flax(path):
    room = room_of(dotted(path))
    if room in MATHEMATICS:
        found = {name.split(".")[0] for name in imports(path)} & FRAMEWORKS
        assert not found - ({"flax"} if room == "nn" else set())
        assert "scoremle.files" not in imports(path)
