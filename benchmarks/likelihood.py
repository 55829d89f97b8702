"""What an exact likelihood costs: the published algorithm and ours, on one trained network.

Trains a small DDPM++ on digits (or takes ``--workdir``), computes the truth in float64 with the
same probe, and measures the published algorithm (SciPy's RK45 in t, reverse mode, one probe) and
ours on several numbers of nodes: solver error, probe error, cost in forward passes (with the
ratios of value, value + jvp and value + vjp measured here), seconds an image. Prints a table,
draws ``likelihood.png`` beside the workdir, and ends with a line of JSON.

    python benchmarks/likelihood.py --quick
    python benchmarks/likelihood.py --workdir=runs/fashion_mnist --images=4

"Total error" is what solver and probes leave of one image, root mean square. Its cost ratio is
read off our curve at the total error of the published algorithm; that of the solver likewise.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scoremle import cli, report
from scoremle.divergence import FixedProbe, Hutchinson
from scoremle.experiment import build
from scoremle.likelihood import ode_log_likelihood
from scoremle.multistep import Doubling, Multistep
from scoremle.parameterization import noise_fn
from scoremle.reference import PublishedRK45, published_rates
from scoremle.workdir import Workdir

NODES = (6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
TOLERANCES = (1e-3, 1e-4, 1e-5)
REPEATS = 3
KEY = jax.random.key(0)


def train(workdir: Path, embedding: str) -> None:
    code = cli.main([
        "--config=configs/digits.py", f"--workdir={workdir}", "--mode=train",
        f"--config.model.embedding={embedding}", "--config.training.n_iters=1200",
        "--config.training.snapshot_freq=1200", "--config.training.eval_freq=1200",
        "--config.training.snapshot_sampling=False",
    ])  # fmt: skip
    if code:
        raise SystemExit(code)


def timed(function, *arguments) -> tuple:
    """The result, and the seconds of the quickest of several calls after the first."""
    result = jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - began)
    return result, min(seconds)


def pass_costs(noise, x: jax.Array) -> tuple[float, float]:
    """Cost of value + jvp and of value + vjp, in values."""
    t, v = jnp.full(len(x), 0.3), jnp.ones_like(x)
    value = jax.jit(lambda x: noise(x, t))
    forward = jax.jit(lambda x: jax.jvp(lambda x: noise(x, t), (x,), (v,)))

    @jax.jit
    def reverse(x):
        y, pull = jax.vjp(lambda x: noise(x, t), x)
        return y, pull(v)

    plain, jvp, vjp = (timed(function, x)[1] for function in (value, forward, reverse))
    return jvp / plain, vjp / plain


def double(tree):
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), tree)


class Subject:
    """One trained network and a few images, with the truth for one probe."""

    def __init__(self, workdir: Path, images: int) -> None:
        place = Workdir(workdir)
        self.experiment = experiment = build(place.config())
        state, _, _ = place.snapshots.restore(experiment.template())
        self.params, self.sde, self.eps = state.ema, experiment.sde, experiment.eps
        x = jnp.asarray(experiment.data.test[:images])
        self.y = experiment.encode(x, KEY)[0]
        self.bits = experiment.dims * np.log(2)
        self.probe = Hutchinson().draw(jax.random.key(1), self.y)
        self.noise = experiment.noise(self.params)
        self.truth = self._truth()

    def _truth(self) -> np.ndarray:
        with jax.enable_x64(True):
            network = self.experiment.network.clone(dtype=jnp.float64)
            params = double(self.params)
            noise = noise_fn(
                lambda x, labels: network.apply({"params": params}, x, labels),
                self.sde, self.experiment.conditioning,
            )  # fmt: skip
            solver = Doubling(2e-6, fewest=256, most=4096)
            found = jax.jit(lambda y: ode_log_likelihood(
                noise, self.sde, y, KEY, eps=self.eps,
                divergence=FixedProbe(double(self.probe)), solver=solver,
            ))(double(self.y))  # fmt: skip
            print(f"truth: solver error {float(jnp.max(found.solver_error)) / self.bits:.1e}")
            return np.asarray(found.log_prob)

    def error(self, log_prob: jax.Array) -> np.ndarray:
        """In bits/dim, image by image."""
        return np.abs(np.asarray(log_prob, np.float64) - self.truth) / self.bits

    def ours(self, nodes: int) -> dict[str, float]:
        solver = Multistep(nodes)
        divergence = FixedProbe(self.probe)
        fixed = jax.jit(lambda y: ode_log_likelihood(
            self.noise, self.sde, y, KEY, eps=self.eps, divergence=divergence, solver=solver
        ))(self.y)  # fmt: skip
        fresh, seconds = timed(jax.jit(lambda y, key: ode_log_likelihood(
            self.noise, self.sde, y, key, eps=self.eps, solver=solver
        )), self.y, jax.random.key(2))  # fmt: skip
        error, probe = self.error(fixed.log_prob), np.asarray(fresh.probe_stderr) / self.bits
        stated = np.asarray(fixed.solver_error) / self.bits
        return {
            "evaluations": nodes + 1,
            "solver": float(error.mean()),
            "solver_max": float(error.max()),
            "covered": float((error < stated).mean()),
            "width": float(np.median(stated / error)),
            "probe": float(np.sqrt(np.mean(probe**2))),
            "total": float(np.sqrt(np.mean(error**2 + probe**2))),
            "seconds": seconds / len(self.y),
        }

    def published(self, tolerance: float, probe: float) -> dict[str, float]:
        """``probe`` is the standard error of one probe that is held fixed."""
        rates = jax.jit(published_rates(self.noise, self.sde))
        solver = PublishedRK45(tolerance, tolerance)
        arguments = (rates, self.sde, self.y, self.probe[0])
        solver.log_likelihood(*arguments, eps=self.eps)  # compiles
        began = time.perf_counter()
        found = solver.log_likelihood(*arguments, eps=self.eps)
        seconds = time.perf_counter() - began
        error = self.error(found.log_prob)
        return {
            "evaluations": int(found.evaluations[0]),
            "solver": float(error.mean()),
            "solver_max": float(error.max()),
            "probe": probe,
            "total": float(np.sqrt(np.mean(error**2) + probe**2)),
            "seconds": seconds / len(self.y),
        }

    def held_probe(self) -> float:
        """The standard error of one probe for all nodes, from eight of them."""
        probes = Hutchinson(8).draw(jax.random.key(3), self.y)
        found = jax.jit(lambda y: ode_log_likelihood(
            self.noise, self.sde, y, KEY, eps=self.eps,
            divergence=FixedProbe(probes), solver=Multistep(32),
        ))(self.y)  # fmt: skip
        return float(np.sqrt(np.mean((np.asarray(found.probe_stderr) / self.bits) ** 2 * 8)))


def cheapest(rows: list[dict[str, float]], kind: str, error: float) -> dict[str, float]:
    """The first of our rows that is as good; the last if none is."""
    return next((row for row in rows if row[kind] <= error), rows[-1])


def measure(subject: Subject) -> tuple[list[tuple], dict[str, float]]:
    jvp, vjp = pass_costs(subject.noise, subject.y)
    print(f"value + jvp {jvp:.2f}, value + vjp {vjp:.2f}")
    ours = [{**subject.ours(n), "name": f"ours, {n} nodes", "pass": jvp} for n in NODES]
    held = subject.held_probe()
    published = [
        {**subject.published(t, held), "name": f"published, {t:g}", "pass": vjp}
        for t in TOLERANCES
    ]
    for row in ours + published:
        row["cost"] = row["evaluations"] * row["pass"]
    reference = published[-1]
    total, solver = (
        cheapest(ours, "total", reference["total"]), cheapest(ours, "solver", reference["solver"])
    )
    record = {
        "cost_ratio": total["cost"] / reference["cost"],
        "solver_cost_ratio": solver["cost"] / reference["cost"],
        "seconds_ratio": total["seconds"] / reference["seconds"],
        "solver_seconds_ratio": solver["seconds"] / reference["seconds"],
        "our_error": total["total"],
        "reference_error": reference["total"],
        "our_solver_error": solver["solver"],
        "reference_solver_error": reference["solver"],
    }
    return published + ours, record


def draw(path: Path, curves: dict[str, list[dict]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharex=True)
    for name, rows in curves.items():
        for axis, kind in zip(axes, ("solver", "total"), strict=True):
            for who, mark in (("published", "s--"), ("ours", "o-")):
                chosen = [row for row in rows if row["name"].startswith(who)]
                cost = [row["cost"] for row in chosen]
                axis.loglog(cost, [row[kind] for row in chosen], mark, label=f"{who}, {name}")
            axis.set(xlabel="cost of an image, forward passes", title=f"{kind} error, bits/dim")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="the digits model as published alone")
    options = parser.parse_args()
    if options.workdir:
        places = {options.workdir.name: options.workdir}
    else:
        embeddings = ("time",) if options.quick else ("time", "log_snr")
        places = {name: Path("runs/benchmark_likelihood") / name for name in embeddings}
        for embedding, place in places.items():
            train(place, embedding)
    curves, records = {}, {}
    for name, place in places.items():
        curves[name], records[name] = measure(Subject(place, options.images))
        header = ("method", "evaluations", "cost", "solver", "max", "probe", "total", "s/image")
        rows = [
            (r["name"], str(r["evaluations"]), f"{r['cost']:.0f}", f"{r['solver']:.1e}",
             f"{r['solver_max']:.1e}", f"{r['probe']:.3f}", f"{r['total']:.3f}",
             f"{r['seconds']:.4f}")
            for r in curves[name]
        ]  # fmt: skip
        print(f"\n{name}\n{report.table(header, rows)}", flush=True)
    picture = next(iter(places.values())).parent / "likelihood.png"
    draw(picture, curves)
    print(f"picture: {picture}")
    for name, record in records.items():
        if name != next(iter(records)):
            print(json.dumps({"network": name, **record}))
    print(json.dumps(next(iter(records.values()))))


if __name__ == "__main__":
    main()
