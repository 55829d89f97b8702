"""Do the intervals cover? Of means and of single images, on densities that are known.

    python benchmarks/coverage.py
    python benchmarks/coverage.py --repeats=20 --subjects=rough

Subjects: a Gaussian whose noise prediction oscillates in time, in closed form; and the digits
network that ships with the package, against its own values at ten times the nodes and with eight
probes at each. As `eval.solver=auto` does, a pilot on images of its own chooses nodes, calibrates
the stated error and chooses levels; then means over a set are corrected by differences.

Columns: how often the interval of 95 % covers: of the mean over all images (``mean``, where that
is known), of the mean of the set (``of set``), of that without the correction, of an image's mean
over four passes (``image``), and the stated error of an image's solver (``solver``), which is
given beside the true one in the median (``stated / true``). From 90 to 99 % is well, and at most
4. What the finest level may be off is added to the intervals of means.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import scoremle
from scoremle.core.divergence import DivergenceEstimator, Exact, FixedProbe, Hutchinson
from scoremle.core.sde import SDE
from scoremle.data.readers.digits import load_digits
from scoremle.evaluation import tables
from scoremle.likelihood.levels import Levels, bias_bound, corrected
from scoremle.likelihood.ode import Likelihood, ode_log_likelihood
from scoremle.likelihood.pilot import FINEST, PILOT_IMAGES, Choice, Pilot
from scoremle.solvers.multistep import Planned
from scoremle.types import Data, NoiseFn

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from helpers.oracles import EPS, SDES, RoughGaussian

NORMAL_95 = 1.96
# Levels are chosen for a mean over so many images in one pass, whatever the set here.
OF_IMAGES, TOLERANCE = 10_000, 5e-4
# Images on which a pilot's calibration of the solver's error is tried.
OF_SOLVER = 96
# Of a value, as `scoremle score` has them: the stated error of one probe in one pass is itself
# known to a few degrees of freedom, and 1.96 times it covers less than 95 %.
PASSES = 4
FINER, PROBES = 10, 8
Outcomes = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Subject:
    """A noise prediction, data by a seed and a number, and the truth about them, in bits/dim.

    ``known`` gives the value of each example, where it isn't exact by ten times so many nodes;
    ``held`` a divergence, and the value with it; ``mean`` is that of all data, where it is known.
    """

    noise: NoiseFn
    sde: SDE
    eps: float
    draw: Callable[[int, int], Data]
    known: Callable[["Subject", Data, int], np.ndarray]
    held: Callable[["Subject", Data, int], tuple[DivergenceEstimator, np.ndarray]]
    mean: float | None = None

    def __post_init__(self) -> None:
        def solve(x: Data, key: jax.Array, divergence: DivergenceEstimator, plan: Planned):
            return ode_log_likelihood(
                self.noise, self.sde, x, key, eps=self.eps, divergence=divergence, solver=plan
            )

        object.__setattr__(self, "_solve", jax.jit(solve))

    def solve(
        self, x: Data, seed: int, divergence: DivergenceEstimator, nodes: int
    ) -> Likelihood:
        return self._solve(x, jax.random.key(seed), divergence, Planned.of(nodes, FINER * 48))

    def bits(self, x: Data, values: np.ndarray) -> np.ndarray:
        """Of values in nats."""
        return np.asarray(values, np.float64) / (x[0].size * np.log(2))

    def bpd(self, x: Data, seed: int, divergence: DivergenceEstimator, nodes: int) -> np.ndarray:
        return -self.bits(x, self.solve(x, seed, divergence, nodes).log_prob)

    def choose(self, seed: int) -> Choice:
        """What `auto` would, by a pilot on images of its own."""
        x = self.draw(1000 + seed, PILOT_IMAGES)
        pilot = Pilot(
            self.noise, self.sde, x, jax.random.key(seed), eps=self.eps, divergence=Hutchinson(),
            finest=FINEST,
        )  # fmt: skip
        return pilot.for_mean(OF_IMAGES, 1, TOLERANCE)


def held_probe(x: Data, seed: int) -> FixedProbe:
    return FixedProbe(Hutchinson().draw(jax.random.key(seed), x))


def rough(dims: int = 64, size: float = 0.01) -> Subject:
    """In closed form."""
    sde, eps, base = SDES["vp"], EPS["vp"], RoughGaussian.random(4, dims)
    data = RoughGaussian(np.zeros(dims), base.w, base.V, size)

    def known(subject: Subject, x: Data, nodes: int) -> np.ndarray:
        return -subject.bits(x, data.log_model(sde, np.asarray(x, np.float64), eps))

    # log p is a quadratic function without a linear part: its mean by two points on each axis.
    points = np.concatenate([[1], [-1]]) * np.sqrt(data.w)[:, None] * np.sqrt(dims)
    points = (points.T[:, :, None] * data.V.T).reshape(-1, dims)
    mean = -data.log_model(sde, points, eps).mean() / (dims * np.log(2))
    return Subject(
        noise=data.noise(sde), sde=sde, eps=eps,
        draw=lambda seed, n: jnp.asarray(data.draw(seed, n), jnp.float32),
        known=known,
        held=lambda subject, x, nodes: (Exact(), known(subject, x, nodes)),
        mean=float(mean),
    )  # fmt: skip


def digits() -> Subject:
    """The shipped network, against itself."""
    model = scoremle.load("digits")
    images = np.concatenate(load_digits("")[:2])

    def draw(seed: int, n: int) -> Data:
        x = jnp.asarray(images[np.random.default_rng(seed).choice(len(images), n, replace=False)])
        return model.pixels.encode(x, scoremle.Uniform()(jax.random.key(seed), x)[0])

    def held(subject: Subject, x: Data, nodes: int) -> tuple[DivergenceEstimator, np.ndarray]:
        probe = held_probe(x, 77)
        return probe, subject.bpd(x, 0, probe, FINER * nodes)

    return Subject(
        noise=model.noise, sde=model.sde, eps=model.eps, draw=draw, held=held,
        known=lambda subject, x, nodes: subject.bpd(x, 78, Hutchinson(PROBES), FINER * nodes),
    )  # fmt: skip


def of_mean(subject: Subject, choice: Choice, x: Data, known: np.ndarray, seed: int) -> Outcomes:
    """Whether the intervals of means and of single images cover, from one set and one seed."""
    steps = choice.solver.nodes
    passes = [subject.solve(x, 10 * seed + i, Hutchinson(), steps) for i in range(PASSES)]
    bpd = -np.mean([subject.bits(x, each.log_prob) for each in passes], axis=0)
    probes = subject.bits(x, np.sqrt(sum(np.square(p.probe_stderr) for p in passes)) / PASSES)
    raw = np.mean([p.solver_error for p in passes], axis=0)
    solver = choice.solver.stated(raw)
    noise = np.sqrt(np.mean(probes**2) / len(x))
    order = np.random.default_rng(seed).permutation(len(x))
    levels = choice.levels or Levels((choice.solver.nodes,), (), 0.0)
    differences, bias = [], levels.bias
    sizes = levels.sizes(len(x), max(TOLERANCE, noise / 4))
    for size, (coarse, fine) in zip(sizes, pairwise(levels.nodes), strict=True):
        some = x[order[:size]]
        probe = held_probe(some, 10 * seed + PASSES)
        high, low, half = (subject.bpd(some, 0, probe, n) for n in (fine, coarse, fine // 2))
        differences.append(high - low)
        bias = bias_bound(high - half)
    mean = corrected(bpd, order, differences)
    of_set = NORMAL_95 * np.hypot(noise, mean.correction_stderr) + bias
    image = np.hypot(NORMAL_95 * probes, subject.bits(x, solver))
    outcomes = {
        "of set": np.abs(mean.mean - known.mean()) <= of_set,
        "uncorrected": np.abs(bpd.mean() - known.mean()) <= NORMAL_95 * noise,
        "image": np.abs(bpd - known) <= image,
    }
    if subject.mean is not None:
        whole = NORMAL_95 * mean.stderr + bias
        outcomes["mean"] = np.abs(mean.mean - subject.mean) <= whole
    return outcomes


def of_solver(subject: Subject, choice: Choice, x: Data) -> Outcomes:
    """Whether the stated error of an image's solver covers the true one, and their ratio."""
    divergence, known = subject.held(subject, x, choice.solver.nodes)
    error = np.abs(subject.bpd(x, 0, divergence, choice.solver.nodes) - known)
    raw = subject.solve(x, 3, Hutchinson(), choice.solver.nodes).solver_error
    stated = subject.bits(x, choice.solver.stated(raw))
    return {"solver": error <= stated, "stated / true": stated / error}


def of_pilot(
    subject: Subject, pilot: int, *, repeats: int, images: int, sets: int
) -> tuple[Choice, Outcomes]:
    """What a pilot chose, and outcomes: by ``sets``, whose repeats share their true values."""
    choice = subject.choose(pilot)
    rows: list[Outcomes] = []
    for number in range(sets):
        x = subject.draw(100 * pilot + number, images)
        known = subject.known(subject, x, choice.solver.nodes)
        for repeat in range(repeats // sets):
            seed = 10_000 * (pilot + 1) + 100 * number + repeat
            rows.append(of_mean(subject, choice, x, known, seed))
    found = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    others = subject.draw(100 * pilot + sets, OF_SOLVER)
    return choice, found | of_solver(subject, choice, others)


SHARES = ("mean", "of set", "uncorrected", "image", "solver")
# Of a subject: images of a set, pilots, and sets of each.
SUBJECTS = {
    "rough": (rough, {"images": 96, "pilots": 4, "sets": 50}),
    "digits": (digits, {"images": 12, "pilots": 4, "sets": 2}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    options = parser.parse_args()
    header = ("subject", "nodes", *SHARES, "stated / true")
    rows, results = [], {}
    for name in options.subjects:
        make, settings = SUBJECTS[name]
        subject, pilots = make(), settings.pop("pilots")
        repeats = max(1, options.repeats // pilots)
        settings["sets"] = min(settings["sets"], repeats)
        found = [of_pilot(subject, i, repeats=repeats, **settings) for i in range(pilots)]
        share = {
            column: float(np.mean([outcomes[column].mean() for _, outcomes in found]))
            for column in SHARES
            if column in found[0][1]
        }
        ratio = float(np.median(np.concatenate([o["stated / true"] for _, o in found])))
        nodes = " ".join("-".join(map(str, c.levels.nodes)) for c, _ in found if c.levels)
        cells = [f"{share[c]:.1%}" if c in share else "" for c in SHARES]
        rows.append((name, nodes, *cells, f"{ratio:.1f}"))
        results[name] = share | {"stated / true": ratio}
    print(tables.table(header, rows))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
