"""The lines of docs/howto/other-libraries.md, on small networks of each library that is here."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.places import ROOT
from scipy.integrate import solve_ivp

import scoremle

PAGE = (ROOT / "docs" / "howto" / "other-libraries.md").read_text()
X = np.random.default_rng(0).normal(size=(3, 2))


def documented(section, **names):
    """What the blocks of a section define."""
    names = {"scoremle": scoremle, "jax": jax, "np": np} | names
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, names)
    return names


def of_jax(section, **names):
    return documented(section, **documented("Velocities in JAX"), **names)


def log_prob(velocity, trace):
    """log p of X by the ODE from N(0, I) at t = 0 to data at t = 1, in float64 by SciPy."""

    def field(t, y):
        x = y[: X.size].reshape(X.shape)
        return np.concatenate([velocity(x, t).ravel(), trace(x, t)]).astype(float)

    start = np.concatenate([X.ravel(), np.zeros(len(X))])
    end = solve_ivp(field, (1, 0), start, rtol=1e-6, atol=1e-6).y[:, -1]
    z, change = end[: X.size].reshape(X.shape), end[X.size :]
    return -np.square(z).sum(axis=1) / 2 - np.log(2 * np.pi) + change


def check(model, expected, **options):
    found = model.log_prob(X.astype(np.float32), jax.random.key(0), **options)
    error = np.abs(found.log_prob - expected)
    # Ours is the density of the data with noise of 0.0013.
    assert (error < found.solver_error + 5e-3).all(), (error, found.solver_error)
    assert (found.probe_stderr == 0).all()


def in_jax(velocity, *condition):
    """log p of X under velocity(x, t, ...) of rows."""

    def one(x, t):
        return velocity(x[None], t[None], *condition)[0]

    fields = [jax.jit(jax.vmap(f, (0, None))) for f in (one, jax.jacfwd(one))]
    value, jacobian = (lambda x, t, f=f: np.asarray(f(x, jnp.asarray(t))) for f in fields)
    return log_prob(value, lambda x, t: np.trace(jacobian(x, t), axis1=1, axis2=2))


def in_torch(net):
    """log p of X under a module net(x, t) of rows."""
    import torch

    net = net.double()

    def value(x, t):
        x = torch.from_numpy(x)
        return net(x, torch.full((len(x),), t, dtype=x.dtype))

    def trace(x, t):
        jacobian = torch.func.jacrev(lambda row: value_of(row, t))
        return torch.func.vmap(jacobian)(torch.from_numpy(x)).diagonal(dim1=1, dim2=2).sum(1)

    def value_of(row, t):
        return net(row[None], torch.full((1,), t, dtype=row.dtype))[0]

    return log_prob(lambda x, t: value(x, t).detach().numpy(), lambda x, t: trace(x, t).numpy())


def test_torchcfm():
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchcfm.models")
    torch.manual_seed(0)
    net = models.MLP(dim=2, time_varying=True)
    names = documented("torchcfm", net=net)
    check(names["model"], in_torch(names["Velocity"](net)))


def test_flow_matching():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.out = torch.nn.Linear(3, 16), torch.nn.Linear(16, 2)

        def forward(self, x, t):
            return self.out(torch.tanh(self.inside(torch.cat([x, t[:, None]], 1))))

    net = Net()
    check(documented("flow_matching", net=net)["model"], in_torch(net))


def test_bayesflow(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    networks = pytest.importorskip("bayesflow.networks")
    network, observed = networks.FlowMatching(subnet_kwargs={"widths": (16,)}), np.ones((1, 3))
    network.build((None, 2), conditions_shape=(None, 3))
    names = of_jax("BayesFlow", network=network)
    expected = in_jax(names["velocity"], jnp.asarray(observed, jnp.float32))
    check(names["model"], expected, condition=observed)


def test_gensbi():
    wrapping = pytest.importorskip("gensbi.utils.model_wrapping")
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.inside, self.out = nnx.Linear(3, 16, rngs=rngs), nnx.Linear(16, 2, rngs=rngs)

        def __call__(self, t, obs):
            t = jnp.broadcast_to(t, len(obs))[:, None]
            return self.out(jnp.tanh(self.inside(jnp.concatenate([obs, t], 1))))

    net = Net(nnx.Rngs(0))
    t = jnp.full(len(X), 0.3)
    names = of_jax("GenSBI", net=net)
    np.testing.assert_allclose(
        names["velocity"](X, t), wrapping.ModelWrapper(net)(t=t, obs=jnp.asarray(X)), atol=1e-6
    )
    check(names["model"], in_jax(names["velocity"]))


def test_diffrax():
    """By the field alone, as diffrax takes it."""
    matrix = jnp.asarray([[0.5, -0.3], [0.2, 0.1]])
    names = of_jax("diffrax", field=lambda t, y, args: jnp.tanh(matrix @ y + t))
    check(names["model"], in_jax(names["velocity"]))


def test_azula():
    torch = pytest.importorskip("torch")
    denoise, noise = pytest.importorskip("azula.denoise"), pytest.importorskip("azula.noise")
    from azula.linalg.covariance import DiagonalCovariance

    mean, variance = torch.tensor([0.5, -1.0]), torch.tensor([0.25, 1.0])
    denoiser = denoise.GaussianDenoiser(mean, DiagonalCovariance(variance), noise.VPSchedule())
    normal = torch.distributions.Normal(mean, variance.sqrt())
    expected = normal.log_prob(torch.from_numpy(X)).sum(1).numpy()
    check(documented("azula", denoiser=denoiser)["model"], expected)


def test_edm():
    torch = pytest.importorskip("torch")

    class Denoiser(torch.nn.Module):
        def forward(self, x, sigma):  # the mean of x_0 of data N(0, I)
            return x / (1 + sigma[:, None] ** 2)

    names = documented("EDM", denoiser=Denoiser())
    check(names["model"], -np.square(X).sum(axis=1) / 2 - np.log(2 * np.pi))
