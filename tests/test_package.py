"""What ``import scoremle`` gives, and how little it loads."""

import re
import subprocess
import sys

import pytest

import scoremle


def test_submodules_need_no_import_of_their_own():
    code = """
import sys
import scoremle
assert "jax" not in sys.modules and "scoremle.core.sde" not in sys.modules
for name in ("core", "likelihood", "published", "data"):
    assert name in dir(scoremle)
    assert getattr(scoremle, name) is sys.modules[f"scoremle.{name}"]
assert scoremle.VP is sys.modules['scoremle.core.sde'].VP
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_other_names_are_errors():
    with pytest.raises(AttributeError, match="no attribute 'sdes'"):
        scoremle.sdes  # noqa: B018


def test_help_names_everything_by_what_it_is_for():
    words = re.findall(r"\w+", scoremle.__doc__)
    assert not {*scoremle.__all__} - {"__version__", *words}
    assert "__main__" not in dir(scoremle) and not {*scoremle.__all__} - {*dir(scoremle)}
