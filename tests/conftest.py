"""What every test may ask for: golden numbers, float64, a quiet CPU with a compilation cache."""

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest

pytest.register_assert_rewrite("helpers")

from helpers.places import CACHE, GOLDEN  # noqa: E402
from helpers.tiny_runs import start  # noqa: E402

# Compiled programs are kept between runs (.jax_cache is git-ignored), all of them.
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_configure(config: pytest.Config) -> None:
    # Two runs at once may read an entry that the other is writing: it is compiled again, no harm.
    config.addinivalue_line("filterwarnings", "ignore:.*persistent compilation cache.*")


@cache
def load_golden(name: str) -> dict[str, np.ndarray]:
    """All arrays of tests/golden/<name>.npz, by key; read only."""
    with np.load(GOLDEN / f"{name}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


@pytest.fixture(scope="session")
def golden():
    """``golden("sde")`` is the dict of arrays of tests/golden/sde.npz."""
    return load_golden


@pytest.fixture
def x64():
    """JAX computes in float64 for the length of the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory):
    """Data sets are prepared in a folder of this run, in other processes too."""
    folder = tmp_path_factory.mktemp("data")
    os.environ["SCOREMLE_DATA"] = str(folder)
    return folder


class Training(NamedTuple):
    """A finished training: its folder, and what it printed."""

    workdir: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny trained model. Read it, and evaluate it into folders of other names."""
    workdir = tmp_path_factory.mktemp("tiny") / "workdir"
    process = start(f"--workdir={workdir}", "--mode=train")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return Training(workdir, stdout, stderr)
