"""A checkpoint that can't be written is one line, also in a process of its own, to its end."""

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers.marks import some
from helpers.places import ROOT

from scoremle.training import tracebacks

CODE = """
import pathlib, resource, sys, time
import jax.numpy as jnp
from scoremle.errors import UserError
from scoremle.training.checkpoints import Checkpoints
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
try:
    Checkpoints(pathlib.Path(sys.argv[1]), keep=None).save(
        1, {f"a{i}": jnp.full((100, 100), i) for i in range(20)}, {}
    )
except UserError as error:
    print(error, file=sys.stderr)
time.sleep(0.5)
"""


@some("debug", [False, True], quick=[False])
def test_a_disk_that_is_full(debug, tmp_path):
    more = "import logging; logging.getLogger('scoremle').setLevel('DEBUG')" if debug else ""
    done = subprocess.run(
        # -B: a module that is compiled under the limit would be kept, cut short.
        [sys.executable, "-B", "-c", more + CODE, str(tmp_path)],
        env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert (done.stderr.count("\n") > 1) == debug, done.stderr
    assert "can't write" in done.stderr and "File too large" in done.stderr


@pytest.mark.parametrize(
    ("text", "level", "shown"),
    [("TensorStore failed", "INFO", 0), ("TensorStore failed", "DEBUG", 1), ("other", "INFO", 1)],
)
def test_what_nobody_can_raise_is_hidden_where_it_is_theirs(text, level, shown, monkeypatch):
    found, told = SimpleNamespace(exc_value=ValueError(text), exc_traceback=None), []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    monkeypatch.setattr(tracebacks.logger, "level", getattr(logging, level))
    tracebacks.logger.manager._clear_cache()
    tracebacks._keep_back.__wrapped__()
    sys.unraisablehook(found)
    assert told == [found] * shown
