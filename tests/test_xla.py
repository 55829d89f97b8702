"""How XLA compiles a whole program; placement and memory are tested where they are used."""

import subprocess
import sys

import jax.numpy as jnp
from helpers.marks import some
from helpers.places import ROOT

from scoremle import xla

# Losses of a Gaussian, of many rows of two dimensions: XLA's own choice gives nan here.
LOSSES = """
import jax, jax.numpy as jnp, numpy as np
from helpers.oracles import Gaussian
from scoremle import SubVP, xla

sde, data = SubVP(), Gaussian.random(1, 2)
key_z, key_t = jax.random.split(jax.random.key(0))
z = jax.random.normal(key_z, (8192, 2))
t = jax.random.uniform(key_t, (8192,), minval=0.01)
x = jnp.full_like(z, 0.5)
noise = data.noise(sde)

def losses(t, z, x):
    return jnp.sum((noise(sde.perturb(x, t, z), t) - z) ** 2, axis=1)

right = losses(t, z, x)
program = xla.compiled(losses)
np.testing.assert_allclose(program(t, z, x), right, rtol=1e-4, atol=1e-5)
print("by YNN:", *("ynn_fusion" in compiled.lower(t, z, x).compile().as_text() for compiled in (
    jax.jit(losses), program, xla.compiled(losses, gradients=True))))
"""


@some(
    "flags, by_ynn",
    [("", "True False True"), ("--xla_cpu_experimental_ynn_fusion_type=", "False False False")],
    quick=[("", "True False True")],
)
def test_xla_computes_losses_of_many_rows_without_the_fusion_that_is_wrong(
    flags, by_ynn, monkeypatch
):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    done = subprocess.run(
        [sys.executable, "-c", LOSSES], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"by YNN: {by_ynn}\n"


def test_an_option_that_this_xla_has_not_is_left_out():
    program = xla.compiled(jnp.negative)
    program._wanted = (("xla_of_nobody", "1"),)
    assert not xla._is_known(program._wanted[0])
    assert program(1.0) == -1
