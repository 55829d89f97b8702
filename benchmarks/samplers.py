"""The cost of a sample and its likelihood, by sampler, on a model of digits.

    python benchmarks/samplers.py cost --workdir=runs/digits
    python benchmarks/samplers.py likely                               # the model that ships
    python benchmarks/samplers.py likely runs/digits --checkpoint=1    # of a training

``cost`` trains the digits config into the folder if it holds no model. Two tables, for
docs/howto/sampling.md:

* samplers of the flow take the same latents as a solution with many steps; an image's error is the
  root mean square of the difference, over pixels that lie in [-1, 1], and the median counts;
* samples of every sampler against all images of the data set, by the energy distance
  2 E|X - Y| - E|X - X'| - E|Y - Y'| of integer images, at equal numbers of steps.

``likely`` draws by each sampler as `scoremle sample` does, from the same keys. Columns: how many
of the samples have more bits/dim than each of the 360 test images, and the mean over samples with
its standard error; all by the ODE, in two passes. The first line has the mean over test images,
and the most.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import answer, parser_of, timed, train

from scoremle import data, load
from scoremle.cli.commands.sample import SMALLEST_TIME
from scoremle.evaluation import tables
from scoremle.experiment import defaults
from scoremle.experiment.build import sampler_of
from scoremle.experiment.samplers import ConfiguredSampler
from scoremle.likelihood.image_model import pixels_of
from scoremle.model import ScoreModel
from scoremle.sampling.exponential import ddim_sample, dpm_solver_sample
from scoremle.sampling.ode import euler_sample, ode_sample
from scoremle.sampling.predictor_corrector import (
    PredictorCorrector,
    ancestral_sampling,
    euler_maruyama,
    langevin,
    pc_sample,
    reverse_diffusion,
)
from scoremle.solvers.multistep import Multistep

EPS = 1e-3
FINE = 320
LADDER = (5, 10, 20, 40, 80, 160)
LONG_LADDER = (30, 100, 300)
ERRORS = (0.1, 0.03)
TRIED = (
    ("ode", 32), ("ode", 128), ("dpm_solver", 32), ("ddim", 100), ("euler", 100), ("euler", 300),
    ("pc", 100), ("pc", 300),
)  # fmt: skip

FLOWS: dict[str, Callable[..., jax.Array]] = {
    "`ode` (multistep)": lambda noise, sde, z, n: ode_sample(
        noise, sde, z, eps=EPS, solver=Multistep(n - 1)
    ),
    "`dpm_solver`": lambda noise, sde, z, n: dpm_solver_sample(noise, sde, z, eps=EPS, steps=n),
    "`ddim`": lambda noise, sde, z, n: ddim_sample(noise, sde, z, eps=EPS, steps=n),
}
PREDICTORS = {
    "`pc`, euler_maruyama": (euler_maruyama, None),
    "`pc`, reverse_diffusion": (reverse_diffusion, None),
    "`pc`, ancestral_sampling": (ancestral_sampling, None),
    "`pc`, reverse_diffusion and langevin": (reverse_diffusion, langevin),
}


def samplers(sde: Any) -> dict[str, Callable[..., tuple[Callable[..., jax.Array], int]]]:
    """Name -> function of the steps: draw(noise, key, shape), and its number of evaluations."""

    def flow(transport: Callable[..., jax.Array]) -> Any:
        return lambda n: (
            lambda noise, key, shape: transport(noise, sde, sde.prior_sample(key, shape), n), n
        )  # fmt: skip

    def predictor_corrector(predictor: Any, corrector: Any) -> Any:
        def at(n: int) -> Any:
            method = PredictorCorrector(n, predictor, corrector)

            def draw(noise: Any, key: Any, shape: tuple[int, ...]) -> jax.Array:
                return pc_sample(noise, sde, key, shape, eps=EPS, method=method)

            return draw, method.evaluations

        return at

    found = {name: flow(transport) for name, transport in FLOWS.items()}
    found["`euler`"] = lambda n: (
        lambda noise, key, shape: euler_sample(noise, sde, key, shape, eps=EPS, steps=n), n
    )  # fmt: skip
    for name, (predictor, corrector) in PREDICTORS.items():
        if predictor is not ancestral_sampling or sde.chain is not None:
            found[name] = predictor_corrector(predictor, corrector)
    return found


def once_compiled(function: Callable[..., jax.Array], *arguments: Any) -> tuple[np.ndarray, float]:
    """The result, and the seconds it took without compiling."""
    result, seconds = timed(jax.jit(function).lower(*arguments).compile(), *arguments)
    return np.asarray(result), seconds.passed


def flow_table(model: ScoreModel, count: int) -> str:
    """Evaluations and milliseconds a sample that each sampler of the flow needs."""
    sde = model.sde
    z = sde.prior_sample(jax.random.key(1), (count, *model.shape))

    def run(transport: Callable[..., jax.Array], steps: int) -> tuple[np.ndarray, float]:
        return once_compiled(lambda noise, z: transport(noise, sde, z, steps), model.noise, z)

    fine, _ = run(FLOWS["`ode` (multistep)"], FINE)
    rows = []
    for name, transport in FLOWS.items():
        reached: dict[float, str] = {}
        for steps in LADDER:
            x, seconds = run(transport, steps)
            error = float(np.median(np.sqrt(np.mean((x - fine) ** 2, axis=(1, 2, 3)))))
            print(f"{name} {steps} evaluations: error {error:.4f}", flush=True)
            for wanted in ERRORS:
                if error <= wanted:
                    reached.setdefault(wanted, f"{steps} ({1e3 * seconds / count:.2g} ms)")
            if len(reached) == len(ERRORS):
                break
        rows.append((name, *(reached.get(e, f"more than {LADDER[-1]}") for e in ERRORS)))
    return tables.table(("sampler", *(f"error {e}" for e in ERRORS)), rows)


def mean_distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Euclidean distances of each of ``x`` from all of ``y``, averaged over ``y``."""
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.sqrt(np.maximum(squares, 0)).mean(axis=1)


def energy_distance(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Of two sets of images, without bias, and its standard error from the spread of ``x``."""
    x, y = (a.reshape(len(a), -1).astype(float) for a in (x, y))
    within_x = mean_distance(x, x) * len(x) / (len(x) - 1)
    within_y = mean_distance(y, y).mean() * len(y) / (len(y) - 1)
    between = mean_distance(x, y)
    influence = 2 * between - 2 * within_x
    value = 2 * between.mean() - within_x.mean() - within_y
    return float(value), float(influence.std(ddof=1) / np.sqrt(len(x)))


def distribution_table(model: ScoreModel, images: np.ndarray, count: int) -> str:
    """Distance from the data and milliseconds a sample, by the number of steps."""
    shape = (count, *model.shape)
    rows = []
    for name, at in samplers(model.sde).items():
        cells = []
        for steps in LONG_LADDER:
            draw, evaluations = at(steps)
            x, seconds = once_compiled(
                lambda noise, key, draw=draw: pixels_of(model).decode(draw(noise, key, shape)),
                model.noise, jax.random.key(2),
            )  # fmt: skip
            value, error = energy_distance(x, images)
            cells.append(f"{value:.2f} ± {error:.2f} ({1e3 * seconds / count:.2g} ms)")
            print(f"{name} {steps} steps, {evaluations} evaluations: {cells[-1]}", flush=True)
        rows.append((name, *cells))
    return tables.table(("sampler", *(f"{steps} steps" for steps in LONG_LADDER)), rows)


def cost(options: argparse.Namespace) -> None:
    model = load(train(["--config=configs/digits.py"], options.workdir))
    digits = data.load("digits")
    images = np.concatenate([digits.train, digits.test])
    flow = flow_table(model, options.count)
    distribution = distribution_table(model, images, options.count)
    print(flow, distribution, sep="\n\n")


def configured(model: ScoreModel, name: str, steps: int) -> ConfiguredSampler:
    config = defaults.get_config()
    config.sampling.method, config.sampling.steps = name, steps
    config.sampling.smallest_time = max(model.eps, SMALLEST_TIME)
    defaults.resolve(config)
    return sampler_of(config, model.sde)


def likely(options: argparse.Namespace) -> None:
    model = load(options.model, options.checkpoint)

    def bpd(images: np.ndarray) -> np.ndarray:
        return np.asarray(model.score(images, passes=2, seed=1).bpd)

    test, rows, results = bpd(data.load("digits").test), [], {}
    print(f"test images: {test.mean():.3f} bits/dim in the mean, {test.max():.3f} at most")
    for name, steps in TRIED:
        if name not in options.samplers:
            continue
        drawn = configured(model, name, steps)
        x = replace(model, eps=drawn.eps).sample(
            options.count, jax.random.key(0), sampler=drawn.draw
        )
        found = bpd(x)
        beyond, error = int((found > test.max()).sum()), found.std(ddof=1) / len(found) ** 0.5
        rows.append((
            name, str(steps), f"{beyond} of {len(found)}", f"{found.mean():.3f} ± {error:.3f}"
        ))  # fmt: skip
        results[f"{name}_{steps}"] = {"beyond": beyond, "mean": float(found.mean())}
        print(" ".join(rows[-1]), flush=True)
    answer(("sampler", "steps", "unlikelier than all test images", "bits/dim"), rows, results)


def main() -> None:
    parser = parser_of(__doc__)
    parts = parser.add_subparsers(required=True)
    of = parts.add_parser("cost")
    of.add_argument("--workdir", type=Path, default=Path("runs/digits"))
    of.add_argument("--count", type=int, default=256, help="samples")
    of.set_defaults(run=cost)
    of = parts.add_parser("likely")
    of.add_argument("model", nargs="?", default="digits")
    of.add_argument("--checkpoint", type=int, help="of a working directory; unset: the newest")
    of.add_argument("--count", type=int, default=64, help="samples")
    of.add_argument("--samplers", nargs="+", default=[name for name, _ in TRIED])
    of.set_defaults(run=likely)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
