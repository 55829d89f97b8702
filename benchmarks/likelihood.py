"""What an exact likelihood costs: the published algorithm and ours, on trained networks.

Trains small DDPM++ networks on digits and on Fashion-MNIST of 14x14 (or takes those it trained
before), finds the truth in float64 with the same probe, and measures in one run the published
algorithm (SciPy's RK45 in t, reverse mode, one probe) and ours at several numbers of steps: the
solver's error, how often it lies within the stated one and how wide that is (as a pilot of other
images calibrates it, and bare), the probes' error, cost in forward passes (by the ratios of value,
value + jvp and value + vjp, measured here too), seconds and memory an image. Prints a table for
each network, draws ``likelihood.png`` of all that were measured in the workdir, and ends with a
line of JSON for each network.

    python benchmarks/likelihood.py --quick
    python benchmarks/likelihood.py --networks digits_vp digits_vp_log_snr
    python benchmarks/likelihood.py --networks fashion_mnist photos --images=6   # hours

"Total error" is what solver and probes leave of one image, root mean square. Cost ratios compare
the published algorithm with the cheapest of ours that is at least as good.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import KEY, LARGE, NETWORKS, TRAINED, answer, least, parser_of, reals, timed, train

from scoremle.core.divergence import FixedProbe, Hutchinson
from scoremle.experiment.build import build
from scoremle.experiment.workdir import Workdir
from scoremle.files import read_json, write_json
from scoremle.likelihood.ode import Likelihood, ode_log_likelihood
from scoremle.likelihood.pilot import PILOT_IMAGES, Pilot
from scoremle.likelihood.published_rk45 import PublishedRK45, published_rates
from scoremle.solvers.doubling import Doubling
from scoremle.solvers.multistep import Planned, stated

QUICK, ALL = "digits_vp", NETWORKS | LARGE

NODES = (6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 144, 160, 192, 224, 256, 384)
TOLERANCES = (1e-3, 1e-4, 1e-5)
# Of the doubling solver, in bits/dim.
DOUBLINGS = (1e-2, 3e-3, 1e-3)
REPEATS, PASSES = 2, 40
MEASURED = "likelihood.json"

Row = dict[str, float | str]


def quickest(function, *arguments) -> tuple:
    """The result of a compiled function, and the fewest seconds of some calls but the first."""
    timed(function, *arguments)
    calls = [timed(function, *arguments) for _ in range(REPEATS)]
    return calls[0][0], min(seconds.passed for _, seconds in calls)


def megabytes(function, *arguments) -> float:
    """What a compiled function allocates beside its arguments and results."""
    return function.lower(*arguments).compile().memory_analysis().temp_size_in_bytes / 2**20


def pass_costs(noise, x: jax.Array) -> tuple[float, float]:
    """Cost of value + jvp and of value + vjp, in values."""
    t, v = jnp.full(len(x), 0.3), jnp.ones_like(x)

    def value(x):
        return noise(x, t)

    def reverse(x):
        y, pull = jax.vjp(value, x)
        return y, pull(v)

    functions = {"value": value, "jvp": lambda x: jax.jvp(value, (x,), (v,)), "vjp": reverse}
    seconds = least({name: partial(jax.jit(f), x) for name, f in functions.items()}, PASSES)
    return seconds["jvp"] / seconds["value"], seconds["vjp"] / seconds["value"]


def double(tree):
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), tree)


class Subject:
    """One trained network and a few test images, with the truth for one probe."""

    def __init__(self, workdir: Path, images: int) -> None:
        place = Workdir(workdir)
        experiment = build(place.config())
        self.spec = spec = experiment.model
        self.params = place.snapshots.restore(experiment.training.template)[0].ema
        self.noise, self.sde = spec.noise(self.params), spec.sde
        x = experiment.data.test[: images + PILOT_IMAGES]
        both = reals(spec.pixels, x)
        self.y, others = both[:images], both[images:]
        self.bits = spec.dims * np.log(2)
        self.probe = Hutchinson().draw(jax.random.key(1), self.y)
        self.held, self.fresh = self._solving(FixedProbe(self.probe)), self._solving(Hutchinson())
        self.truth = self._truth()
        self.auto = spec.model(self.params).calibrated(x[:PILOT_IMAGES])[1]
        self.pilot = Pilot.of_reals(
            self.noise, self.sde, others, KEY,
            eps=spec.eps, divergence=Hutchinson(), finest=2 * NODES[-1],
        )  # fmt: skip

    def _likelihood(self, y, divergence, solver) -> Likelihood:
        return ode_log_likelihood(
            self.noise, self.sde, y, KEY,
            eps=self.spec.eps, divergence=divergence, solver=solver,
        )  # fmt: skip

    def _solving(self, divergence):
        # The plan is an argument: one program serves all numbers of steps.
        return jax.jit(lambda y, solver: self._likelihood(y, divergence, solver))

    def _truth(self) -> np.ndarray:
        with jax.enable_x64(True):
            precise = replace(self.spec, network=self.spec.network.clone(dtype=jnp.float64))
            noise = precise.noise(double(self.params))
            solver = Doubling(2e-6, fewest=256, most=4096)
            found = jax.jit(lambda y: ode_log_likelihood(
                noise, self.sde, y, KEY, eps=self.spec.eps,
                divergence=FixedProbe(double(self.probe)), solver=solver,
            ))(double(self.y))  # fmt: skip
            print(f"truth: solver error {float(jnp.max(found.solver_error)) / self.bits:.1e}")
            return np.asarray(found.log_prob)

    def _error(self, log_prob: jax.Array) -> np.ndarray:
        """In bits/dim, image by image."""
        return np.abs(np.asarray(log_prob, np.float64) - self.truth) / self.bits

    def _row(self, name: str, error: np.ndarray, probe: float, seconds: float) -> Row:
        return {
            "name": name,
            "solver": float(error.mean()),
            "solver_max": float(error.max()),
            "probe": probe,
            "total": float(np.sqrt(np.mean(error**2) + probe**2)),
            "seconds": seconds / len(self.y),
        }

    def _stated(self, nats: jax.Array, error: np.ndarray) -> Row:
        """How often the stated error covers the true one, and its ratio to that in the median."""
        stated = np.asarray(nats) / self.bits
        return {
            "covered": float(np.mean(error <= stated)),
            "width": float(np.median(stated / error)),
        }

    def ours(self, steps: int) -> Row:
        """With new probes at each step; the solver's error with the truth's probe."""
        plan = Planned.of(steps, NODES[-1])
        held, (fresh, seconds) = self.held(self.y, plan), quickest(self.fresh, self.y, plan)
        error = self._error(held.log_prob)
        probe = float(np.sqrt(np.mean(np.square(fresh.probe_stderr)))) / self.bits
        bare, choice = self._stated(fresh.solver_error, error), self.pilot.measure(steps)
        return {
            **self._row(f"ours, {steps} steps", error, probe, seconds),
            **self._stated(stated(choice.solver, fresh.solver_error), error),
            "bare_covered": bare["covered"],
            "bare_width": bare["width"],
            "evaluations": steps + 1,
        }

    def doubling(self, tolerance: float, probe: float) -> Row:
        """With the truth's probe, whose standard error is ``probe``."""
        divergence, solver = FixedProbe(self.probe), Doubling(tolerance * np.log(2))
        run = jax.jit(lambda y: self._likelihood(y, divergence, solver))
        found, seconds = quickest(run, self.y)
        error = self._error(found.log_prob)
        return {
            **self._row(f"doubling, {tolerance:g}", error, probe, seconds),
            **self._stated(found.solver_error, error),
            "evaluations": float(np.mean(found.evaluations)),
        }

    def published(self, tolerance: float, probe: float) -> Row:
        """``probe`` is the standard error of one probe that is held fixed."""
        solver, eps = PublishedRK45(tolerance, tolerance), self.spec.eps
        found, seconds = timed(
            lambda: solver.log_likelihood(self.noise, self.sde, self.y, self.probe[0], eps=eps)
        )
        row = self._row(
            f"published, {tolerance:g}", self._error(found.log_prob), probe, seconds.passed
        )
        return {**row, "evaluations": int(found.evaluations[0])}

    def held_probe(self) -> float:
        """The standard error of one probe for all steps, from eight of them."""
        probes = FixedProbe(Hutchinson(8).draw(jax.random.key(3), self.y))
        found = self._solving(probes)(self.y, Planned.of(32, NODES[-1]))
        return float(np.sqrt(8 * np.mean(np.square(found.probe_stderr)))) / self.bits

    def memory(self) -> tuple[float, float]:
        """Megabytes an image on the device: ours, at any number of steps, and the published."""
        ours = megabytes(self.fresh, self.y, Planned.of(32, NODES[-1]))
        t = jnp.full(len(self.y), 0.3)
        rates = jax.jit(published_rates)
        published = megabytes(rates, self.noise, self.sde, self.y, t, self.probe[0])
        return ours / len(self.y), published / len(self.y)


def cheapest(rows: list[Row], kind: str, error: float) -> Row | None:
    """The first of our rows that is as good, if one is."""
    return next((row for row in rows if row[kind] <= error), None)


def compare(ours: list[Row], published: list[Row]) -> dict[str, float | None]:
    """Ratios at the error of the published tolerance, and of the solver at all three."""
    reference = published[-1]
    total, solver = (cheapest(ours, kind, reference[kind]) for kind in ("total", "solver"))

    def ratio(row: Row | None, what: str, of: Row = reference) -> float | None:
        return row[what] / of[what] if row else None

    looser = {
        f"solver_cost_ratio_{tolerance:g}": ratio(
            cheapest(ours, "solver", row["solver"]), "cost", row
        )
        for tolerance, row in zip(TOLERANCES[:-1], published[:-1], strict=True)
    }
    return {
        "cost_ratio": ratio(total, "cost"),
        "solver_cost_ratio": ratio(solver, "cost"),
        **looser,
        "seconds_ratio": ratio(total, "seconds"),
        "solver_seconds_ratio": ratio(solver, "seconds"),
        "our_error": total and total["total"],
        "reference_error": reference["total"],
        "our_solver_error": solver and solver["solver"],
        "reference_solver_error": reference["solver"],
        "covered": float(np.mean([row["covered"] for row in ours])),
        "widest": max(row["width"] for row in ours),
    }


def measure(subject: Subject) -> tuple[list[Row], dict[str, float | None]]:
    jvp, vjp = pass_costs(subject.noise, subject.y)
    mine, theirs = subject.memory()
    print(
        f"value + jvp {jvp:.2f}, value + vjp {vjp:.2f}; auto takes"
        f" {subject.auto.solver.steps} steps; memory {mine:.2f} MB an image,"
        f" published {theirs:.2f}"
    )
    ours = [subject.ours(steps) for steps in NODES]
    held = subject.held_probe()
    subject.published(1.0, held)  # compiles
    published = [subject.published(tolerance, held) for tolerance in TOLERANCES]
    doubling = [subject.doubling(tolerance, held) for tolerance in DOUBLINGS]
    for rows, passes in ((ours, jvp), (doubling, jvp), (published, vjp)):
        for row in rows:
            row["cost"] = row["evaluations"] * passes
    return published + ours + doubling, compare(ours, published)


HEADER = (
    "method", "NFE", "cost", "solver, mean", "max", "stated covers", "stated/true", "bare covers",
    "bare/true", "probe", "total", "s/image",
)  # fmt: skip


def in_words(row: Row) -> tuple[str, ...]:
    def cells(kind: str) -> tuple[str, str]:
        if f"{kind}covered" not in row:
            return "", ""
        return f"{row[f'{kind}covered']:.0%}", f"{row[f'{kind}width']:.1f}"

    return (
        row["name"], f"{row['evaluations']:.0f}", f"{row['cost']:.0f}", f"{row['solver']:.1e}",
        f"{row['solver_max']:.1e}", *cells(""), *cells("bare_"), f"{row['probe']:.3f}",
        f"{row['total']:.3f}", f"{row['seconds']:.4f}",
    )  # fmt: skip


def draw(path: Path, curves: dict[str, list[Row]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharex=True)
    for number, (name, rows) in enumerate(curves.items()):
        for axis, kind in zip(axes, ("solver", "total"), strict=True):
            for who, mark in (("published", "s--"), ("ours", "o-")):
                chosen = [row for row in rows if str(row["name"]).startswith(who)]
                axis.loglog(
                    [row["cost"] for row in chosen], [row[kind] for row in chosen], mark,
                    color=f"C{number}", markersize=4, label=f"{name}, {who}",
                )  # fmt: skip
            axis.set(xlabel="cost of an image, forward passes", title=f"{kind} error, bits/dim")
            axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--workdir", type=Path, default=TRAINED)
    parser.add_argument("--networks", nargs="+", choices=ALL, default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} alone, with 8 images")
    options = parser.parse_args()
    names, images = ([QUICK], 8) if options.quick else (options.networks, options.images)
    for name in names:
        train(ALL[name], options.workdir / name)
    records = {}
    for name in names:
        print(f"\n{name}")
        rows, records[name] = measure(Subject(options.workdir / name, images))
        answer(HEADER, list(map(in_words, rows)))
        write_json(options.workdir / name / MEASURED, {"rows": rows, **records[name]})
    picture = options.workdir / "likelihood.png"
    files = {name: options.workdir / name / MEASURED for name in ALL}
    draw(picture, {name: read_json(file)["rows"] for name, file in files.items() if file.exists()})
    print(f"picture: {picture}")
    for name, record in records.items():
        print(json.dumps({"network": name, **record}))


if __name__ == "__main__":
    main()
