"""What every test may ask for: golden numbers, float64, a quiet CPU with a compilation cache."""

import os
from functools import cache
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).resolve().parent / "golden"

# Compiled programs are kept between runs (.jax_cache is git-ignored), all of them.
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
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
