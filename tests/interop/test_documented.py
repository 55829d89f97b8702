"""The closures of docs/howto/any-model.md, as they stand there, against the modules themselves."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.places import ROOT

import scoremle

CODE = re.findall(r"```python\n(.*?)```", (ROOT / "docs/howto/any-model.md").read_text(), re.S)
SDE = scoremle.VP()


def documented(word, module):
    (code,) = [block for block in CODE if word in block]
    names = {"jax": jax, "scoremle": scoremle, "sde": SDE, "module": module}
    exec(code, names)
    return scoremle.ScoreModel(names["noise"], SDE, 1e-3, (3,))


def like(model, own):
    x, t = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), float), jnp.array([0.2, 0.7])
    np.testing.assert_allclose(model.noise(x, t), own(x, SDE.log_snr(t)), atol=1e-6)
    compiled = jax.jit(lambda model, x: model.log_prob(x, jax.random.key(0)).log_prob)
    assert np.isfinite(compiled(model, x)).all()


def test_nnx():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x, label):
            return self.linear(jnp.concatenate([x, label[:, None] / 5], 1))

    net = Net(nnx.Rngs(0))
    like(documented("nnx.split", net), net)


def test_equinox():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        linear: eqx.nn.Linear

        def __call__(self, x, label):
            return jnp.tanh(self.linear(jnp.append(x, label / 5)))

    net = Net(eqx.nn.Linear(4, 3, key=jax.random.key(0)))
    like(documented("equinox", net), jax.vmap(net))
