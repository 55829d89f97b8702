"""Denoisers, velocities and pipelines: against closed forms, and the libraries they are of."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some

import scoremle
from scoremle.core.prediction import score_of
from scoremle.errors import UserError
from scoremle.interop.torch import (
    from_azula,
    from_diffusers,
    from_edm,
    from_module,
    from_velocity,
)
from scoremle.solvers.multistep import Planned

torch = pytest.importorskip("torch")
nn = torch.nn
KEY, WIDTHS = jax.random.key(0), (0.2, 0.5, 1.0)


@pytest.fixture(autouse=True)
def one_thread():
    """Torch's threads wait for one another by spinning: beside another worker, for minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(nn.Module):
    def __init__(self, dims=3):
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.out = nn.Linear(dims + 1, 16), nn.Linear(16, dims)

    def forward(self, x, t):
        told = t.expand(len(x))[:, None]
        return self.out(torch.tanh(self.inside(torch.cat([x, told], 1))))


def data(n=4, dims=3):
    return np.random.default_rng(0).normal(size=(n, dims)) * 0.6


def log_normal(x, variance):
    return -0.5 * (x**2 / variance + np.log(2 * math.pi * variance)).sum(1)


class Velocity(nn.Module):
    """That of N(0, diag(w)), in closed form: E[dx/dt | x]."""

    def __init__(self, data_at):
        super().__init__()
        self.data_at, self.w = data_at, torch.tensor(WIDTHS) ** 2

    def forward(self, x, t):
        t = t[:, None]
        a, s = (t, 1 - t) if self.data_at else (1 - t, t)
        u = (s - a * self.w) / (a**2 * self.w + s**2) * x
        return -u if self.data_at else u


@pytest.mark.parametrize("data_at", [0, 1])
@pytest.mark.parametrize("ends", [(-18.0, 13.3), (-18.0, 18.0)])
def test_a_velocity_either_way_has_the_density_of_its_gaussian(data_at, ends):
    x, w = data(), np.square(WIDTHS)
    model = from_velocity(Velocity(data_at), data_at=data_at, shape=(3,), log_snr=ends)
    found = model.log_prob(jnp.asarray(x, float), KEY, solver=scoremle.Multistep(64))
    t = float(model.sde.sigma(jnp.asarray(model.eps)))
    assert t == pytest.approx(1 / (1 + math.exp(ends[1] / 2)), rel=1e-3)
    # Of the data with noise of t / (1 - t): alpha is 1 - t at the cut.
    expected = log_normal((1 - t) * x, (1 - t) ** 2 * w + t**2) + 3 * math.log(1 - t)
    bits = 3 * math.log(2)
    assert (np.abs(found.log_prob - expected) < 1e-4 * bits + found.solver_error).all()
    assert (found.solver_error < 2e-3 * bits).all(), found.solver_error


class Far(nn.Module):
    """That of N(5, 0.1^2 I): so far from 0 that a factor of 0.999 moves it by a twentieth."""

    def forward(self, x, t):
        a, s = t[:, None], 1 - t[:, None]
        apart = (x - 5 * a) / (0.01 * a**2 + s**2)
        return 5 + (0.01 * a - s) * apart


def test_the_default_call_has_the_density_of_the_data():
    """Truth is that of the data: what the noise at the cut adds is 3e-4 nats here, at most."""
    model = from_velocity(Far(), data_at=1, shape=(2,))
    x = np.concatenate([data(64, 2) / 6, [[0, 0], [0.2, 0.2], [-0.2, -0.2]]]) + 5
    found = model.log_prob(jnp.asarray(x, float), KEY)
    error = np.abs(found.log_prob - log_normal(x - 5, 0.01))
    assert (error < found.solver_error + 2e-3).all(), (error, found.solver_error)
    assert np.sqrt(np.mean(found.solver_error**2)) < 4 * np.sqrt(np.mean(error**2))


class Wrong(Velocity):
    """A velocity that is off by some tenths, at the data too."""

    def forward(self, x, t):
        return super().forward(x, t) + 0.4 * torch.sin(3 * x + t[:, None])


def test_the_stated_error_near_an_open_end_is_that_of_the_steps():
    """Where no noise is left, such a network has a score that is far too large."""
    model = from_velocity(Wrong(1), data_at=1, shape=(3,))
    x = jnp.asarray(data(64) * np.array(WIDTHS) / 0.6, float)

    @jax.jit
    def run(solver):
        return model.log_prob(x, KEY, solver=solver)

    truth = run(Planned.of(1024, 1024)).log_prob
    # Four times is wanted by 32 steps. Without care for the first step's difference it was 5, and
    # 11 at 128 steps.
    for steps, most in ((32, 4), (64, 5), (128, 7)):
        found = run(Planned.of(steps, 1024))
        error, stated = np.abs(found.log_prob - truth), np.asarray(found.solver_error)
        times = np.sqrt(np.mean(stated**2) / np.mean(error**2))
        assert 2 < times < most, (steps, times)
        assert (error <= stated).mean() > 0.9


def test_flow_matchings_own_likelihood():
    """Its solver, from the one end of the path to the other, in float64."""
    solver = pytest.importorskip("flow_matching.solver")
    pytest.importorskip("torchdiffeq")
    x = data()
    model = from_velocity(Net(), data_at=1, shape=(3,), log_snr=(-18.0, 18.0))
    found = model.log_prob(jnp.asarray(x, float), KEY, solver=scoremle.Multistep(64))
    normal = torch.distributions.Independent(
        torch.distributions.Normal(torch.zeros(3).double(), 1.0), 1
    )
    _, expected = solver.ODESolver(Net().double()).compute_likelihood(
        torch.from_numpy(x), normal.log_prob, None, method="dopri5", atol=1e-8, rtol=1e-8,
        time_grid=torch.tensor([1.0, 0.0]), exact_divergence=True,
    )  # fmt: skip
    # The one is a density of data with noise of 1e-4.
    error = np.abs(found.log_prob - expected.detach().numpy())
    assert (error < 1e-3 + found.solver_error).all(), (error, found.solver_error)


class Preconditioned(nn.Module):
    """EDM's D of its F (arXiv 2206.00364, table 1); images, of one value each."""

    def __init__(self):
        super().__init__()
        self.F = Net()

    def forward(self, x, sigma):
        both = torch.sqrt(sigma**2 + 0.25)[:, None]
        F = self.F(x / both, torch.log(sigma) / 4)
        sigma = sigma[:, None]
        return 0.25 / both**2 * x + sigma * 0.5 / both * F


def test_a_denoiser_of_edm():
    """Against itself in float64; and F, whose large terms have cancelled before."""
    model = from_edm(Preconditioned(), shape=(3,))
    t = jnp.asarray([0.02, 0.3, 0.6, 0.95])
    sigma = np.asarray(model.sde.sigma(t), np.float64)
    assert sigma[0] > 0.002 and model.sde.prior_std == 80
    x = data() * np.hypot(0.5, sigma)[:, None]
    with torch.no_grad():
        D = Preconditioned().double()(torch.from_numpy(x), torch.from_numpy(sigma)).numpy()
    eps = (x - D) / sigma[:, None]
    np.testing.assert_allclose(model.noise(jnp.asarray(x, float), t), eps, atol=1e-4)
    other = from_module(
        Net(), schedule=model.sde, shape=(3,), prediction="edm", time_input="c_noise"
    )
    np.testing.assert_allclose(other.noise(jnp.asarray(x, float), t), eps, atol=2e-5)
    y = jnp.asarray(data(), float)
    found, same = (m.log_prob(y, KEY).log_prob for m in (model, other))
    np.testing.assert_allclose(found, same, atol=1e-2)


class Typed(nn.Module):
    """A denoiser as azula has them, where azula is not."""

    def __init__(self, schedule):
        super().__init__()
        self.net, self.schedule = Net(), schedule

    def forward(self, x, t):
        return SimpleNamespace(mean=x + self.schedule(t)[1][:, None] * self.net(x, t))


def straight(t):
    return 1 - 0.999 * t, 0.001 + 0.999 * t


def denoiser_of(kind):
    if kind == "typed":
        return Typed(straight)
    pytest.importorskip("azula")
    from azula import denoise, noise

    return denoise.KarrasDenoiser(Net(), getattr(noise, f"{kind}Schedule")())


@some("kind", ["typed", "VP", "VE", "Cosine", "Rectified", "Decay"], quick=["typed", "VE"])
def test_denoisers_of_azula(kind):
    """At its own times and scales, in float64."""
    model = from_azula(denoiser_of(kind), shape=(3,))
    own = denoiser_of(kind).double()
    t = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
    alpha, sigma = own.schedule(t)
    x = torch.from_numpy(data()) * torch.hypot(alpha, sigma)[:, None]
    with torch.no_grad():
        mean = own(x, t).mean
    eps = ((x - alpha[:, None] * mean) / sigma[:, None]).numpy()
    at = model.sde.time_of_log_snr(jnp.asarray(2 * torch.log(alpha / sigma).numpy(), float))
    found = model.noise(jnp.asarray(data(), float), at)
    limit = 1e-5 + 3e-7 * (torch.hypot(alpha, sigma) / sigma).numpy()[:, None]
    assert (np.abs(found - eps) < limit).all(), np.abs(found - eps) / limit
    ends = own.schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))
    expected = 2 * torch.log(ends[0] / ends[1]).numpy()
    np.testing.assert_allclose(model.sde.log_snr(jnp.array([0.0, 1.0])), expected, rtol=1e-4)
    assert np.isfinite(model.log_prob(jnp.asarray(data(), float), KEY).log_prob).all()


UNET = {
    "sample_size": 4, "in_channels": 1, "out_channels": 1, "layers_per_block": 1,
    "norm_num_groups": 4, "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}  # fmt: skip


@pytest.mark.long
def test_a_live_pipeline_is_its_folder(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**UNET)
    pipeline = diffusers.DDPMPipeline(
        unet, diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    )
    pipeline.save_pretrained(tmp_path)
    live, stored = from_diffusers(pipeline), scoremle.load(tmp_path)
    for ours, other in zip(*map(jax.tree.leaves, (live, stored)), strict=True):
        np.testing.assert_array_equal(ours, other)
    assert (live.shape, live.pixels, live.eps) == (stored.shape, stored.pixels, stored.eps)
    assert live.noise.prediction == "x_0"
    pipeline.unet = torch.compile(unet)
    for ours, other in zip(*map(jax.tree.leaves, (from_diffusers(pipeline), live)), strict=True):
        np.testing.assert_array_equal(ours, other)
    other = diffusers.DDPMPipeline(unet, diffusers.FlowMatchEulerDiscreteScheduler())
    with pytest.raises(UserError, match="no betas"):
        from_diffusers(other)


def test_a_live_pipeline_of_sigmas_gives_their_score():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(1)
    unet = diffusers.UNet2DModel(**UNET, time_embedding_type="fourier").eval()
    pipeline = diffusers.ScoreSdeVePipeline(unet, diffusers.ScoreSdeVeScheduler(sigma_max=9.0))
    model, x = from_diffusers(pipeline), np.float32(data(3, 16).reshape(3, 4, 4, 1))
    sigma = np.array([0.02, 0.5, 8.0], np.float32)
    t = np.log(sigma / 0.01) / np.log(900)
    with torch.no_grad():
        theirs = unet(torch.tensor(x).movedim(-1, 1), torch.tensor(sigma)).sample.movedim(1, -1)
    found = jax.jit(score_of(model.noise, model.sde))(x, jnp.asarray(t))
    np.testing.assert_allclose(found, theirs, rtol=2e-3, atol=1e-3)


def test_a_live_network_must_have_its_numbers_and_its_own_class():
    diffusers = pytest.importorskip("diffusers")

    class Doubled(diffusers.UNet2DModel):
        """Gives twice the output, by the same parameters."""

    def unfinished(unet):
        next(unet.parameters()).data[0] = math.nan
        return unet

    for unet, words in (
        (diffusers.UNet2DModel(**UNET).to("meta"), "without numbers"),
        (unfinished(diffusers.UNet2DModel(**UNET)), "not all finite"),
        (Doubled(**UNET), "a Doubled"),
        (diffusers.UNet1DModel(), "a UNet1DModel"),
    ):
        with pytest.raises(UserError, match=words):
            from_diffusers(diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()))


class Latent:
    unet = scheduler = None
    config = {"vae": ("diffusers", "AutoencoderKL"), "_class_name": "LDMPipeline"}  # noqa: RUF012


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: from_velocity(Net(), data_at=2, shape=(3,)), "0 or 1"),
        (lambda: from_velocity(Net(), data_at=1, shape=(3,), log_snr=(5, -5)), "must be below"),
        (lambda: from_velocity(Net(), data_at=1, shape=(3,), log_snr=(2e3, 3e3)), "prior_std"),
        (lambda: from_velocity(lambda x, t: x, data_at=1, shape=(3,)), "not a function"),
        (lambda: from_velocity(Net(2), data_at=1, shape=(3,)), "failed on inputs"),
        (lambda: from_azula(Net(), shape=(3,)), "no schedule"),
        (lambda: from_module(Net(), schedule=scoremle.VP(), shape=(3,), time_input=lambda t: t),
         "with 2 arguments"),
        (lambda: from_edm(Net(), shape=(3,), sigma_min=0.0), "sigma_min must"),
        (lambda: from_diffusers(Net()), "no unet"),
        (lambda: from_diffusers(SimpleNamespace(unet=Net(), scheduler=None)), "no unet"),
        (lambda: from_diffusers(SimpleNamespace(unet=SimpleNamespace(config={}), scheduler=None)),
         "no scheduler"),
        (lambda: from_diffusers(Latent()), "a vae"),
    ],
)
def test_mistakes_are_one_line(call, words):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("function", "argument", "values"),
    [
        (from_module, "eps", ("3", 0.0, 1.0, math.nan)),
        (from_module, "shape", (3, (2.5,), (0,), (2, 3))),
        (from_module, "by", ("jax", 3)),
        (from_module, "condition", ("3", [[1.0], [1.0, 2.0]], ())),
        (from_module, "time_input", ("", np.ones(2))),
        (from_edm, "sigma_min", ("3", 0.0, 100.0, math.nan)),
        (from_edm, "sigma_max", ("3", 0.0, math.inf)),
        (from_velocity, "log_snr", (3.0, (1.0,), ("a", "b"), (-5.0, math.nan))),
        (from_velocity, "data_at", ("1", 0.5, 2, None, np.ones(2))),
    ],
)
def test_a_bad_argument_is_named_in_one_line(function, argument, values, unchecked):
    good = {"shape": (3,), "by": "torch"}
    if function is from_module:
        good |= {"schedule": scoremle.VP(), "time_input": "time"}
    if function is from_velocity:
        good |= {"data_at": 1}
    for bad in values:
        with pytest.raises(UserError, match=argument) as error:
            function(Net(), **(good | {argument: bad}))
        assert "\n" not in str(error.value)
