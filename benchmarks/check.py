"""Does ``ScoreModel.check`` name wrong declarations of young networks, and nothing else?

    python benchmarks/check.py              # two minutes; --seed=1 trains other networks

Twenty small networks of vectors and of 8x8 images are trained for 100 to 1000 steps, as users do:
on what they predict, at uniform t. Each is checked as it was trained, where a line that says to
declare something else is a false alarm; and under one wrong declaration, which is named if the
line says what is right. Lines of where a network is worse than a Gaussian are not alarms: most of
these are. A line that the grid of grey levels can't be seen counts as neither.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import answer, parser_of
from jax.tree_util import Partial

import scoremle
from scoremle.core.betas import betas
from scoremle.core.prediction import TIME_INPUTS
from scoremle.core.schedules import Cosine, Discrete, KarrasSigma, LinearLogSNR
from scoremle.core.sde import SDE

WIDTH, BATCH, CHUNK, WAVES = 128, 64, 100, jnp.asarray([1.0, 2, 4, 8]) * np.pi / 2
TRAINED_ON, CHECKED_ON = 20_000, 600
UNSEEN = "the grid of grey levels"
# With the smallest time.
SDES = {
    "vp": (scoremle.VP(), 1e-4),
    "subvp": (scoremle.SubVP(), 1e-3),
    "linear": (SDE("vp", Discrete.of_betas(betas("linear")), 1.0), 1e-3),
    "cosine": (SDE("vp", Cosine(-10.0, 10.0), 1.0), 1e-5),
    "edm": (SDE("ve", KarrasSigma(), 80.0), 1e-5),
    "straight": (SDE("straight", LinearLogSNR(-18.0, 13.3), 1.0), 1e-5),
}
POINTS = scoremle.Pixels.of_points
TOWARDS_DATA = {"prediction": "-u", "time_input": "alpha"}
TOWARDS_NOISE = {"prediction": "u", "time_input": "sigma"}
STANDARD = scoremle.Affine(np.full(3, 5.0), np.full(3, 0.1))


@dataclass(frozen=True)
class Declared:
    """A declaration of a network."""

    prediction: str
    time_input: str
    scaling: scoremle.Pixels | scoremle.Affine | None = None


@dataclass(frozen=True)
class Subject:
    """A network, what is true of it, and what one who declares it gets wrong."""

    data: str
    sde: str
    steps: int
    truth: Declared
    wrong: Declared


def subjects() -> list[Subject]:
    """Twenty: each prediction, kernel and kind of mistake more than once."""
    grid, tinted = POINTS(17, -1, 1), POINTS(256, -1, 1)
    rows = (
        ("moons", "vp", 300, ("eps", "time"), {"prediction": "v"}),
        ("moons", "straight", 300, ("u", "sigma"), TOWARDS_DATA),
        ("moons", "straight", 1000, ("-u", "alpha"), TOWARDS_NOISE),
        ("moons", "edm", 300, ("edm", "c_noise"), {"prediction": "eps"}),
        ("mixture", "cosine", 300, ("v", "log_snr"), {"prediction": "eps"}),
        ("mixture", "straight", 300, ("-u", "alpha"), {"prediction": "u"}),
        ("mixture", "linear", 300, ("eps", "step"), {"time_input": "time"}),
        ("mixture", "vp", 100, ("x_0", "time_999"), {"prediction": "eps"}),
        ("shifted", "subvp", 300, ("score", "time"), {"prediction": "eps"}),
        ("shifted", "vp", 1000, ("v", "log_snr"), {"time_input": "time_999"}),
        ("shifted", "edm", 300, ("edm", "c_noise"), {"time_input": "sigma"}),
        ("narrow", "linear", 300, ("eps", "step", STANDARD), {"scaling": None}),
        ("digits", "linear", 300, ("eps", "step", grid), {"prediction": "v"}),
        ("digits", "vp", 1000, ("eps", "time", grid), {"scaling": scoremle.Pixels(17)}),
        ("digits", "straight", 1000, ("u", "sigma", grid), {"scaling": scoremle.Pixels(17)}),
        ("digits", "cosine", 300, ("v", "time", POINTS(17, 0, 1)), {"scaling": grid}),
        ("digits", "edm", 300, ("edm", "c_noise", grid), {"prediction": "x_0"}),
        ("smooth", "linear", 300, ("v", "step", tinted), {"time_input": "log_snr"}),
        ("smooth", "straight", 300, ("-u", "alpha", tinted), TOWARDS_NOISE),
        ("smooth", "subvp", 100, ("eps", "time", tinted), {"scaling": POINTS(256, 0, 1)}),
    )
    truths = [Declared(*row[3]) for row in rows]
    return [
        Subject(*row[:3], truth, replace(truth, **row[4]))
        for row, truth in zip(rows, truths, strict=True)
    ]


def data_of(name: str, n: int, seed: int) -> np.ndarray:
    """Vectors, or integer images."""
    rng = np.random.default_rng((seed, n))
    if name == "moons":
        angle, upper = rng.uniform(0, np.pi, n), rng.integers(0, 2, n)[:, None]
        arc = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        x = np.where(upper, arc, [1.0, 0.5] - arc) + 0.05 * rng.normal(size=(n, 2))
        return (x - [0.5, 0.25]) / [0.87, 0.5]
    if name == "mixture":
        means = np.random.default_rng(7).normal(size=(4, 5))
        return means[rng.integers(0, 4, n)] + 0.3 * rng.normal(size=(n, 5))
    if name == "shifted":
        axes = np.linalg.qr(np.random.default_rng(8).normal(size=(8, 8)))[0]
        return 1.5 + rng.normal(size=(n, 8)) * np.linspace(0.3, 1, 8) @ axes
    if name == "narrow":
        return 5 + 0.1 * rng.normal(size=(n, 3))
    if name == "digits":
        digits = scoremle.data.load("digits")
        images = np.concatenate([digits.train, digits.test])
        return images[rng.integers(0, len(images), n)]
    places = np.fft.fftfreq(8)
    low_pass = 1 / (1 + 60 * np.add.outer(places**2, places**2))[..., None]
    waves = np.fft.fft2(rng.normal(size=(n, 8, 8, 3)), axes=(1, 2)) * low_pass
    light = 0.5 * rng.normal(size=(n, 1, 1, 3))
    return np.clip(120 + 250 * np.fft.ifft2(waves, axes=(1, 2)).real + 50 * light, 0, 255).astype(
        np.uint8
    )


def seen(x: np.ndarray, scaling: scoremle.Pixels | scoremle.Affine | None) -> np.ndarray:
    """Data as the network sees them."""
    if isinstance(scaling, scoremle.Pixels):
        return scaling.points[x]
    return x if scaling is None else np.asarray(scaling.forward(jnp.asarray(x))[0])


def apply(params: dict, x: jax.Array, label: jax.Array) -> jax.Array:
    """A residual network: an MLP of vectors; convolutions and the mean of images."""
    inputs = ((label - params["middle"]) / params["half"])[:, None]
    inputs = jnp.concatenate([inputs, jnp.sin(inputs * WAVES), jnp.cos(inputs * WAVES)], axis=1)
    h = neighbours(x) @ params["first"]
    for of_h, of_label, of_mean in params["blocks"]:
        beside = inputs @ of_label + h.reshape(len(x), -1, h.shape[-1]).mean(axis=1) @ of_mean
        beside = beside.reshape(len(x), *[1] * (h.ndim - 2), -1)
        h = h + jax.nn.silu(neighbours(jax.nn.silu(h)) @ of_h + beside)
    return neighbours(h) @ params["last"]


def neighbours(x: jax.Array) -> jax.Array:
    """Joins each pixel of images with the eight about it, so that products are convolutions."""
    if x.ndim == 2:
        return x
    wide, (_, h, w, _) = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), x.shape
    return jnp.concatenate([wide[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], -1)


def first_params(shape: tuple[int, ...], ends: np.ndarray, rng: np.random.Generator) -> dict:
    width, size, channels = (WIDTH, 1, shape[0]) if len(shape) == 1 else (WIDTH // 8, 9, shape[-1])

    def drawn(inside: int, outside: int, gain: float = 1.0) -> jax.Array:
        return jnp.asarray(gain * rng.normal(size=(inside, outside)) / inside**0.5, jnp.float32)

    waves = 1 + 2 * len(WAVES)
    blocks = [
        (drawn(size * width, width), drawn(waves, width), drawn(width, width)) for _ in range(3)
    ]
    weights = {
        "first": drawn(size * channels, width), "blocks": blocks,
        "last": drawn(size * width, channels, 0.3),
    }  # fmt: skip
    return weights | {"middle": jnp.float32(ends.mean()), "half": jnp.float32(np.ptp(ends) / 2)}


@partial(jax.jit, static_argnames="optimizer")
def trained(params, state, batches, optimizer):
    """So many steps further. The range of labels is not a parameter."""
    def loss(params, x, label, target, weight):
        fixed = {name: jax.lax.stop_gradient(params[name]) for name in ("middle", "half")}
        return jnp.mean(weight * jnp.square(apply(params | fixed, x, label) - target))

    def step(carry, batch):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, *batch), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), batches)[0]


def batches_of(subject: Subject, rng: np.random.Generator, seed: int) -> Iterator[tuple]:
    """So many steps at a time: input, label, target, and weight of its square."""
    sde, eps = SDES[subject.sde]
    data = seen(data_of(subject.data, TRAINED_ON, seed), subject.truth.scaling)
    for _ in range(0, subject.steps, CHUNK):
        x_0 = jnp.asarray(data[rng.integers(0, len(data), (CHUNK, BATCH))], jnp.float32)
        z = jnp.asarray(rng.normal(size=x_0.shape), jnp.float32)
        t = times(subject.sde, rng.uniform(size=(CHUNK, BATCH)), eps)
        alpha, sigma = (
            a.reshape(a.shape + (1,) * (x_0.ndim - 2)) for a in (sde.alpha(t), sde.sigma(t))
        )
        x = alpha * x_0 + sigma * z
        both = jnp.hypot(sigma, 0.5 * alpha)  # of EDM, for data of deviation 0.5
        target = {
            "eps": z, "score": -z / sigma, "x_0": x_0, "v": alpha * z - sigma * x_0,
            "u": z - x_0, "-u": x_0 - z,
            "edm": (x_0 - 0.25 * alpha * x / both**2) * both / (0.5 * sigma),
        }  # fmt: skip
        prediction = subject.truth.prediction
        shown = x / both if prediction == "edm" else x
        weight = sigma**2 if prediction == "score" else jnp.ones_like(sigma)
        yield shown, TIME_INPUTS[subject.truth.time_input](sde, t), target[prediction], weight


def times(sde: str, u: np.ndarray, eps: float) -> jax.Array:
    """As such networks are trained: uniform t or steps, and the log-normal sigma of EDM."""
    of, u = SDES[sde][0], jnp.asarray(u, jnp.float32)
    if sde == "edm":
        log_sigma = -1.2 + 1.2 * jax.scipy.special.ndtri(jnp.clip(u, 1e-6, 1 - 1e-6))
        return jnp.clip(of.time_of_log_snr(-2 * log_sigma), eps, 1)
    if sde == "straight":
        u = jnp.clip(u, 1e-4, 1 - 1e-4)
        return of.time_of_log_snr(2 * jnp.log((1 - u) / u))
    if isinstance(of.schedule, Discrete):
        return (jnp.floor(u * of.schedule.steps) + 1) / of.schedule.steps
    return eps + (1 - eps) * u


def network_of(subject: Subject, seed: int) -> Partial:
    """Trained from this seed."""
    sde, eps = SDES[subject.sde]
    rng, optimizer = np.random.default_rng(seed), adam()
    time_input = TIME_INPUTS[subject.truth.time_input]
    ends = np.asarray(time_input(sde, jnp.asarray([eps, 1.0])))
    params = first_params(data_of(subject.data, 1, seed).shape[1:], ends, rng)
    state = optimizer.init(params)
    for batch in batches_of(subject, rng, seed):
        params, state = trained(params, state, batch, optimizer)
    return Partial(apply, params)


@cache
def adam() -> optax.GradientTransformation:
    """One for all networks, so that those of one size are one program."""
    return optax.adam(2e-3)


def model_of(network: Partial, subject: Subject, declared: Declared) -> scoremle.ScoreModel:
    sde, eps = SDES[subject.sde]
    noise = scoremle.noise_fn(
        network, sde, prediction=declared.prediction, time_input=declared.time_input
    )
    shape, scaling = data_of(subject.data, 1, 0).shape[1:], declared.scaling
    if isinstance(scaling, scoremle.Pixels):
        return scoremle.ScoreModel(noise, sde, eps, shape, scaling)
    return scoremle.ScoreModel(noise, sde, eps, shape, bijector=scaling)


def remedies(truth: Declared, declared: Declared) -> list[str]:
    """The words that lines must have where another than the truth is declared."""
    words = []
    for name in ("prediction", "time_input"):
        if getattr(truth, name) != getattr(declared, name):
            words.append(f"say {name}={getattr(truth, name)!r}")
    if isinstance(truth.scaling, scoremle.Pixels) and truth.scaling != declared.scaling:
        first, last = truth.scaling.points[[0, -1]]
        words.append(f"say pixels=Pixels.of_points({truth.scaling.levels}, {first:g}, {last:g})")
    elif truth.scaling != declared.scaling:
        words.append("say bijector=Affine.standardizing(data)")
    return words


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows, began, alarms, named = [], time.process_time(), 0, 0
    for number, subject in enumerate(subjects()):
        network = network_of(subject, 100 * options.seed + number)
        data = data_of(subject.data, CHECKED_ON, 100 * options.seed + 50)
        right, wrong = (
            [line for line in lines if UNSEEN not in line]
            for lines in (
                model_of(network, subject, declared).check(data)
                for declared in (subject.truth, subject.wrong)
            )
        )
        alarm = any(" say " in line for line in right)
        lacking = remedies(subject.truth, subject.wrong)
        found = all(any(words in line for line in wrong) for words in lacking)
        alarms, named = alarms + alarm, named + found
        truth = f"{subject.truth.prediction}, by {subject.truth.time_input}"
        rows.append((
            subject.data, subject.sde, truth, str(subject.steps), "FALSE ALARM" if alarm else "-",
            "; ".join(lacking).replace("say ", ""), "yes" if found else "NO",
        ))  # fmt: skip
        print(" ".join(rows[-1]), *right, "|", *wrong, sep="\n    ", flush=True)
    header = ("data", "SDE", "network", "steps", "declared rightly", "to be named", "named")
    counts = {"networks": len(rows), "alarms": alarms, "named": named}
    answer(header, rows, counts | {"cpu_s": round(time.process_time() - began)})


if __name__ == "__main__":
    main()
