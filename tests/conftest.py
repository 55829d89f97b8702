"""What every test may ask for: golden numbers, float64, a quiet CPU that compiles fast."""

import contextlib
import gc
import io
import os
import signal
from functools import cache, lru_cache
from itertools import count
from pathlib import Path
from typing import NamedTuple

import jaxlib
import pytest

pytest.register_assert_rewrite("helpers")

from helpers.places import CACHE, GOLDEN  # noqa: E402

# For JAX, which is imported below, here and in every process that a test starts. Most of the time
# goes into compiling: the compiler optimises nothing, which takes it a quarter of the time, and in
# one thread, since the other worker has one, too. Compiled programs are kept, all of them, for the
# other worker and the next run.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
VERSION = jaxlib.version.__version_info__
if VERSION < (0, 13):  # an unknown flag ends the process
    FLAGS += " --xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"
if VERSION < (0, 11):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
elif VERSION < (0, 13):  # what XLA gets wrong: docs/troubleshooting.md
    FLAGS += " --xla_cpu_experimental_ynn_fusion_type="
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", FLAGS)
# Threads of a library wait for one another by spinning, on the core of the other worker.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No program says which lines of Python it is of: to write them takes a twentieth of the time.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from helpers import contracts  # noqa: E402

contracts.install()

import jax  # noqa: E402
import jax._src.interpreters.mlir as lowering  # noqa: E402
import numpy as np  # noqa: E402
from helpers.tiny_runs import run  # noqa: E402

from scoremle.cli.main import SELDOM  # noqa: E402

# So many programs are written in one context of MLIR. To make one takes a fifth of the time of a
# small program, and what is written in it stays until it ends.
SHARED = 500


def share_contexts() -> None:
    """Lets JAX write several programs in a context, where it would make one for each.

    The name is private: a JAX without it makes one for each, and the tests take longer.
    """
    new, begun = getattr(lowering, "make_ir_context", None), count()
    if new is None:
        return
    newest = lru_cache(maxsize=1)(lambda number: new())
    lowering.make_ir_context = lambda: newest(next(begun) // SHARED)


# After which compiled programs are forgotten. A file of tests adds 10,000 at most.
MAPS = 30_000


def pytest_configure(config: pytest.Config) -> None:
    gc.set_threshold(SELDOM)
    share_contexts()
    # The disk takes longer than most tests; that it is asked, and when, tests/test_files.py tests.
    os.fsync = lambda handle: None
    # Two runs at once may read an entry that the other is writing: it is compiled again, no harm.
    config.addinivalue_line("filterwarnings", "ignore:.*persistent compilation cache.*")
    # A job that a shell put in the background ignores Ctrl-C, and so does what it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: begun last, one keeps a worker when the other has ended."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported stays: no collection of garbage looks through it


def pytest_unconfigure() -> None:
    gc.freeze()  # nor does the end of Python


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


@pytest.fixture(autouse=True)
def _numbers_of_each_test(request, monkeypatch):
    """A module's RNG begins anew with each test: none depends on which ran before."""
    if isinstance(getattr(request.module, "RNG", None), np.random.Generator):
        monkeypatch.setattr(request.module, "RNG", np.random.default_rng(0))


@pytest.fixture
def x64():
    """JAX computes in float64 for the length of the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked():
    """Types are not checked for the length of the test: it is about what a user is told."""
    with contracts.unchecked():
        yield


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory):
    """Data sets are prepared in a folder of this run, in other processes too."""
    folder = tmp_path_factory.mktemp("data")
    os.environ["SCOREMLE_DATA"] = str(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Compiled programs are forgotten after a file that leaves too many.

    Each takes some of the 65,530 memory maps that Linux allows a process, and the programs of the
    whole suite would take them all.
    """
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MAPS:
        jax.clear_caches()


class Training(NamedTuple):
    """A finished training: its folder, and what it printed."""

    workdir: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, data_cache):
    """A tiny trained model. Read it, and evaluate it into folders of other names."""
    workdir = tmp_path_factory.mktemp("tiny") / "workdir"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run("train", workdir)
    assert code == 0, err.getvalue()
    return Training(workdir, out.getvalue(), err.getvalue())
