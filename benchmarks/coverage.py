"""Do the intervals cover? Of means and of single images, of the default call, and of few passes.

    python benchmarks/coverage.py means [--subjects rough] [--repeats=20]
    python benchmarks/coverage.py default --networks digits
    python benchmarks/coverage.py default                  # and four networks, which it trains
    python benchmarks/coverage.py default --networks digits_vp --seed=1          # trained anew
    python benchmarks/coverage.py default --networks fashion_mnist photos --images=16    # hours
    python benchmarks/coverage.py passes

``means`` takes densities that are known: a Gaussian whose noise prediction oscillates in time, in
closed form; and the digits network that ships with the package, against its own values at ten
times the steps and with eight probes at each. As `eval.solver=auto` does, a pilot on images of its
own chooses steps, calibrates the stated error and chooses levels; then means over a set are
corrected by differences. Columns: how often the interval of 95 % covers: of the mean over all
images (``mean``, where that is known), of the mean of the set (``of set``), of that without the
correction, of an image's mean over four passes (``image``), and the stated error of an image's
solver (``solver``), which is given beside the true one in the median (``stated / true``). 90 to 99
% is well, and at most 4. What the finest level may be off is added to the intervals of means.

``default`` takes ``ode_log_likelihood`` without a solver: 40 steps, with a new probe at each; of
the digits, which have 64 dimensions, with the exact trace. What its solver errs is found at 40 and
at 384 steps with the same probes: eight orthogonal ones of each image. That is nearly the trace,
whose integral is what new probes give in the mean. A stricter question is that of one held probe,
whose integral is rougher, beside what is stated with new probes. Columns: root mean square of the
true errors, bits/dim; that of the mean over the images, estimate minus truth; how much the true
values are off, by half of their steps; the median of the stated error; how many images it covers,
and its ratio to the true one in the median: at the default's steps, and at all of those about it,
which show the part of chance. 90 % or more is good, and at most 4.

``passes`` takes digits by the model that ships. All passes but those at hand give an image's true
mean. Columns: how often twice the spread of an image's own passes covers it, how often twice the
``error`` of ``scoremle score`` does, of many images and of each alone; the size of the error; and
the network evaluations of an image.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import LARGE, NETWORKS, TRAINED, answer, parser_of, reals, train

import scoremle
from scoremle.core.divergence import (
    DivergenceEstimator,
    Exact,
    FixedProbe,
    Hutchinson,
    Orthogonal,
)
from scoremle.core.sde import SDE
from scoremle.evaluation.statistics import error_of_few
from scoremle.experiment.build import build
from scoremle.experiment.workdir import Workdir
from scoremle.likelihood.levels import StepLevels, bias_bound, contributions
from scoremle.likelihood.mean import Mean
from scoremle.likelihood.ode import Likelihood, ode_log_likelihood
from scoremle.likelihood.pilot import FINEST, PILOT_IMAGES, Choice, Pilot
from scoremle.model import ScoreModel
from scoremle.solvers.multistep import Multistep, Planned, stated
from scoremle.types import Data, NoiseFn

from helpers.oracles import EPS, SDES, RoughGaussian  # isort: skip

NORMAL_95 = 1.96
# Levels are chosen for a mean over so many images in one pass, whatever the set here.
OF_IMAGES, TOLERANCE = 10_000, 5e-4
# Images on which a pilot's calibration of the solver's error is tried.
OF_SOLVER = 96
# Of a value, as `scoremle score` has them: the stated error of one probe in one pass is itself
# known to a few degrees of freedom, and 1.96 times it covers less than 95 %.
PASSES = 4
# Nodes of the truth: so many times those of a value, or this number. Programs have room for MOST.
FINER, FINE, MOST, PROBES = 10, 384, 480, 8
# The default's steps, and those about it.
DEFAULT, NODES = Multistep().steps, (36, 38, 40, 42, 44)
SHIPPED = "digits"
# Those whose embedding is that of 999 t.
ROUGH = (SHIPPED, "digits_vp", "digits_subvp", "fashion14_vp", "fashion14_subvp")
OF_PASSES = (2, 3, 4, 6, 8)
Outcomes = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Subject:
    """A noise prediction, data by a seed and a number, and the truth about them, in bits/dim.

    ``known`` gives the value of each example, where it isn't exact by ten times so many steps;
    ``held`` a divergence, and the value with it; ``mean`` is that of all data, where it is known.
    """

    noise: NoiseFn
    sde: SDE
    eps: float
    draw: Callable[[int, int], Data]
    known: Callable[["Subject", Data, int], np.ndarray]
    held: Callable[["Subject", Data, int], tuple[DivergenceEstimator, np.ndarray]]
    mean: float | None = None

    @cached_property
    def _solve(self) -> Callable[..., Likelihood]:
        def solve(
            x: Data, key: jax.Array, divergence: DivergenceEstimator | None, plan: Planned
        ) -> Likelihood:
            return ode_log_likelihood(
                self.noise, self.sde, x, key, eps=self.eps, divergence=divergence, solver=plan
            )

        return jax.jit(solve)

    def solve(
        self, x: Data, seed: int, divergence: DivergenceEstimator | None, steps: int
    ) -> Likelihood:
        return self._solve(x, jax.random.key(seed), divergence, Planned.of(steps, MOST))

    def bits(self, x: Data, values: np.ndarray) -> np.ndarray:
        """Of values in nats."""
        return np.asarray(values, np.float64) / (x[0].size * np.log(2))

    def bpd(self, x: Data, seed: int, divergence: DivergenceEstimator, steps: int) -> np.ndarray:
        return -self.bits(x, self.solve(x, seed, divergence, steps).log_prob)

    def choose(self, seed: int) -> Choice:
        """What `auto` would, by a pilot on images of its own."""
        x = self.draw(1000 + seed, PILOT_IMAGES)
        pilot = Pilot.of_reals(
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

    def known(subject: Subject, x: Data, steps: int) -> np.ndarray:
        return -subject.bits(x, data.log_model(sde, np.asarray(x, np.float64), eps))

    # log p is a quadratic function without a linear part: its mean by two points on each axis.
    points = np.concatenate([[1], [-1]]) * np.sqrt(data.w)[:, None] * np.sqrt(dims)
    points = (points.T[:, :, None] * data.V.T).reshape(-1, dims)
    mean = -data.log_model(sde, points, eps).mean() / (dims * np.log(2))
    return Subject(
        noise=data.noise(sde), sde=sde, eps=eps,
        draw=lambda seed, n: jnp.asarray(data.draw(seed, n), jnp.float32),
        known=known,
        held=lambda subject, x, steps: (Exact(), known(subject, x, steps)),
        mean=float(mean),
    )  # fmt: skip


def of_model(model: ScoreModel, images: np.ndarray) -> Subject:
    """A network, against itself."""

    def draw(seed: int, n: int) -> Data:
        chosen = np.random.default_rng(seed).choice(len(images), n, replace=False)
        return reals(model.pixels, images[chosen], jax.random.key(seed))

    def held(subject: Subject, x: Data, steps: int) -> tuple[DivergenceEstimator, np.ndarray]:
        probe = held_probe(x, 77)
        return probe, subject.bpd(x, 0, probe, FINER * steps)

    return Subject(
        noise=model.noise, sde=model.sde, eps=model.eps, draw=draw, held=held,
        known=lambda subject, x, steps: subject.bpd(x, 78, Hutchinson(PROBES), FINER * steps),
    )  # fmt: skip


def digits() -> Subject:
    images = scoremle.data.load("digits")
    return of_model(scoremle.load(SHIPPED), np.concatenate([images.train, images.test]))


def network(
    name: str, workdir: Path, images: int, seed: int | None = None
) -> tuple[Subject, Data]:
    """A network, trained from another ``seed`` if one is given, and its first test images."""
    if name == SHIPPED:
        model, test = scoremle.load(name), scoremle.data.load("digits").test
    else:
        other = () if seed is None else (f"--config.seed={seed}",)
        folder = workdir / (name if seed is None else f"{name}_{seed}")
        model = scoremle.load(train((*(NETWORKS | LARGE)[name], *other), folder))
        test = build(Workdir(folder).config()).data.test
    return of_model(model, test), reals(model.pixels, test[:images])


# --- means ------------------------------------------------------------------------------------


def of_mean(subject: Subject, choice: Choice, x: Data, known: np.ndarray, seed: int) -> Outcomes:
    """Whether the intervals of means and of single images cover, from one set and one seed."""
    steps = choice.solver.steps
    passes = [subject.solve(x, 10 * seed + i, Hutchinson(), steps) for i in range(PASSES)]
    bpd = -np.mean([subject.bits(x, each.log_prob) for each in passes], axis=0)
    probes = subject.bits(x, np.sqrt(sum(np.square(p.probe_stderr) for p in passes)) / PASSES)
    raw = np.mean([p.solver_error for p in passes], axis=0)
    solver = stated(choice.solver, raw)
    noise = np.sqrt(np.mean(probes**2) / len(x))
    order = np.random.default_rng(seed).permutation(len(x))
    levels = choice.levels or StepLevels((choice.solver.steps,), (), 0.0)
    differences, bias = [], levels.bias
    sizes = levels.sizes(len(x), max(TOLERANCE, noise / 4))
    for size, (coarse, fine) in zip(sizes, pairwise(levels.steps), strict=True):
        some = x[order[:size]]
        probe = held_probe(some, 10 * seed + PASSES)
        high, low, half = (subject.bpd(some, 0, probe, n) for n in (fine, coarse, fine // 2))
        differences.append(high - low)
        bias = bias_bound(high - half)
    mean = Mean.of({"bpd": bpd[None]}, "bpd").corrected(
        bpd, contributions(differences, order), levels.steps, sizes, bias
    )
    assert mean.errors
    of_set = NORMAL_95 * np.hypot(noise, mean.errors.solver) + bias
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
    divergence, known = subject.held(subject, x, choice.solver.steps)
    error = np.abs(subject.bpd(x, 0, divergence, choice.solver.steps) - known)
    raw = subject.solve(x, 3, Hutchinson(), choice.solver.steps).solver_error
    covering = subject.bits(x, stated(choice.solver, raw))
    return {"solver": error <= covering, "stated / true": covering / error}


def of_pilot(
    subject: Subject, pilot: int, *, repeats: int, images: int, sets: int
) -> tuple[Choice, Outcomes]:
    """What a pilot chose, and outcomes: by ``sets``, whose repeats share their true values."""
    choice = subject.choose(pilot)
    rows: list[Outcomes] = []
    for number in range(sets):
        x = subject.draw(100 * pilot + number, images)
        known = subject.known(subject, x, choice.solver.steps)
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


def means(options: argparse.Namespace) -> None:
    header = ("subject", "steps", *SHARES, "stated / true")
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
        steps = " ".join("-".join(map(str, c.levels.steps)) for c, _ in found if c.levels)
        cells = [f"{share[c]:.1%}" if c in share else "" for c in SHARES]
        rows.append((name, steps, *cells, f"{ratio:.1f}"))
        results[name] = share | {"stated / true": ratio}
    answer(header, rows, results)


# --- the default call -------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """The stated and the true error of each image, by the number of steps, in bits/dim."""

    stated: dict[int, np.ndarray]
    error: dict[int, np.ndarray]  # estimate minus truth
    doubt: float

    def covered(self, *steps: int) -> float:
        return float(np.mean([np.abs(self.error[n]) <= self.stated[n] for n in steps]))

    def width(self, *steps: int) -> float:
        return float(np.median([self.stated[n] / np.abs(self.error[n]) for n in steps]))


def of_default(subject: Subject, x: Data, probes: int) -> Measured:
    """With so many held probes."""
    usual = None if probes > 1 else Hutchinson()
    drawn = Orthogonal(probes) if probes > 1 else Hutchinson()
    same = FixedProbe(drawn.draw(jax.random.key(1), x))
    truth, half = (subject.bpd(x, 0, same, steps) for steps in (FINE, FINE // 2))
    return Measured(
        stated={n: subject.bits(x, subject.solve(x, 0, usual, n).solver_error) for n in NODES},
        error={n: subject.bpd(x, 0, same, n) - truth for n in NODES},
        doubt=float(np.sqrt(np.mean(np.square(half - truth)))),
    )


def default(options: argparse.Namespace) -> None:
    rows, results = [], {}
    for name in options.networks:
        subject, x = network(name, options.workdir, options.images, options.seed)
        for probes in (PROBES, 1):
            found = of_default(subject, x, probes)
            (share, about), (ratio, ratio_about) = (
                (of(DEFAULT), of(*NODES)) for of in (found.covered, found.width)
            )
            error = found.error[DEFAULT]
            rows.append((
                name, "trace" if probes > 1 else "one probe", f"{np.sqrt(np.mean(error**2)):.1e}",
                f"{error.mean():+.1e}", f"{found.doubt:.0e}",
                f"{np.median(found.stated[DEFAULT]):.1e}",
                f"{share:.0%}", f"{ratio:.1f}", f"{about:.0%}", f"{ratio_about:.1f}",
            ))  # fmt: skip
            results[f"{name}_{probes}"] = {
                "covered": (share, about), "width": (ratio, ratio_about)
            }  # fmt: skip
            print(" ".join(rows[-1]), flush=True)
    header = (
        "network", "truth of", "error", "of the mean", "doubt", "stated", "covers",
        "stated / true", "covers, about", "stated / true, about",
    )  # fmt: skip
    answer(header, rows, results)


# --- passes -----------------------------------------------------------------------------------


def of_passes(bpd: np.ndarray, passes: int, evaluations: int) -> tuple[str, ...]:
    """The row of so many passes, over all disjoint groups of them in ``bpd`` [passes images]."""
    groups = bpd[: len(bpd) // passes * passes].reshape(-1, passes, bpd.shape[1])
    hits, sizes = [], []
    for group in groups:
        truth = (bpd.sum(axis=0) - group.sum(axis=0)) / (len(bpd) - passes)
        gap = abs(group.mean(axis=0) - truth)
        own = group.std(axis=0, ddof=1) / np.sqrt(passes)
        together = error_of_few(own, passes)
        alone = np.concatenate([error_of_few(own[i : i + 1], passes) for i in range(len(own))])
        hits.append([(gap <= 2 * error).mean() for error in (own, together, alone)])
        sizes.append(np.median(together))
    shares = (f"{share:.0%}" for share in np.mean(hits, axis=0))
    return (str(passes), *shares, f"{np.mean(sizes):.3f}", str(passes * evaluations))


def passes(options: argparse.Namespace) -> None:
    test = scoremle.data.load("digits").test
    model, choice = scoremle.load(SHIPPED).calibrated(test)
    # Each copy of an image has noise of its own.
    x = np.tile(test[: options.images], (options.passes, 1, 1, 1))
    bpd = model.score(x, label="scores").bpd.reshape(options.passes, options.images)
    header = ("passes", "own spread", "error", "error, one image", "size", "evaluations")
    answer(header, [of_passes(bpd, n, choice.solver.steps + 1) for n in OF_PASSES])


def main() -> None:
    parser = parser_of(__doc__)
    parts = parser.add_subparsers(required=True)

    def part(run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        found = parts.add_parser(run.__name__)
        found.set_defaults(run=run)
        return found

    of = part(means)
    of.add_argument("--repeats", type=int, default=200)
    of.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=SUBJECTS)
    of = part(default)
    of.add_argument("--workdir", type=Path, default=TRAINED)
    of.add_argument("--networks", nargs="+", choices=(*ROUGH, *LARGE), default=ROUGH)
    of.add_argument("--images", type=int, default=96)
    of.add_argument("--seed", type=int, help="of the trainings; else that of their configs")
    of = part(passes)
    of.add_argument("--images", type=int, default=32)
    of.add_argument("--passes", type=int, default=96)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
