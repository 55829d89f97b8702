"""The exact likelihood beside peers: one field, one trace, and only the solver differs.

    python benchmarks/peers.py [--quick] [--subjects vectors particles]

Four fields: a mixture of eight Gaussians in the plane, in closed form, VP from t = 1e-3; the
network of ``scoremle.load("digits")`` on test digits, as it was trained, from t = 1e-5; an MLP
of random weights on 256 vectors of 10 dimensions, over the noise prediction of N(0, I), VP from t
= 1e-3; and a flow of 22 particles in three dimensions, an MLP that learned the velocity of the
straight path from a chain of them, on 32 configurations. Each is one function compiled by JAX that
all libraries call, so that none gains by another's network. Value and derivative count as one
evaluation: by forward mode in JAX, by reverse mode in torch and SciPy, as their users do. Of
vectors and particles the trace is exact. Elsewhere there is one probe for each example, the same
for all. So errors are those of the solvers alone, against SciPy's DOP853 in float64. The peers
solve the probability-flow ODE in t, that of particles in sigma, with x and log p in one state, the
batch together. Seconds are of CPU, without compilation. Prints versions and a table for each
field, of particles the first setting with an error below 0.05 nats; draws ``peers.png`` into the
workdir. ``--quick``: fewer digits, settings and steps of training. Needs diffrax, torchdiffeq,
flow_matching and matplotlib.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.integrate
import torch
from common import KEY, answer, mlp, mlp_params, parser_of, reals, timed
from flax.traverse_util import unflatten_dict
from flow_matching.solver import ODESolver
from jax.tree_util import Partial
from torchdiffeq import odeint

import scoremle
from scoremle.core.divergence import Exact, FixedProbe
from scoremle.core.pytree import pytree
from scoremle.core.sde import SDE
from scoremle.experiment.build import build
from scoremle.experiment.shipped import place_of
from scoremle.experiment.workdir import Workdir
from scoremle.likelihood.ode import ode_log_likelihood
from scoremle.likelihood.published_rk45 import published_rates
from scoremle.numerics import sum_data
from scoremle.published import safetensors
from scoremle.solvers.multistep import Planned

PACKAGES = ("jax", "torch", "diffrax", "torchdiffeq", "flow_matching", "scipy")
NODES, STEPS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192), (8, 16, 32, 64)
TOLERANCES = (1e-3, 1e-4, 1e-5)
# Of particles: from coarse to fine, until the error of every example is below ENOUGH nats.
FINE_NODES, FINE_STEPS = (*range(8, 65, 2), 96, 128, 192), tuple(2 ** np.arange(4, 11))
FINE_TOLERANCES, ENOUGH = tuple(np.geomspace(0.1, 1e-6, 21)), 0.05
PARTICLES = 22
FINEST, SEED = 1e-7, 0
# Joint Distillation for Fast Likelihood Evaluation and Sampling, arXiv 2512.02636, on CIFAR-10
# and ImageNet 64x64: evaluations, and the greatest error in bits/dim.
DISTILLED = (1, 8), 2.9


def published(sde, noise, x, t):
    """dx/dt of the probability flow."""
    return published_rates(noise, sde, x, t, jnp.zeros_like(x))[0]


@jax.jit
def drift_and_trace(drift, x, t, probes):
    """dx/dt and its trace, by reverse mode: the mean of v'Jv over probes v [k n ...]."""
    value, pull = jax.vjp(lambda x: drift(x, t), x)
    return value, jax.vmap(lambda v: sum_data(pull(v)[0] * v))(probes).mean(axis=0)


class Found(NamedTuple):
    """log p, evaluations of the field, and the error that is stated if one is."""

    log_prob: np.ndarray
    evaluations: int
    stated: np.ndarray | None = None


@dataclass(frozen=True)
class Subject:
    """A field, dx/dt in float32 and in float64, and examples; errors are in ``nats`` each."""

    name: str
    noise: Callable
    drift: Callable
    precise: Callable
    eps: float
    x: np.ndarray
    unit: str
    nats: float
    sde: SDE
    exact: bool = False

    @property
    def probes(self) -> np.ndarray:
        """[k n ...]: what flow_matching draws by itself from the seed; or a frame, whose mean of
        v'Jv is the trace."""
        if self.exact:
            dims = self.x.shape[1]
            return np.repeat(math.sqrt(dims) * np.eye(dims)[:, None], len(self.x), axis=1)
        torch.manual_seed(SEED)
        return ((torch.randn(self.x.shape) < 0) * 2.0 - 1.0).numpy()[None]

    def reverse(self, x, t):
        """Drift and trace at one time, by reverse mode."""
        times = jnp.full(len(x), t, x.dtype)
        return drift_and_trace(self.drift, x, times, jnp.asarray(self.probes, x.dtype))

    def forward(self, x, t):
        """The same by forward mode."""

        def along(probe):
            drift, change = jax.jvp(lambda x: self.reverse(x, t)[0], (x,), (probe,))
            return drift, sum_data(change * probe)

        probes = jnp.asarray(self.probes, x.dtype)
        drift, traces = jax.vmap(along, out_axes=(None, 0))(probes)
        return drift, traces.mean(axis=0)

    def by_scipy(self, method: str, tolerance: float) -> Found:
        """The whole batch and its log-densities are one vector."""
        shape, size, dtype = self.x.shape, self.x.size, jnp.asarray(0.0).dtype

        def field(t, state):
            x = jnp.asarray(state[:size].reshape(shape), dtype)
            return np.concatenate([np.ravel(a) for a in self.reverse(x, t)])

        start = np.concatenate([np.ravel(self.x).astype(float), np.zeros(len(self.x))])
        found = scipy.integrate.solve_ivp(
            field, (self.eps, 1.0), start, method=method, rtol=tolerance, atol=tolerance
        )
        latent = jnp.asarray(found.y[:size, -1].reshape(shape), dtype)
        log_prob = np.asarray(self.sde.prior_log_prob(latent)) + found.y[size:, -1]
        return Found(log_prob, found.nfev)

    def truth(self) -> np.ndarray:
        with jax.enable_x64(True):
            return replace(self, drift=self.precise).by_scipy("DOP853", FINEST).log_prob


# --- the fields -------------------------------------------------------------------------------


def mixture() -> Subject:
    angles = np.arange(8) * np.pi / 4
    means, std, sde = np.stack([np.cos(angles), np.sin(angles)], 1), 0.15, scoremle.VP()

    def noise(x, t):
        alpha, sigma = jnp.exp(sde.log_alpha(t))[:, None], sde.sigma(t)[:, None]
        places = jnp.asarray(means, x.dtype)
        centres, variance = alpha[:, None] * places, alpha**2 * std**2 + sigma**2
        distances = jnp.sum(jnp.square(x[:, None] - centres), axis=2)
        shares = jax.nn.softmax(-distances / (2 * variance), axis=1)
        return sigma / variance * (x - jnp.einsum("bk,bkd->bd", shares, centres))

    rng = np.random.default_rng(SEED)
    x = means[rng.integers(0, 8, 256)] + std * rng.normal(size=(256, 2))
    both, x = Partial(published, sde, Partial(noise)), x.astype(np.float32)
    return Subject(
        "mixture of 8 Gaussians, 2D", Partial(noise), both, both, 1e-3, x, "nats", 1.0, sde
    )


def digits(images: int) -> Subject:
    place = Workdir(place_of("digits"))
    experiment = build(place.config())
    spec, x = experiment.model, experiment.data.test[:images]
    params = unflatten_dict(safetensors.read(place.folder / "weights.safetensors"), sep=".")
    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: jnp.asarray(a, float), params)
        precise = replace(spec, network=spec.network.clone(dtype=jnp.float64)).noise(double)
    noise = spec.noise(params)
    drift, exactly = (Partial(published, spec.sde, each) for each in (noise, precise))
    return Subject(
        "trained network, digits", noise, drift, exactly, spec.eps,
        np.asarray(reals(spec.pixels, x)), "bits/dim", spec.dims * math.log(2), spec.sde,
    )  # fmt: skip


def vectors(dims: int = 10) -> Subject:
    params = mlp_params(dims)
    x = np.random.default_rng(1).normal(size=(256, dims)).astype(np.float32)
    noises = [Partial(mlp, p) for p in (params, [a.astype(float) for a in params])]
    drift, exactly = (Partial(published, scoremle.VP(), noise) for noise in noises)
    return Subject(
        f"MLP of random weights, {dims} dimensions", noises[0], drift, exactly, 1e-3, x, "nats",
        1.0, scoremle.VP(), exact=True,
    )  # fmt: skip


@pytree
@dataclass(frozen=True)
class Straight(scoremle.Schedule):
    """Sigma linear in t on the straight path, whose open ends are cut."""

    first: float = 1 / (1 + math.exp(13.3 / 2))
    last: float = 1 / (1 + math.exp(-9))

    def sigma(self, t):
        return self.first + (self.last - self.first) * t

    def log_snr(self, t):
        sigma = self.sigma(t)
        return 2 * (jnp.log1p(-sigma) - jnp.log(sigma))

    def time_of_log_snr(self, lam):
        return (jax.nn.sigmoid(-lam / 2) - self.first) / (self.last - self.first)


def chains(rng: np.random.Generator, n: int) -> np.ndarray:
    """Configurations [n 66] of a chain whose bonds are 1 long, but for 5 %, and turn little."""
    way, places = rng.normal(size=(n, 3)), [np.zeros((n, 3))]
    for _ in range(PARTICLES - 1):
        way = way / np.linalg.norm(way, axis=1, keepdims=True)
        places.append(places[-1] + way * (1 + 0.05 * rng.normal(size=(n, 1))))
        way = way + 0.5 * rng.normal(size=(n, 3))
    x = np.stack(places, axis=1)
    x = x - x.mean(axis=1, keepdims=True) + 0.5 * rng.normal(size=(n, 1, 3))
    return (x.reshape(n, -1) / 3).astype(np.float32)


def learned(params, x, sigma):
    """The velocity of the straight path from data to noise."""
    level = sigma[:, None]
    waves = [level, *(f(np.pi * k * level) for k in (1, 2, 4) for f in (jnp.sin, jnp.cos))]
    h = jnp.concatenate([x, *waves], axis=1)
    for weights in params[:-1]:
        h = jax.nn.silu(h @ weights)
    return h @ params[-1]


def along(params, schedule, x, t):
    """dx/dt, by the velocity."""
    return (schedule.last - schedule.first) * learned(params, x, schedule.sigma(t))


def particles(steps: int) -> Subject:
    dims, width = 3 * PARTICLES, 128
    rng, layers = np.random.default_rng(0), (dims + 7, width, width, width, dims)
    params = [(rng.normal(size=s) / s[0] ** 0.5).astype(np.float32) for s in pairwise(layers)]

    def loss(params, x, key):
        keys = jax.random.split(key)
        sigma = (jnp.arange(len(x)) + jax.random.uniform(keys[0])) / len(x)
        e = jax.random.normal(keys[1], x.shape)
        at = (1 - sigma)[:, None] * x + sigma[:, None] * e
        return jnp.mean(jnp.square(learned(params, at, sigma) - (e - x)))

    params = scoremle.fit(
        loss, params, lambda i: chains(np.random.default_rng([1, i]), 256), steps=steps,
        ema_rate=0.99, optimizer=optax.adam(optax.cosine_decay_schedule(2e-3, steps)),
    )  # fmt: skip
    sde = scoremle.SDE("straight", Straight(), Straight().last)
    noise = scoremle.noise_fn(Partial(learned, params), sde, prediction="u", time_input="sigma")
    double = jax.tree.map(np.float64, params)
    drift, exactly = (Partial(along, p, Straight()) for p in (params, double))
    x, at = chains(np.random.default_rng(2), 32), Straight().first
    noised = (1 - at) * x + at * np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
    return Subject(
        f"trained flow, {PARTICLES} particles, {dims} dimensions", noise, drift, exactly, 0.0,
        noised, "nats", 1.0, sde, exact=True,
    )  # fmt: skip


# --- the solvers ------------------------------------------------------------------------------


def ours(subject: Subject) -> Callable[[int], Found]:
    trace = Exact() if subject.exact else FixedProbe(jnp.asarray(subject.probes))

    @jax.jit
    def run(x, plan):
        return ode_log_likelihood(
            subject.noise, subject.sde, x, KEY, eps=subject.eps, divergence=trace, solver=plan
        )

    def solve(steps: int) -> Found:
        # The plan is an argument: one program serves all numbers of steps.
        found = run(subject.x, Planned.of(steps, NODES[-1]))
        return Found(found.log_prob, steps + 1, found.solver_error)

    return solve


def euler(subject: Subject) -> Callable[[int], Found]:
    @jax.jit
    def run(x, steps):
        size = (1 - subject.eps) / steps

        def step(i, state):
            rates = subject.forward(state[0], subject.eps + i * size)
            return jax.tree.map(lambda a, b: a + size * b, state, rates)

        z, change = jax.lax.fori_loop(0, steps, step, (x, jnp.zeros(len(x))))
        return subject.sde.prior_log_prob(z) + change

    return lambda steps: Found(run(subject.x, steps), steps)


def by_diffrax(subject: Subject) -> Callable[[float], Found]:
    term = diffrax.ODETerm(lambda t, state, _: subject.forward(state[0], t))

    @jax.jit
    def run(x, tolerance):
        return diffrax.diffeqsolve(
            term, diffrax.Tsit5(), subject.eps, 1.0, None, (x, jnp.zeros(len(x))),
            stepsize_controller=diffrax.PIDController(tolerance, tolerance), max_steps=10_000,
            adjoint=diffrax.ForwardMode(),
        )  # fmt: skip

    def solve(tolerance: float) -> Found:
        found = run(subject.x, tolerance)
        z, change = (a[-1] for a in found.ys)
        # Six a step, as the last of a step serves the next; and three to begin with.
        count = 6 * int(found.stats["num_steps"]) + 3
        return Found(subject.sde.prior_log_prob(z) + change, count)

    return solve


def by_scipy(subject: Subject) -> Callable[[float], Found]:
    return lambda tolerance: subject.by_scipy("RK45", tolerance)


def tensor(a) -> torch.Tensor:
    return torch.from_numpy(np.array(a))


def by_torchdiffeq(subject: Subject) -> Callable[[float], Found]:
    def solve(tolerance: float) -> Found:
        count = 0

        def field(t, state):
            nonlocal count
            count += 1
            return tuple(map(tensor, subject.reverse(jnp.asarray(state[0].numpy()), float(t))))

        start = tensor(subject.x), torch.zeros(len(subject.x))
        t = torch.tensor([subject.eps, 1.0], dtype=torch.float64)
        ends = odeint(field, start, t, method="dopri5", rtol=tolerance, atol=tolerance)
        z, change = (a[-1].numpy() for a in ends)
        return Found(subject.sde.prior_log_prob(jnp.asarray(z)) + change, count)

    return solve


class Velocity(torch.nn.Module):
    """The field as flow_matching has it: data at time 1, the prior at 0; with its gradient."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.count, span = 0, 1 - subject.eps

        @jax.jit
        def forward(x, s):
            return jax.vjp(lambda x: -span * subject.reverse(x, 1 - s * span)[0], x)

        backward = jax.jit(lambda pull, v: pull(v)[0])

        class Field(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, s):
                value, ctx.pull = forward(x.numpy(), np.float32(s))
                return tensor(value)

            @staticmethod
            def backward(ctx, v):
                return tensor(backward(ctx.pull, v.numpy())), None

        self.field = Field

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return self.field.apply(x, t)


def by_flow_matching(subject: Subject) -> Callable[[float], Found]:
    velocity = Velocity(subject)
    solver, x = ODESolver(velocity), tensor(subject.x)

    def prior(z: torch.Tensor) -> torch.Tensor:
        return tensor(subject.sde.prior_log_prob(jnp.asarray(z.numpy())))

    def solve(tolerance: float) -> Found:
        velocity.count = 0
        torch.manual_seed(SEED)  # its probe
        _, log_prob = solver.compute_likelihood(
            x, prior, None, "dopri5", atol=tolerance, rtol=tolerance,
            exact_divergence=subject.exact,
        )  # fmt: skip
        return Found(log_prob.numpy(), velocity.count)

    return solve


# --- the comparison ---------------------------------------------------------------------------

METHODS = {
    "ours": (ours, "{} steps"),
    "Euler": (euler, "{} steps"),
    "diffrax, Tsit5": (by_diffrax, "{:g}"),
    "SciPy, RK45": (by_scipy, "{:g}"),
    "torchdiffeq, dopri5": (by_torchdiffeq, "{:g}"),
    "flow_matching, dopri5": (by_flow_matching, "{:g}"),
}
Curves = dict[str, list[tuple[int, float]]]


class Settings(NamedTuple):
    """Steps of ours, steps of Euler, tolerances of the others; from coarse to fine.

    With ``enough`` the table has the first setting at which no example's error is above it.
    """

    nodes: tuple
    steps: tuple
    near: tuple
    enough: float | None = None


def compare(subject: Subject, settings: Settings) -> Curves:
    """Prints the table; evaluations and mean error, by method."""
    truth, rows = subject.truth(), []
    curves: Curves = {}
    for name, (make, words) in METHODS.items():
        solve, curves[name] = make(subject), []
        for setting in {"ours": settings.nodes, "Euler": settings.steps}.get(name, settings.near):
            if not curves[name]:
                timed(solve, setting)  # compiles, for all settings
            found, seconds = timed(solve, setting)
            error = np.abs(np.asarray(found.log_prob, float) - truth) / subject.nats
            stated = "" if found.stated is None else f"{found.stated.mean() / subject.nats:.1e}"
            row = (
                f"{name}, {words.format(setting)}", str(found.evaluations),
                f"{seconds.computing:.3f}", f"{error.mean():.1e}", f"{error.max():.1e}", stated,
            )  # fmt: skip
            curves[name].append((found.evaluations, float(error.mean())))
            if settings.enough is None:
                rows.append(row)
            elif error.max() < settings.enough:
                break
        if settings.enough is not None:  # the first that reaches it, or the last that does not
            rows.append(row)
    header = ("method", "evaluations", "CPU s", f"error, {subject.unit}, mean", "max", "stated")
    print(f"\n{subject.name}, {len(subject.x)} examples")
    answer(header, rows)
    return curves


def subjects(quick: bool) -> dict[str, tuple[Callable[[], Subject], Settings]]:
    every = 2 if quick else 1
    usual = Settings(NODES[::every], STEPS, TOLERANCES[::every])
    return {
        "mixture": (mixture, usual),
        "digits": (lambda: digits(4 if quick else 16), usual),
        "vectors": (vectors, usual),
        "particles": (
            lambda: particles(1000 if quick else 6000),
            Settings(FINE_NODES, FINE_STEPS, FINE_TOLERANCES, ENOUGH),
        ),
    }


def draw(path: Path, found: list[tuple[Subject, Curves]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(found), figsize=(5.5 * len(found), 4.6), layout="constrained", squeeze=False
    )
    for axis, (subject, curves) in zip(axes[0], found, strict=True):
        for name, mark in zip(curves, "os^vD<", strict=True):
            width = 2.5 if name == "ours" else 1.0
            axis.loglog(*zip(*curves[name], strict=True), marker=mark, lw=width, ms=5, label=name)
        axis.set(title=subject.name, xlabel="evaluations of the field (value and derivative)")
        axis.set_ylabel(f"error of log p, mean, {subject.unit}")
        axis.grid(alpha=0.3)
        if subject.unit == "bits/dim":
            bottom = axis.get_ylim()[0]
            axis.set_ylim(bottom)
            axis.fill_between(
                DISTILLED[0], bottom, DISTILLED[1], color="gray", alpha=0.25, lw=0,
                label="distilled (F2D2): 0 to 2.9 bits/dim,\nas its paper says, of other data",
            )  # fmt: skip
    lines: dict[str, Any] = {}
    for axis in axes[0]:
        handles, labels = axis.get_legend_handles_labels()
        lines |= dict(zip(labels, handles, strict=True))
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark_peers"))
    parser.add_argument("--quick", action="store_true", help="fewer digits and tolerances")
    names = list(subjects(True))
    parser.add_argument("--subjects", nargs="+", choices=names, default=names)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(", ".join(f"{name} {version(name)}" for name in PACKAGES))
    made, found = subjects(options.quick), list[tuple[Subject, Curves]]()
    for name in options.subjects:
        make, settings = made[name]
        found.append((subject := make(), compare(subject, settings)))
    options.workdir.mkdir(parents=True, exist_ok=True)
    draw(options.workdir / "peers.png", found)
    print(f"\ndrawn: {options.workdir / 'peers.png'}")


if __name__ == "__main__":
    main()
