"""Other processes find the package, too."""

import os
from pathlib import Path

import pytest

HERE = str(Path(__file__).parents[1])


@pytest.fixture(autouse=True, scope="session")
def on_the_path():
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HERE, before]))
    yield
    os.environ["PYTHONPATH"] = before
