"""Imports point to an earlier row, never back, and no two modules import each other.

The table stands in docs/architecture.md too.
"""

import ast
import re
import sys
from collections import defaultdict
from graphlib import TopologicalSorter

import pytest
from helpers.places import ROOT
from helpers.source import (
    SOURCES,
    defined,
    described,
    dotted,
    imports,
    listed,
    longest_chain,
    matches,
    names_taken,
    nodes,
    silent,
    undocumented,
)

import scoremle
from scoremle.experiment import defaults
from scoremle.experiment.config import fields_of

# Modules of the root that every room may import.
BASE = {
    "errors", "terminal", "records", "types", "numerics", "bounded", "files", "resumable",
    "progress", "devices", "xla", "processes",
}  # fmt: skip
ROWS = (
    ("base",),
    ("core",),
    ("solvers",),
    ("likelihood", "sampling", "nn"),
    ("model", "weights"),
    # --- above: mathematics. No config, no files, no Flax outside nn ---
    ("data", "training"),
    ("quality", "evaluation", "published", "coding"),
    ("zoo", "anomaly"),
    ("interop",),
    ("experiment",),
    ("report",),
    ("cli",),
)
ROW = {room: i for i, row in enumerate(ROWS) for room in row}
MATHEMATICS = {room for row in ROWS[:5] for room in row} - {"base"}
FRAMEWORKS = {"flax", "optax", "orbax", "ml_collections", "absl", "tensorflow", "torch", "PIL"}
MOST_AT_THE_ROOT = 15
LONGEST_CHAIN = 24
MODULES = {dotted(file): text for file, text in SOURCES.items()}
each_module = pytest.mark.parametrize("module", MODULES)


def room_of(module: str) -> str:
    """The room of a module by its dotted name; "base" for those that lie at the root."""
    name = module.split(".")[1] if "." in module else "__init__"
    return "base" if name in BASE else name


@each_module
def test_imports_point_to_an_earlier_row(module):
    room = room_of(module)
    if room in ("__init__", "__main__"):  # the flat names that people type; the program
        return
    assert room in ROW, f"{room} has no row: give it one, here and in the documentation"
    for name in imports(MODULES[module], MODULES) & set(MODULES) - {"scoremle"}:
        other = room_of(name)
        earlier = other == room or ROW[other] < ROW[room]
        assert earlier, f"{room} imports {name}, which is not in an earlier row"


@pytest.mark.parametrize("for_types", [False, True])
def test_no_modules_import_each_other(for_types):
    """Nor for type checkers, but for the package itself, whose names have their homes below it."""
    graph = {
        module: imports(text, MODULES, top=True, for_types=for_types and module != "scoremle")
        for module, text in MODULES.items()
    }
    TopologicalSorter(graph).prepare()  # a CycleError names them


@pytest.fixture(scope="module")
def takers():
    """Dotted name -> the rooms, and documents, that take it."""
    documents = [
        *ROOT.glob("docs/**/*.md"), ROOT / "README.md", *ROOT.glob("examples/*.py"),
        *ROOT.glob("conformance/**/*.py"),
    ]  # fmt: skip
    texts = [(room_of(module), text) for module, text in MODULES.items()]
    texts += [("documents", path.read_text()) for path in documents]
    found = defaultdict(set)
    for room, text in texts:
        for name in names_taken(text, MODULES):
            found[name].add(room)
    return found


@each_module
def test_what_a_module_exports_is_taken_elsewhere(module, takers):
    """By another room, or by users; a room's ``__init__`` says what it exports itself."""
    path = SOURCES.get(f"{module.replace('.', '/')}.py")
    for name in listed(path or ""):
        rooms = takers[f"{module}.{name}"] - {room_of(module)}
        homes = scoremle._HOME.get(name) == module
        assert rooms or homes, f"{module} exports {name}, which no other room takes"


@each_module
def test_what_other_rooms_take_is_exported(module, takers):
    """A module that lists nothing has only such names, or none."""
    names = listed(SOURCES.get(f"{module.replace('.', '/')}.py", ""))
    for full, rooms in takers.items():
        home, _, name = full.rpartition(".")
        if names and home == module and full not in MODULES:
            others = rooms - {room_of(module)}
            assert name in names or not others, f"{others} take {full}: list it in __all__"


def test_no_chain_of_imports_is_longer():
    assert len(chain := longest_chain(SOURCES)) <= LONGEST_CHAIN, chain


def test_the_root_holds_rooms_and_little_else():
    beside = [file for file in SOURCES if file.count("/") == 1]
    assert len(beside) <= MOST_AT_THE_ROOT, beside


@each_module
def test_mathematics_imports_no_config_no_files_and_no_flax(module):
    room = room_of(module)
    if room in MATHEMATICS:
        names = imports(MODULES[module], MODULES)
        found = {name.split(".")[0] for name in names} & FRAMEWORKS
        assert not found - ({"flax"} if room == "nn" else set())
        assert "scoremle.files" not in names


def test_one_loop_goes_over_images_in_passes():
    loops = [
        f"{module}:{node.lineno}"
        for module, text in MODULES.items()
        for node in nodes(text)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("resumable_map")
        and "passes" in [keyword.arg for keyword in node.keywords]
        and "unit='point'" not in map(ast.unparse, node.keywords)
    ]  # fmt: skip
    assert len(loops) == 1, loops


# Those read what the system says, or the package's own; others open files by scoremle.files.
READ_THEIR_OWN = {
    "scoremle.files", "scoremle.devices", "scoremle.cli.cache", "scoremle.cli.flags",
    "scoremle.report.page",
}  # fmt: skip
OPENING = re.compile(
    r"(?<!\bfiles)\.read_(?:text|bytes)\(|(?<![\w.])open\((?!.*(?:opener=handle_of|os\.devnull))"
    r"|\.open\((?:\)|\"r)|np\.load\(|os\.open\("
)


@each_module
def test_files_of_others_are_opened_in_one_place(module):
    found = OPENING.findall(MODULES[module])
    assert not found or module in READ_THEIR_OWN, f"{module}: {found}: call files.opened"


FIELDS = "|".join(re.escape(name) for name in fields_of(defaults.get_config()) if "." in name)
OF_COMMAND_LINE = re.compile(rf"(?<![\w-])--[a-z]|(?<![\w.])({FIELDS})\b")


@each_module
def test_messages_below_the_command_line_name_arguments_of_python(module):
    """The rooms that read configs and flags make fields and flags of these: errors.named_as."""
    if ROW.get(room_of(module), 99) < ROW["experiment"]:
        text = MODULES[module]
        docstrings = {ast.get_docstring(node, clean=False) for node in described(text)}
        for node in nodes(text):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = OF_COMMAND_LINE.search(node.value)
                assert node.value in docstrings or not found, f"{module}: {node.value}"


# Words that say nothing of what the thing is: a docstring begins with a verb or a noun.
EMPTY = re.compile(r"(What|Of|Where|How|All|Which|The same)\b")


def test_docstrings_begin_with_a_verb_or_a_noun():
    for file, text in SOURCES.items():
        for node in described(text):
            line = ast.get_docstring(node).splitlines()[0]
            assert not EMPTY.match(line), f"{file}: {line}"


# Words of modules of one kind: a command has arguments, checks them and runs, a family of models
# has files and loads, a format of files reads and writes.
OF_A_KIND = {"arguments", "check", "run", "main", "files", "load", "read", "write"}


def test_no_public_name_is_defined_twice():
    homes, public = defaultdict(list), set()
    for file, text in SOURCES.items():
        for name, of_all in defined(text).items():
            homes[name].append(file)
            public |= {name} if of_all else set()
    twice = {name: homes[name] for name in public - OF_A_KIND if len(homes[name]) > 1}
    assert not twice, twice


def test_what_is_exported_documents_its_arguments():
    """Each field of a record, too. A method of a protocol or a base class is documented there."""
    lacking = {name: arguments for name, arguments in undocumented(SOURCES) if arguments}
    assert not lacking, lacking


def test_what_is_exported_names_the_errors_that_it_raises():
    assert not [*silent(SOURCES)]


def test_a_message_is_matched_by_a_keyword():
    """A sentence breaks with each better wording, and sees no more than the word it turns on."""
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "conformance/tests").rglob("*.py")]
    found = [text for file in files for text in matches(file.read_text())]
    assert len(found) > 500
    assert not [text for text in found if len(text.split()) > 3]


def test_no_script_hides_a_module_of_python():
    """Its folder is the first that is looked in. JAX asks for one of Python 3.14."""
    known = {*sys.stdlib_module_names, "compression"}
    scripts = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "examples").glob("*.py")]
    assert scripts and not [path for path in scripts if path.stem in known]


# Records that change while they are used; all others are frozen.
CHANGING = {"Loop", "Page", "_Type"}
# Those with arrays, of which each equals itself alone.
BY_IDENTITY = {
    "Affine", "Anomalies", "BetweenEnds", "BinnedLogSNR", "Bounded", "BySteps",
    "CodedPolynomial", "Coder", "Control", "Controlled", "Discrete", "DiscreteDecoder", "ELBO",
    "FittedGaussian", "FixedProbe", "ImageSet", "ImportanceBound", "InformedDecoder",
    "Likelihood", "MonotoneLogSNR", "Polynomial", "Profile", "Reference", "Reweighted",
    "Samples", "ScaleOfOthers", "Scored", "Scores", "Tangent", "TimesOf", "_Translated",
}  # fmt: skip
# Those that say in words of their own what they are.
WITH_WORDS = {
    "Detector", "Likelihood", "Profile", "Reweighted", "Samples", "ScoreModel", "Scores",
}  # fmt: skip


def test_records_are_frozen():
    found = defaultdict(set)
    for text in SOURCES.values():
        for node in nodes(text):
            for decorator in map(ast.unparse, getattr(node, "decorator_list", ())):
                if isinstance(node, ast.ClassDef) and re.search("dataclass|frozen_", decorator):
                    found["changing"] |= set() if "frozen" in decorator else {node.name}
                    for option in ("eq=False", "repr=False"):
                        found[option] |= {node.name} if option in decorator else set()
    assert found["changing"] == CHANGING
    assert (found["eq=False"], found["repr=False"]) == (BY_IDENTITY, WITH_WORDS)
