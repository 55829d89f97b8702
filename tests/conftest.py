"""What every test may ask for: golden numbers, float64, a quiet CPU with a compilation cache."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

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


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory):
    """Data sets are prepared in a folder of this run, in other processes too."""
    folder = tmp_path_factory.mktemp("data")
    os.environ["SCOREMLE_DATA"] = str(folder)
    return folder


# A model of the digits that trains in seconds: for tests of everything around it.
TINY = (
    f"--config={ROOT / 'configs' / 'digits.py'}",
    "--config.model.nf=4",
    "--config.model.ch_mult=(1,1)",
    "--config.model.attn_resolutions=(1,)",
    "--config.training.n_iters=20",
    "--config.training.batch_size=32",
    "--config.training.log_freq=5",
    "--config.training.eval_freq=10",
    "--config.training.snapshot_freq=10",
    "--config.training.snapshot_freq_for_preemption=10",
    "--config.optim.lr=1e-3",
    "--config.optim.warmup=5",
    "--config.eval.batch_size=100",
    "--config.eval.solver=multistep",
    "--config.eval.nodes=6",
    "--config.eval.probes=1",
    "--config.eval.num_repeats=1",
    "--config.eval.bound_draws=4",
    "--config.eval.num_samples=10",
)


def start(*flags: str) -> subprocess.Popen[str]:
    """The program in a process of its own, with the tests' compilation cache."""
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *TINY, *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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
