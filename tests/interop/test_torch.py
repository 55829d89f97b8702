"""Modules of PyTorch as models, on both ways to JAX: against the module itself, in float64."""

import logging
import math
import os
import pickle
import re
import subprocess
import sys
import threading
import warnings
from functools import cache
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from scipy.stats import norm

import scoremle
from scoremle.core.schedules import PerDimension
from scoremle.errors import UserError
from scoremle.interop.torch import _sde, from_module
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.training.checksums import model_hash

torch = pytest.importorskip("torch")
nn = torch.nn

from scoremle.interop import by_torchax, network  # noqa: E402
from scoremle.interop.by_torch import InTorch  # noqa: E402
from scoremle.interop.frozen import Frozen  # noqa: E402

NEEDS = {
    "torch": [],
    "torchax": [pytest.mark.skipif(not find_spec("torchax"), reason="needs torchax")],
}
WAYS = [pytest.param(way, marks=marks) for way, marks in NEEDS.items()]


def by_both(quick):
    """Parametrizes by both ways, of which one is left to the long tests."""
    ways = [pytest.param(way, marks=[*marks, *[pytest.mark.long] * (way != quick)])
            for way, marks in NEEDS.items()]  # fmt: skip
    return pytest.mark.parametrize("by", ways)


KEY = jax.random.key(0)
ENDS = (-8.0, 7.0)
SDE = scoremle.SDE("vp", scoremle.LinearLogSNR(*ENDS), 1.0)
SIGMA_DATA = 0.5


SCHEDULES = {
    "LinearBeta": (scoremle.LinearBeta(0.2, 10.0), scoremle.VP(0.2, 10.0)),
    "LinearBeta, sub-VP": (scoremle.LinearBeta(0.2, 10.0, "subvp"), scoremle.SubVP(0.2, 10.0)),
    "GeometricSigma": (scoremle.GeometricSigma(0.02, 30.0), scoremle.VE(0.02, 30.0)),
    "LinearSigma": (scoremle.LinearSigma(30.0), scoremle.LinearVE(30.0)),
    "KarrasSigma": (
        scoremle.KarrasSigma(0.02, 30.0),
        scoremle.SDE("ve", scoremle.KarrasSigma(0.02, 30.0), 30.0),
    ),
    "LinearLogSNR": (scoremle.LinearLogSNR(-8.0, 7.0), SDE),
    "an SDE": (scoremle.SubVP(), scoremle.SubVP()),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_of_its_own_sde(name):
    schedule, expected = SCHEDULES[name]
    found, t = _sde(schedule), jnp.linspace(0.1, 1.0, 5)
    np.testing.assert_allclose(found.alpha(t), expected.alpha(t), rtol=1e-6)
    np.testing.assert_allclose(found.sigma(t), expected.sigma(t), rtol=1e-6)
    assert found.prior_std == expected.prior_std


@pytest.mark.skipif(not find_spec("torchax"), reason="needs torchax")
@pytest.mark.parametrize("transposed", [False, True])
@some("dims", [1, 2, 3], quick=[2])
def test_each_argument_of_a_convolution_is_that_of_torch(dims, transposed):
    """One at a time, and all of them."""
    from scoremle.interop.by_torchax import _convolve, _import_torchax

    _import_torchax()  # as the package does, or tests of DataParallel after this one find a device
    other = {"stride": 3, "padding": 1, "dilation": 2, "groups": 2, "bias": True}
    if transposed:
        other |= {"output_padding": 1}
    rng = np.random.default_rng(0)
    for fields in ({"stride": 3}, *({"stride": 3, name: other[name]} for name in other), other):
        how = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0} | fields
        groups, bias = how.pop("groups", 1), rng.normal(size=6) if how.pop("bias", 0) else None
        size = (4, 6 // groups) if transposed else (6, 4 // groups)
        x = rng.normal(size=(2, 4, *range(7, 7 + dims)))
        weight = rng.normal(size=(*size, *range(2, 2 + dims)))
        stride, padding, dilation, more = ([value] * dims for value in how.values())
        arguments = stride, padding, dilation, transposed, more, groups
        expected = torch.ops.aten.convolution.default(
            *(None if a is None else torch.from_numpy(a) for a in (x, weight, bias)), *arguments
        )
        arrays = (None if a is None else jnp.asarray(a, jnp.float32) for a in (x, weight, bias))
        np.testing.assert_allclose(_convolve(*arrays, *arguments), expected, atol=1e-3)


class MLP(nn.Module):
    def __init__(self, dims=6, classes=0):
        super().__init__()
        self.inside, self.told = nn.Linear(dims, 24), nn.Linear(1, 24)
        self.classes = nn.Embedding(classes, 24) if classes else None
        self.norm, self.out = nn.LayerNorm(24), nn.Linear(24, dims)

    def forward(self, x, label, condition=None):
        h = self.inside(x) + self.told(torch.tanh(label / 5)[:, None])
        if condition is not None:
            h = h + (self.classes(condition) if self.classes else condition)
        return self.out(nn.functional.silu(self.norm(h)))


class Denoiser(MLP):
    """About x where there is little noise, as a mean of x_0 has to be; it is told sigma."""

    def forward(self, x, label):
        return x + label[:, None] * super().forward(x, label)


class Convolutions(nn.Module):
    """Strides, groups, a transposed convolution, GroupNorm, attention, and dropout at rest."""

    def __init__(self, channels=2, width=8):
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding="same")
        self.norm, self.told = nn.GroupNorm(4, width), nn.Linear(1, width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, dilation=1, groups=2)
        self.up = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, groups=2)
        self.last, self.dropout = nn.Conv2d(width, channels, 3, padding=1), nn.Dropout(0.5)

    def forward(self, x, label):
        told = self.told(torch.tanh(label / 5)[:, None])[:, :, None, None]
        h = nn.functional.silu(self.norm(self.first(x)) + told)
        row = h.flatten(2).transpose(1, 2)
        mixed = self.attention(row, row, row, need_weights=False)[0]
        h = h + mixed.transpose(1, 2).reshape(h.shape)
        return self.last(self.dropout(h + self.up(self.down(h))))


def made(kind, *arguments, **options):
    torch.manual_seed(0)
    return kind(*arguments, **options)


def data(shape, n=2, seed=1):
    return np.random.default_rng(seed).normal(size=(n, *shape)) * 0.6


# --- the same in float64, with nothing of this library ---------------------------------------

# (output, x, alpha, sigma) -> eps
READ = {
    "eps": lambda o, x, a, s: o,
    "score": lambda o, x, a, s: -s * o,
    "x_0": lambda o, x, a, s: (x - a * o) / s,
    "v": lambda o, x, a, s: a * o + s * x,
    "u": lambda o, x, a, s: (a * o + x) / (a + s),
}
# log(sigma / alpha) -> label
TELL = {
    "log_snr": lambda r: -2 * r,
    "time": lambda r: (ENDS[1] + 2 * r) / (ENDS[1] - ENDS[0]),
    "sigma": lambda r: math.exp(r) / math.hypot(1, math.exp(r)),
    "c_noise": lambda r: r / 4,
}


def noise64(module, prediction, time_input):
    """eps(x, log(sigma / alpha)) of one example, as the papers have it; images [c h w]."""

    def eps(x, r):
        s = math.exp(r)
        alpha, sigma = 1 / math.hypot(1, s), s / math.hypot(1, s)
        label = torch.tensor([TELL[time_input](r)], dtype=torch.float64)
        if prediction != "edm":
            return READ[prediction](module(x[None], label)[0], x, alpha, sigma)
        both = s**2 + SIGMA_DATA**2
        y = x / alpha
        F = module(y[None] / math.sqrt(both), label)[0]
        D = SIGMA_DATA**2 / both * y + s * SIGMA_DATA / math.sqrt(both) * F
        return (y - D) / s

    return eps


def log_prob64(module, x, prediction="eps", time_input="log_snr", steps=80):
    """log p by Runge-Kutta steps of d(x / alpha) / ds = eps, and the trace of all of torch's J."""
    eps, shape, D = noise64(module.double().eval(), prediction, time_input), x.shape, x.size
    low, high = -ENDS[1] / 2, -ENDS[0] / 2

    def log_alpha(r):
        return -math.log(math.hypot(1, math.exp(r)))

    def rates(r, state):
        s = math.exp(r)
        point = torch.from_numpy(math.exp(log_alpha(r)) * state[:-1])

        def flat(p):
            return eps(p.reshape(shape), r).reshape(-1)

        trace = torch.autograd.functional.jacobian(flat, point).trace().item()
        with torch.no_grad():
            value = flat(point).numpy()
        return np.append(s * value, s * math.exp(log_alpha(r)) * trace)

    # x is in the scale of the data: at the first noise it is alpha x.
    state, h = np.append(x.ravel(), 0.0), (high - low) / steps
    for r in low + h * np.arange(steps):
        k1 = rates(r, state)
        k2 = rates(r + h / 2, state + h / 2 * k1)
        k3 = rates(r + h / 2, state + h / 2 * k2)
        k4 = rates(r + h, state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    z = state[:-1] * math.exp(log_alpha(high))
    change = D * log_alpha(high)
    return -0.5 * (z**2).sum() - D / 2 * math.log(2 * math.pi) + change + state[-1]


SUBJECTS = {
    "eps": ("log_snr", MLP, (6,)),
    "score": ("time", MLP, (6,)),
    "x_0": ("sigma", Denoiser, (6,)),
    "v": ("c_noise", MLP, (6,)),
    "u": ("log_snr", MLP, (6,)),
    "edm": ("c_noise", MLP, (6,)),
    "image": ("log_snr", Convolutions, (4, 4, 2)),
}


@cache
def expected(name):
    """Of one example, as the module sees it, and its density."""
    time_input, kind, shape = SUBJECTS[name]
    x = data(shape, n=1)[0]
    seen = np.moveaxis(x, -1, 0) if x.ndim == 3 else x
    prediction = "eps" if name == "image" else name
    steps = 40 if name == "image" else 80
    return log_prob64(made(kind), seen, prediction, time_input, steps=steps)


# An output on each way.
QUICK = [("eps", "torch"), ("v", "torchax")]


@pytest.mark.parametrize(("name", "by"), [
    pytest.param(name, by, marks=[*marks, *[pytest.mark.long] * ((name, by) not in QUICK)])
    for name in SUBJECTS for by, marks in NEEDS.items()
])  # fmt: skip
def test_values_and_densities_are_the_modules_own(name, by):
    time_input, kind, shape = SUBJECTS[name]
    prediction = "eps" if name == "image" else name
    model = from_module(
        made(kind), schedule=SDE, shape=shape, prediction=prediction, time_input=time_input,
        by=by,
    )  # fmt: skip
    x, t = data(shape, n=3), np.array([0.2, 0.5, 0.9])
    eps = noise64(made(kind).double().eval(), prediction, time_input)
    seen = np.moveaxis(x, -1, 1) if x.ndim == 4 else x
    with torch.no_grad():
        own = np.stack([
            eps(torch.from_numpy(one), (15 * at - 7) / 2).numpy()
            for one, at in zip(seen, t, strict=True)
        ])  # fmt: skip
    own = np.moveaxis(own, 1, -1) if x.ndim == 4 else own
    found = jax.jit(lambda m, x, t: m.noise(x, t))(model, jnp.asarray(x, float), jnp.asarray(t))
    # x_0 loses digits near the data, where it is divided by sigma.
    limit = 1e-5 / (0.07 if prediction == "x_0" else 1) * max(1, np.abs(own).max())
    np.testing.assert_allclose(found, own, rtol=0, atol=limit)

    one = jnp.asarray(data(shape, n=1), float)
    likelihood = model.log_prob(one, KEY, solver=scoremle.Multistep(64))
    bits = math.prod(shape) * math.log(2)
    error = abs(float(likelihood.log_prob[0]) - expected(name)) / bits
    stated = float(likelihood.solver_error[0]) / bits
    assert error < 1e-4 + stated, (error, stated)
    assert stated < 5e-3


# --- derivatives, conditions, compiled programs, threads --------------------------------------


@pytest.fixture(params=WAYS)
def by(request):
    return request.param


def mlp_model(by, module=None, **options):
    module = made(MLP) if module is None else module
    told = {"schedule": SDE, "shape": (6,), "time_input": "log_snr", "by": by}
    return from_module(module, **(told | options))


def test_log_p_has_a_gradient(by):
    """Against differences of the densities in float64."""
    model, h = mlp_model(by), 1e-3
    x, way = data((6,), n=1), data((6,), n=1, seed=2)

    def log_prob(x):
        return model.log_prob(x, KEY, solver=scoremle.Multistep(32)).log_prob.sum()

    gradient = jax.grad(log_prob)(jnp.asarray(x, float))
    both = [log_prob64(made(MLP), (x + sign * h * way)[0], steps=60) for sign in (1, -1)]
    expected = (both[0] - both[1]) / (2 * h)
    np.testing.assert_allclose(np.vdot(gradient, way), expected, rtol=2e-3)


class Beside(torch.nn.Module):
    """A module with a tensor that has gradients and is not a parameter."""

    def __init__(self):
        super().__init__()
        self.factor = torch.ones((), requires_grad=True)

    def forward(self, x, label):
        return self.factor * x


@pytest.mark.parametrize("probes", [0, 1, 2])
def test_what_comes_back_has_no_gradients(probes):
    frozen, x = Frozen(Beside()), torch.ones(2, 3)
    inputs, v = (x, torch.ones(2)), torch.ones(probes, 2, 3)
    y, products = frozen.products(inputs, v)
    for found in (frozen.quietly(*inputs), y, products):
        assert not found.requires_grad
    assert torch.equal(y, x) and torch.equal(products, v)


def test_values_and_products_with_probes_have_gradients():
    """Of y = x^3 scale and of J v = 3 x^2 scale v."""

    class Cube(nn.Module):
        def forward(self, x, label, scale):
            return x**3 * scale

    x, scale = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 3.0]])
    inputs, v = (x, torch.ones(1), scale), torch.tensor([[[1.0, 2.0]]])
    dy, dproducts = torch.tensor([[1.0, 10.0]]), torch.tensor([[[7.0, 0.5]]])
    (dx, dlabel, dscale), dv = Frozen(Cube()).pull_back(inputs, v, dy, dproducts)
    slope = 3 * x**2 * scale
    assert torch.allclose(dx, dy * slope + dproducts[0] * 6 * x * scale * v[0])
    assert torch.allclose(dscale, dy * x**3 + dproducts[0] * 3 * x**2 * v[0])
    assert torch.allclose(dv[0], dproducts[0] * slope) and not dlabel.any()


def test_products_of_attention_have_gradients():
    """By plain products: the kernel that PyTorch takes on a CPU has no second derivative."""

    class Attention(nn.Module):
        def forward(self, x, label):
            return nn.functional.scaled_dot_product_attention(x, x, x)

    x, v = (torch.from_numpy(data((1, 3, 4), n=2, seed=i)).float() for i in (1, 2))
    frozen, h = Frozen(Attention()), 1e-2

    def change(x):
        return (frozen.products((x, torch.ones(2)), v[None])[1][0] * v).sum()

    inputs, ones = (x, torch.ones(2)), torch.ones(1, 2, 1, 3, 4)
    (dx, _), _ = frozen.pull_back(inputs, v[None], torch.zeros_like(x), ones * v)
    moved = (change(x + h * v) - change(x - h * v)) / (2 * h)
    assert (dx * v).sum().item() == pytest.approx(moved.item(), rel=1e-2)


@pytest.mark.long
@by_both(quick="torchax")
def test_attention_has_a_second_derivative(by):
    model = from_module(
        made(Convolutions), schedule=SDE, shape=(4, 4, 2), time_input="log_snr", by=by
    )
    x = jnp.asarray(data((4, 4, 2), n=1), float)
    way, h = jnp.asarray(data((4, 4, 2), n=1, seed=2), float), 0.01

    @jax.jit
    def log_prob(x):
        found = model.log_prob(
            x, KEY, divergence=scoremle.Hutchinson(2), solver=scoremle.Multistep(4)
        )
        return found.log_prob.sum()

    change = (log_prob(x + h * way) - log_prob(x - h * way)) / (2 * h)
    np.testing.assert_allclose(jnp.vdot(jax.grad(log_prob)(x), way), change, rtol=5e-3)


def test_in_pytorch_a_module_has_a_derivative_in_reverse_alone():
    model, module = mlp_model("torch"), made(MLP)
    x, v = (jnp.asarray(data((6,), seed=i), float) for i in (1, 2))
    t = jnp.full(2, 0.4)
    inside = torch.from_numpy(np.asarray(x).copy()).requires_grad_()
    label = torch.full((2,), float(SDE.log_snr(jnp.asarray(0.4))))
    (own,) = torch.autograd.grad(module(inside, label), inside, torch.from_numpy(np.array(v)))
    found = jax.vjp(lambda x: model.noise(x, t), x)[1](v)[0]
    np.testing.assert_allclose(found, own.numpy(), atol=1e-5)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: model.noise(x, t), (x,), (v,))
    signs = scoremle.FixedProbe(jnp.sign(v)[None])
    ours, published = (
        model.log_prob(x, KEY, divergence=signs, solver=solver).log_prob
        for solver in (scoremle.Multistep(64), PublishedRK45())
    )
    np.testing.assert_allclose(ours, published, atol=5e-3)


@by_both(quick="torchax")
def test_classes_and_contexts(by):
    """A label in integers, and a context whose gradient is that of differences."""
    few, model = scoremle.Multistep(8), mlp_model(by, made(MLP, classes=3), condition=[0])

    class OfClass(nn.Module):
        def __init__(self, number):
            super().__init__()
            self.of_all, self.number = made(MLP, classes=3), number

        def forward(self, x, label):
            return self.of_all(x, label, torch.full(x.shape[:1], self.number).to(x.device))

    x = jnp.asarray(data((6,)), float)
    found = model.log_prob(x, KEY, condition=np.array([2, 1]), solver=few)
    for place, number in enumerate((2, 1)):
        alone = mlp_model("torch", OfClass(number)).log_prob(x, KEY, solver=few)
        np.testing.assert_allclose(found.log_prob[place], alone.log_prob[place], atol=1e-4)

    model = mlp_model(by, condition=np.zeros((1, 24)))

    def log_prob(context):
        return model.log_prob(x, KEY, condition=context, solver=few).log_prob.sum()

    context, way = (jnp.asarray(data((24,), n=1, seed=i), float) for i in (3, 4))
    change = (log_prob(context + 0.01 * way) - log_prob(context - 0.01 * way)) / 0.02
    np.testing.assert_allclose(jnp.vdot(jax.grad(log_prob)(context), way), change, rtol=5e-3)


@pytest.mark.long
@by_both(quick="torch")
def test_two_models_in_one_program_and_in_two_threads(by):
    models = [mlp_model(by, made(MLP)), mlp_model(by, made(MLP, classes=1), condition=[0])]
    conditions, x = (None, np.array([0])), jnp.asarray(data((6,), n=4), float)

    def log_prob(model, condition, x):
        return model.log_prob(x, KEY, condition=condition, solver=scoremle.Multistep(8)).log_prob

    alone = [np.asarray(log_prob(*pair, x)) for pair in zip(models, conditions, strict=True)]
    assert np.abs(alone[0] - alone[1]).min() > 1e-3
    together = jax.jit(lambda a, b, x: log_prob(a, None, x) - log_prob(b, conditions[1], x))
    np.testing.assert_allclose(together(*models, x), alone[0] - alone[1], atol=1e-3)

    found = [[], []]
    compiled = jax.jit(log_prob)

    def work(i):
        for _ in range(3):
            found[i].append(np.asarray(compiled(models[i], conditions[i], x)))

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "the two wait for each other"
    for own, several in zip(alone, found, strict=True):
        np.testing.assert_allclose(np.stack(several), np.stack([own] * 3), atol=1e-3)


@pytest.mark.long
@by_both(quick="torch")
def test_under_vmap_and_by_the_sliced_bound(by):
    """Draws under vmap, and the bound whose integrand is a product of forward mode."""
    model, x = mlp_model(by), jnp.asarray(data((6,), n=4), float)

    def log_prob(x):
        return model.log_prob(x, KEY, solver=scoremle.Multistep(8)).log_prob

    several = jax.vmap(log_prob)(x.reshape(2, 2, 6))
    np.testing.assert_allclose(several, [log_prob(x[:2]), log_prob(x[2:])], atol=1e-3)
    times = scoremle.UniformLogSNR(SDE, model.eps, stratified=True)
    bounds = [
        scoremle.elbo(
            model.noise, SDE, x, KEY, eps=model.eps, times=times, draws=100, matching=matching
        )
        for matching in ("sliced", "denoising")
    ]
    gaps = np.abs(bounds[0].log_prob - bounds[1].log_prob)
    assert (gaps < 5 * np.hypot(bounds[0].stderr, bounds[1].stderr)).all()


@pytest.mark.long
@by_both(quick="torchax")
def test_images_of_integers_are_scored_by_a_name_of_betas(by):
    """The pixels of a pipeline, its steps and its labels: all by schedule="linear"."""
    pixels = scoremle.Pixels(8)
    model = from_module(
        made(Convolutions), schedule="linear", shape=(4, 4, 2), pixels=pixels, by=by
    )
    assert model.eps == 1e-3
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha = torch.cumprod(1 - betas, 0).sqrt().numpy()[[0, 300, 999]]
    np.testing.assert_allclose(model.sde.alpha(jnp.array([1, 301, 1000]) / 1000), alpha, rtol=1e-3)
    np.testing.assert_allclose(
        model.sde.schedule.label(jnp.array([1, 301, 1000]) / 1000), [0, 300, 999], atol=1e-3
    )
    images = np.random.default_rng(0).integers(0, 8, (3, 4, 4, 2), np.uint8)
    one, other = (model.score(images, batch_size=size) for size in (2, 3))
    np.testing.assert_allclose(one.bpd, other.bpd, atol=1e-4)


# --- what stays as it is, and what is refused -------------------------------------------------


def settings():
    return (
        torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(),
        torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled(),
        os.environ.get("ENABLE_RUNTIME_UPTIME_TELEMETRY"),
        torch._utils._get_available_device_type(),  # where DataParallel goes
        jax.config.jax_pjrt_client_create_options, jax.config.jax_default_matmul_precision,
    )  # fmt: skip


@pytest.mark.skipif(not find_spec("torchax"), reason="needs torchax")
def test_what_torchax_changes_is_set_back(monkeypatch):
    """By its import, too, of which a process has one: here each setting is changed by hand."""
    monkeypatch.delenv("ENABLE_RUNTIME_UPTIME_TELEMETRY", raising=False)
    before = settings()
    with by_torchax._settings_kept():
        os.environ["ENABLE_RUNTIME_UPTIME_TELEMETRY"] = "1"
        jax.config.update("jax_pjrt_client_create_options", "a:b")
        assert not torch.backends.mha.get_fastpath_enabled()
    assert settings() == before


IMPORTED = """
import sys
import torch
from scoremle.interop.torch import from_velocity

class Net(torch.nn.Linear):
    def forward(self, x, t):
        return super().forward(torch.cat([x, t[:, None]], 1))

model = from_velocity(Net(2, 1), data_at=1, shape=(1,), by="torchax")
print(*sorted({"flax", "torch._dynamo"} & set(sys.modules)))
print(torch._utils._get_available_device_type())  # where DataParallel goes
"""


@pytest.mark.long
@pytest.mark.skipif(not find_spec("torchax"), reason="needs torchax")
def test_what_is_slow_to_import_is_not_imported_for_a_module():
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\nNone\n"), done.stderr


@by_both(quick="torchax")
def test_the_module_and_all_settings_stay_as_they_were(by):
    module, before = made(MLP).half(), settings()
    model = mlp_model(by, module)
    x = jnp.asarray(data((6,)), float)
    first = model.log_prob(x, KEY).log_prob
    jax.grad(lambda x: model.log_prob(x, KEY).log_prob.sum())(x)
    assert settings() == before
    assert module.training and all(p.requires_grad for p in module.parameters())
    assert {p.dtype for p in module.parameters()} == {torch.float16}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(model.log_prob(x, KEY).log_prob, first)


class Odd(MLP):
    """Does one thing that torchax has no name for: it asks for numbers."""

    def forward(self, x, label):
        return super().forward(x, label) * (1.0 if x.detach().numpy().size else 0.0)


class Outside(MLP):
    """Uses a module that is no part of it."""

    def forward(self, x, label):
        return elsewhere(x)


elsewhere = nn.Linear(6, 6)


@pytest.mark.skipif(not find_spec("torchax"), reason="needs torchax")
def test_tensors_from_outside_of_a_module_are_named(caplog):
    mlp_model(None, made(Outside))
    assert "make them its buffers" in caplog.text
    with pytest.raises(UserError, match="from outside"):
        mlp_model("torchax", made(Outside))


@pytest.mark.skipif(not find_spec("torchax"), reason="needs torchax")
def test_what_is_translated_goes_where_the_data_are():
    """Bound to the CPU, where modules are made, it would keep all work off JAX's GPU."""
    weights = jax.tree.leaves(mlp_model("torchax").noise.network)
    assert weights and not any(leaf.committed for leaf in weights)


def test_a_gpu_that_pytorch_does_not_see_is_a_line(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        mlp_model("torch")


def test_which_way_it_goes_is_said_once_and_is_in_its_repr(by, caplog):
    with caplog.at_level(logging.INFO, "scoremle"):
        model = mlp_model(by)
    (record,) = caplog.records
    chosen = "in PyTorch, on cpu: by your choice"
    words = {"torch": chosen, "torchax": "translated to JAX by torchax"}
    assert words[by] in record.getMessage() and repr(model).endswith(f"{words[by]})")


def test_other_weights_are_another_model(by):
    module = made(MLP)
    models = [mlp_model(by, module), mlp_model(by, made(MLP))]
    with torch.no_grad():
        next(module.parameters()).mul_(2)
    first, same, other = map(model_hash, [*models, mlp_model(by, module)])
    assert first == same != other


def test_a_model_that_was_pickled_is_the_same(by):
    model = mlp_model(by)
    again = pickle.loads(pickle.dumps(model))
    assert model_hash(again) == model_hash(model)
    x = jnp.asarray(data((6,), n=4), jnp.float32)
    found, expected = (jax.jit(m.noise)(x, jnp.full(4, 0.3)) for m in (again, model))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_can_not_be_translated_stays_in_pytorch_and_is_said_once(caplog):
    with caplog.at_level(logging.WARNING, "scoremle"):
        model = mlp_model(None, made(Odd))
    (record,) = caplog.records
    why = record.getMessage().removeprefix("Odd stays in PyTorch, on cpu: ")
    assert re.match(r"\w+Error: ", why)  # Odd fails in a library, whose words may say little
    assert record.getMessage().removeprefix("Odd stays ") in repr(model)
    x = jnp.asarray(data((6,)), float)
    plain = mlp_model("torch").log_prob(x, KEY)
    np.testing.assert_allclose(model.log_prob(x, KEY).log_prob, plain.log_prob, atol=1e-5)


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'torchax'", name="torchax"),
        AttributeError("The underlying op of 'aten.prod' has no overload name 'dim_Dimname'"),
    ],
)
def test_where_torchax_is_missing_or_does_not_fit_pytorch_is_the_way(error, monkeypatch, caplog):
    def translated(module):
        raise error

    monkeypatch.setattr(network, "translated", translated)
    assert "in PyTorch, on cpu: " in repr(mlp_model(None)) and len(caplog.records) == 1
    with pytest.raises(UserError, match="be translated"):
        mlp_model("torchax")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda y, x: y + 3e-4 * x, "its value"),
        (lambda y, x: jax.lax.stop_gradient(y), "its v'Jv"),
    ],
)
def test_a_wrong_translation_is_seen(monkeypatch, caplog, wrong, words):
    right = InTorch(Frozen(made(MLP)))
    found = jax.tree_util.Partial(lambda x, label: wrong(right.transposed(x, label), x))
    monkeypatch.setattr(network, "translated", lambda module: found)
    with pytest.raises(UserError, match=words):
        mlp_model("torchax")
    mlp_model(None)
    assert words in caplog.text


class Table(nn.Module):
    """t by a table of STEPS rows. ``read``: how a label becomes a row."""

    STEPS = 20

    def __init__(self, read):
        super().__init__()
        torch.manual_seed(0)
        self.read, self.table, self.inside = read, nn.Embedding(self.STEPS, 3), nn.Linear(3, 3)

    def forward(self, x, label):
        return self.inside(x) + self.read(self.table, label)


def between_rows(table, label):
    """What lies between two rows, of the table's own weights: no integers are needed."""
    rows = torch.arange(len(table.weight))
    return (1 - (label[:, None] - rows).abs()).clamp(min=0) @ table.weight


READS = {
    "raw": lambda table, label: table(label),
    "cut off": lambda table, label: table(label.long()),
    "rounded": lambda table, label: table(label.round().long()),
    "mixed": between_rows,
}


def of_table(read, **options):
    betas = np.linspace(0.01, 0.3, Table.STEPS)
    schedule = scoremle.Discrete.of_betas(betas)
    return from_module(Table(READS[read]), schedule=schedule, shape=(3,), **options)


@pytest.mark.long
@by_both(quick="torchax")
@some("read", ["raw", "cut off"], quick=["cut off"])
def test_between_the_steps_of_a_table_outputs_are_mixed(read, by):
    """Output and log p are those of the module whose table is straight between its rows."""
    found, truth = of_table(read, by=by, between="interpolate"), of_table("mixed", by="torch")
    assert found.noise.network.way in repr(found)
    label = np.array([0.0, 4.0, 7.3, 18.9, 19.0])
    x, t = jnp.asarray(data((3,), 5), float), jnp.asarray((label + 1) / Table.STEPS)
    np.testing.assert_allclose(found.noise(x, t), truth.noise(x, t), atol=2e-6)
    p, q = (model.log_prob(x, KEY, solver=scoremle.Multistep(12)) for model in (found, truth))
    np.testing.assert_allclose(p.log_prob, q.log_prob, atol=2e-5)


def test_a_module_of_whole_steps_is_named_with_the_remedy(caplog):
    for read, words in (("cut off", "interpolate"), ("rounded", "interpolate"), ("mixed", "")):
        caplog.clear()
        of_table(read, by="torch")
        assert bool(words) == bool(caplog.text) and words in caplog.text, read
    of_table("cut off", by="torch", between="interpolate")
    assert not caplog.text
    by_time = Table(lambda table, label: table((19 * label).long()))
    from_module(by_time, schedule=SDE, shape=(3,), time_input="time", by="torch")
    assert "cuts off digits" in caplog.text
    with pytest.raises(UserError, match="between='interpolate'"):
        of_table("raw", by="torch")


def test_a_bare_module_is_no_noise_prediction():
    module = torch.nn.Identity()
    for noise in (module, scoremle.noise_fn(module, SDE)):
        with pytest.raises(UserError, match="a PyTorch module"):
            scoremle.ScoreModel(noise, SDE, 1e-3, (2,))


def test_a_module_that_fails_at_whole_steps_too_is_left_to_the_other_checks(caplog):
    label = torch.full((2,), 3.0)
    with pytest.raises(UserError, match="sizes of tensors"):
        Frozen(Bad("fails")).quietly(torch.ones(2, 6), label)
    network._check_between_steps(Frozen(Bad("fails")), torch.ones(2, 6), label)
    assert not caplog.text


def test_a_module_may_write_into_its_inputs():
    class Writes(MLP):
        def forward(self, x, label):
            return super().forward(x.mul_(2), label.neg_())

    class Reads(MLP):
        def forward(self, x, label):
            return super().forward(2 * x, -label)

    x = jnp.asarray(data((6,)), float)
    own, other = (mlp_model("torch", made(kind)) for kind in (Writes, Reads))
    found = own.log_prob(x, KEY, solver=scoremle.Multistep(8))
    expected = other.log_prob(x, KEY, solver=scoremle.Multistep(8))
    np.testing.assert_array_equal(found.log_prob, expected.log_prob)


class Masked(MLP):
    """The whole output where a mask is true, and otherwise half of it, twice."""

    def forward(self, x, label, mask):
        y = super().forward(x, label)
        return torch.where(mask, y, y / 2) * (1 + ~mask)


@by_both(quick="torch")
def test_a_mask_is_of_truth_values(by):
    """As whole numbers they would be inverted to -1 and -2, and choose nothing."""
    mask = np.array([[True, False, True, True, False, False]])
    masked, plain = mlp_model(by, made(Masked), condition=mask), mlp_model(by)
    x, t = jnp.asarray(data((6,)), float), jnp.full(2, 0.5)
    under = masked.condition_on(mask).noise
    expected = plain.noise(x, t)  # halved and doubled again
    np.testing.assert_allclose(under(x, t), expected, rtol=1e-5)
    slopes = [jax.grad(lambda x, f=f: f(x, t).sum())(x) for f in (under, plain.noise)]
    np.testing.assert_allclose(*slopes, rtol=1e-5)
    with pytest.raises(UserError, match="truth values"):
        masked.log_prob(x, KEY, condition=mask.astype(int))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_what_is_read_of_a_table_is_what_torch_reads(axis):
    x, places = torch.arange(12.0).reshape(3, 4), torch.tensor([[2, 0], [1, 2]])
    for function, operation, where in (
        (by_torchax._gather, torch.gather, places),  # fewer rows than there are
        (by_torchax._select, torch.index_select, places[0]),
    ):
        found = function(jnp.asarray(x), axis, jnp.asarray(where))
        np.testing.assert_array_equal(found, operation(x, axis, where))
    where = places * 5 - 12
    found = by_torchax._take(jnp.asarray(x), jnp.asarray(where))
    np.testing.assert_array_equal(found, x.take(where))


class OfClass(nn.Module):
    """The noise prediction of N(mean of a class, I), whose means are read from a table."""

    def __init__(self, read):
        super().__init__()
        self.read, self.means = read, nn.Embedding(3, 2)

    def forward(self, x, log_snr, label):
        alpha, sigma = (torch.sigmoid(sign * log_snr)[:, None].sqrt() for sign in (1, -1))
        table = self.means.weight
        both = label[:, None].expand(-1, 2)
        means = {"layer": lambda: self.means(label), "index": lambda: table[label],
                 "pair": lambda: table[label, :], "gather": lambda: table.gather(0, both),
                 "select": lambda: table.index_select(0, label),
                 "take": lambda: table.take(2 * both + (both * 0 + 1).cumsum(1) - 1)}  # fmt: skip
        return sigma * (x - alpha * means[self.read]())


@some("read", ["layer", "index", "pair", "gather", "select", "take"], quick=["layer", "index"])
def test_a_class_beyond_a_table_is_no_other_class(read):
    """PyTorch refuses it, and JAX would read the nearest row."""
    pytest.importorskip("torchax")
    torch.manual_seed(0)
    module = OfClass(read)
    model = from_module(module, schedule=SDE, shape=(2,), time_input="log_snr", condition=1,
                        by="torchax")  # fmt: skip
    mean = module.means.weight.detach().numpy()[2]
    x = np.stack([mean] * 3)
    # An index of a tensor may be from its end.
    below = -4 if read in ("index", "pair", "take") else -1
    with pytest.warns(match="finite"):
        found = model.log_prob(x, KEY, condition=np.array([2, 3, below])).log_prob
    np.testing.assert_allclose(found[0], -np.log(2 * np.pi), atol=2e-3)
    assert np.isnan(found[1:]).all()
    wrong = ((None, "no condition"), (1.0, "reals"), (np.ones((3, 2), int), "n, 2"))
    for condition, words in wrong:
        with pytest.raises(UserError, match=words):
            model.log_prob(x, KEY, condition=condition)


def test_a_derivative_near_a_kink_is_no_mistake():
    class Kinks(nn.Module):
        def forward(self, x, at):
            return (x - at).abs()

    x, away = torch.ones(2, 3), torch.tensor([5e-3, -5e-2])[:, None]  # of the kinks
    inputs, v = (x, x + away), np.float32([[1, -1, 1], [1, -1, 1]])
    right = v * -torch.sign(away).numpy()
    network._check_derivative(Frozen(Kinks()), inputs, v, right)
    with pytest.raises(UserError, match="of its values"):
        network._check_derivative(Frozen(Kinks()), inputs, v, -right)


class HalfDetached(nn.Module):
    """Values of a network, and half of their derivative."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(65, 64), nn.Tanh(), nn.Linear(64, 65))

    def forward(self, x, at):
        y = self.layers(x)
        return (y + y.detach()) / 2


@pytest.mark.parametrize("seed", range(6))
def test_half_of_a_derivative_is_noticed_whatever_the_network(seed):
    """The form v'Jv alone, whose terms cancel, would pass two of these networks."""
    torch.manual_seed(seed)
    x = np.random.default_rng(seed).normal(size=(1, 65)).astype(np.float32)
    with pytest.raises(UserError, match="of its values"):
        network._Truth(Frozen(HalfDetached()), [x, x[:, 0]])


def test_all_probes_of_an_image_share_its_forward_pass():
    class Counting(MLP):
        calls = 0

        def forward(self, x, label):
            Counting.calls += 1
            return super().forward(x, label)

    model = mlp_model("torch", made(Counting))
    Counting.calls = 0
    found = model.log_prob(
        jnp.asarray(data((6,)), float), KEY,
        divergence=scoremle.Hutchinson(3), solver=scoremle.Multistep(8),
    )  # fmt: skip
    assert np.isfinite(found.log_prob).all() and Counting.calls == 9


class Bad(MLP):
    def __init__(self, what, **options):
        super().__init__(**options)
        self.what = what

    def forward(self, x, label):
        y = super().forward(x, label)
        if self.what == "prints":
            print("step", 3)
        if self.what == "fails":
            raise RuntimeError("sizes of tensors must match\nin dimension 1")
        bad = {
            "tuple": lambda: (y,), "twice": lambda: torch.cat([y, y], 1),
            "half": lambda: y.half(), "nan": lambda: y / 0 * 0,
            "dropout": lambda: nn.functional.dropout(y), "mixes": lambda: y - y.mean(0),
            "cut": lambda: y.detach(), "half cut": lambda: y / 2 + y.detach() / 2,
            "first": lambda: y[:1].expand_as(y), "its time": lambda: super(Bad, self).forward(
                x, label[:1].expand_as(label)),
            "many": lambda: y if len(x) < 3 else None,
        }  # fmt: skip
        return bad.get(self.what, lambda: y)()


class Uncopied(MLP):
    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle a socket")


class ForEach(PerDimension):
    def log_snr(self, t):
        return t


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        (lambda x, t: x, {}, "torch.nn.Module"),
        (made(Bad, "fails"), {}, "sizes of tensors"),
        (made(Bad, "prints"), {}, "Bad prints"),
        (made(Bad, "tuple"), {}, "a tuple"),
        (made(Bad, "twice"), {}, r"\[2, 12\]"),
        (made(Bad, "half"), {}, "float16"),
        (made(Bad, "nan"), {}, "NaN"),
        (made(Bad, "dropout"), {}, "at every call"),
        (made(Bad, "mixes"), {}, "another batch"),
        (made(Bad, "first"), {}, "another batch"),
        (made(Bad, "its time"), {}, "another batch"),
        (made(Bad, "half cut"), {}, "of its values"),
        (made(Bad, "cut"), {"by": "torch"}, "be differentiated"),
        (made(Uncopied), {}, "cannot pickle"),
        (nn.Sequential(nn.LazyLinear(6)), {}, "uninitialized"),
        (nn.Linear(6, 6, device="meta"), {}, "device meta"),
        (made(MLP, 5), {}, "failed on inputs"),
        (made(MLP), {"prediction": "noise"}, "prediction must"),
        (made(MLP), {"time_input": "t"}, "time_input must"),
        (made(MLP), {"time_input": "step"}, "Discrete schedule"),
        (made(MLP), {"between": "interpolate"}, "between is of"),
        (made(MLP), {"between": "nearest"}, "between must"),
        (made(MLP), {"time_input": None}, "label of the"),
        (made(MLP), {"schedule": "linaer"}, "scaled_linear"),
        (made(MLP), {"schedule": 3}, "not a int"),
        (made(MLP), {"schedule": ForEach()}, "all dimensions"),
        (made(MLP), {"shape": (2, 3)}, "shape must"),
        (made(MLP), {"condition": [1j]}, "complex128"),
        (made(Odd), {"by": "torchax"}, "be translated"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(module, options, words, unchecked):
    with pytest.raises(UserError, match=words) as error:
        mlp_model(options.pop("by", None), module, **options)
    assert "\n" not in str(error.value)


def test_a_module_of_torchscript_is_one_line():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.trace(made(MLP), (torch.zeros(2, 6), torch.zeros(2)))
    with pytest.raises(UserError, match="plain nn"):
        mlp_model(None, module)


class Energy(nn.Module):
    """The noise of a Gaussian with mean 1.5 and standard deviation 0.5, by torch's gradient."""

    def forward(self, x, label):
        alpha, sigma = (a[:, None] for a in signal_and_noise(label))
        with torch.enable_grad():
            y = x if x.requires_grad else x.requires_grad_()
            energy = ((y - 1.5 * alpha) ** 2 / (0.25 * alpha**2 + sigma**2)).sum() / 2
            (slope,) = torch.autograd.grad(energy, y, create_graph=True)
        return sigma * slope


def signal_and_noise(log_snr):
    return torch.sigmoid(log_snr) ** 0.5, torch.sigmoid(-log_snr) ** 0.5


def test_a_score_may_be_the_gradient_of_an_energy(by):
    model = mlp_model(by, Energy())
    x = 1.5 + 0.5 * np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    found = model.log_prob(x, KEY)
    one = np.ones(1, np.float32)
    alpha, sigma = float(SDE.alpha(one)[0]), float(SDE.sigma(one)[0])
    widening = np.hypot(0.5 * alpha, sigma) / 0.5  # of the ODE, from the data to t = 1
    exact = norm.logpdf(1.5 * alpha + widening * (x - 1.5)) + np.log(widening)
    np.testing.assert_allclose(found.log_prob, exact.sum(axis=1), atol=0.01)


def test_what_fails_later_says_so_too():
    """Within a compiled program: JAX wraps the line into its own error."""
    model = mlp_model("torch", Bad("many"))
    with pytest.raises(RuntimeError, match="NoneType"):
        model.log_prob(jnp.zeros((3, 6)), KEY).log_prob.block_until_ready()


def test_pytorch_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install 'scoremle\[torch\]'"):
        mlp_model(None, object())
