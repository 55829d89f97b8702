"""What ``import scoremle`` gives, and how little it loads."""

import re
import subprocess
import sys
import tomllib

import pytest
from helpers.places import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import scoremle


def test_submodules_need_no_import_of_their_own():
    code = """
import sys
import scoremle
assert "jax" not in sys.modules and "scoremle.core.sde" not in sys.modules
for name in ("core", "likelihood", "published", "data"):
    assert name in dir(scoremle)
    assert getattr(scoremle, name) is sys.modules[f"scoremle.{name}"]
assert scoremle.core.augment is sys.modules["scoremle.core.augment"]
assert scoremle.interop.torch.from_module and not hasattr(scoremle.core, "sdes")
assert scoremle.VP is sys.modules['scoremle.core.sde'].VP
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_score_loads_little():
    """Modules of the package that an import and a score take; none of rooms that few need."""
    code = """
import sys
import scoremle
count = lambda: sum(name.split(".")[0] == "scoremle" for name in sys.modules)
alone = count()
scoremle.load("digits").score(scoremle.data.load("digits").test[:2], estimator=scoremle.ByElbo(1))
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("scoremle.")}
SLOW = {"ray", "torch", "sklearn", "diffusers", "matplotlib", "orbax", "huggingface_hub"}
SELDOM = {"zoo", "interop", "quality", "report", "cli", "anomaly", "coding", "weights"}
assert not {f"scoremle.core.{name}" for name in ("codes", "polynomial_schedule")} & {*sys.modules}
print(alone, count(), sorted(rooms & SELDOM), SLOW & {*sys.modules})
print(scoremle.zoo.families.FAMILIES["edm"].title)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    alone, scored, rest = done.stdout.splitlines()[0].split(maxsplit=2)
    assert int(alone) <= 1 and int(scored) <= 142 and rest == "['zoo'] set()", done


def test_other_names_are_errors():
    with pytest.raises(AttributeError, match="no attribute 'sdes'"):
        scoremle.sdes  # noqa: B018


def test_what_a_module_lacks_is_not_taken_for_the_module(tmp_path, monkeypatch):
    (tmp_path / "house").mkdir()
    (tmp_path / "house/room.py").write_text("import furniture")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="furniture"):
        scoremle.finder("house")("room")


def test_help_names_everything_by_what_it_is_for():
    words = re.findall(r"\w+", scoremle.__doc__)
    assert not {*scoremle.__all__} - {"__version__", *words}
    assert "__main__" not in dir(scoremle) and not {*scoremle.__all__} - {*dir(scoremle)}


def test_what_ci_installs_is_within_the_ranges_and_names_no_place():
    """Of all extras that CI installs, or tests look for."""
    lines = (ROOT / ".ci/constraints.txt").read_text().splitlines()
    exact = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines[1:]]
    versions = {canonicalize_name(name): version for name, version in exact}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    todo = [Requirement("scoremle[dev,parity]"), *map(Requirement, project["dependencies"])]
    while todo:
        asked = todo.pop()
        if asked.name == "scoremle":
            todo += (Requirement(text) for extra in asked.extras for text in extras[extra])
        else:
            version = versions[canonicalize_name(asked.name)]
            assert asked.specifier.contains(version, prereleases=True), asked
