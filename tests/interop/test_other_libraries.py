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
X = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32).astype(float)
# Where the path of a velocity is cut: at log-SNR -18 and 13.3.
FIRST, LAST = 1 / (1 + np.exp(9)), 1 / (1 + np.exp(-13.3 / 2))


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
    """log p of X by the ODE from noise to data, in float64 by SciPy, along the same path."""

    def field(t, y):
        x = y[: X.size].reshape(X.shape)
        return np.concatenate([velocity(x, t).ravel(), trace(x, t)]).astype(float)

    start = np.concatenate([LAST * X.ravel(), np.zeros(len(X))])
    end = solve_ivp(field, (LAST, FIRST), start, rtol=1e-6, atol=1e-6).y[:, -1]
    z, change = end[: X.size].reshape(X.shape) / (1 - FIRST), end[X.size :]
    scales = 2 * np.log(LAST / (1 - FIRST))
    return -np.square(z).sum(axis=1) / 2 - np.log(2 * np.pi) + change + scales


def check(model, expected, x=X, **options):
    found = model.log_prob(x.astype(np.float32), jax.random.key(0), **options)
    error = np.abs(found.log_prob - expected)
    assert (error < found.solver_error + 1e-3).all(), (error, found.solver_error)
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

    fields = (lambda x, t, f=f: f(x, t).detach().numpy() for f in (value, trace))
    return log_prob(*fields)


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
            x = jnp.concatenate([obs[..., 0], jnp.broadcast_to(t, len(obs))[:, None]], 1)
            return self.out(jnp.tanh(self.inside(x)))[..., None]

    net = Net(nnx.Rngs(0))
    x, t = jnp.asarray(X, jnp.float32), jnp.full(len(X), 0.3)
    names = of_jax("GenSBI", net=net)
    own = wrapping.ModelWrapper(net)(t=t, obs=x)
    np.testing.assert_allclose(names["velocity"](x[..., None], t), own, atol=1e-6)
    expected = in_jax(lambda x, t: names["velocity"](x[..., None], t)[..., 0])
    check(names["model"], expected, X[..., None])


def test_diffrax():
    """By the field alone, as diffrax takes it."""
    matrix = jnp.asarray([[0.5, -0.3], [0.2, 0.1]])
    names = of_jax("diffrax", field=lambda t, y, args: jnp.tanh(matrix @ y + t))
    check(names["model"], in_jax(names["velocity"]))


def test_azula():
    torch = pytest.importorskip("torch")
    denoise, noise = pytest.importorskip("azula.denoise"), pytest.importorskip("azula.noise")
    mean, variance = torch.tensor([0.5, -1.0]), torch.tensor([0.25, 1.0])

    class Denoiser(denoise.Denoiser):
        def __init__(self):
            super().__init__()
            self.schedule = noise.VPSchedule()

        def forward(self, x, t):  # the mean of x_0 of data N(mean, variance)
            alpha, sigma = (a[:, None] for a in self.schedule(t))
            gain = alpha * variance / (alpha**2 * variance + sigma**2)
            return denoise.DiracPosterior(mean + gain * (x - alpha * mean))

    normal = torch.distributions.Normal(mean, variance.sqrt())
    expected = normal.log_prob(torch.from_numpy(X)).sum(1).numpy()
    check(documented("azula", denoiser=Denoiser())["model"], expected)


def test_edm():
    torch = pytest.importorskip("torch")

    class Denoiser(torch.nn.Module):
        def forward(self, x, sigma):  # the mean of x_0 of data N(0, I)
            return x / (1 + sigma[:, None] ** 2)

    names = documented("EDM", denoiser=Denoiser())
    check(names["model"], -np.square(X).sum(axis=1) / 2 - np.log(2 * np.pi))
