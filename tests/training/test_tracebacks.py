"""A checkpoint that can't be written is one line, also in a process of its own, to its end."""

import subprocess
import sys

import pytest
from helpers.places import ROOT

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


@pytest.mark.parametrize("debug", [False, True])
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
