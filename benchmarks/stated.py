"""Does the error that the default call states cover the true one?

    python benchmarks/stated.py --networks digits
    python benchmarks/stated.py           # and four networks that benchmarks/likelihood.py trains
    python benchmarks/stated.py --networks digits_vp digits_subvp --seed=1    # trained anew

``ode_log_likelihood`` without a solver takes 32 nodes, with a new probe at each; of the digits,
which have 64 dimensions, with the exact trace. What its solver errs is found at 32 and at 384
nodes with the same probes: eight orthogonal ones of each image. That is nearly the trace, whose
integral is what new probes give in the mean. A stricter question is that of one held probe, whose
integral is rougher, beside what is stated with new probes. The standard error of new probes is
another, and stated apart.

Columns: root mean square of the true errors, bits/dim; that of the mean over the images, estimate
minus truth; how much the true values are off, by half of their nodes; the median of the stated
error; how many images it covers, and its ratio to the true one in the median: at the default's
nodes, and at those about it together, which tell how much is luck. 90 % or more is well, and at
most 4.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from likelihood import NETWORKS, train

import scoremle
from scoremle.core.divergence import DivergenceEstimator, FixedProbe, Hutchinson, Orthogonal
from scoremle.data.readers.digits import load_digits
from scoremle.evaluation import tables
from scoremle.experiment.build import build
from scoremle.experiment.workdir import Workdir
from scoremle.likelihood.ode import Likelihood, ode_log_likelihood
from scoremle.model import ScoreModel
from scoremle.solvers.multistep import Multistep, Planned
from scoremle.types import Data

KEY = jax.random.key(0)
# The default's nodes, and those about it.
DEFAULT, NODES = Multistep().nodes, (28, 30, 32, 34, 36)
FINER, PROBES = 384, 8
SHIPPED = "digits"
# Those whose embedding is that of 999 t.
ROUGH = (SHIPPED, "digits_vp", "digits_subvp", "fashion14_vp", "fashion14_subvp")


@dataclass(frozen=True)
class Measured:
    """What is stated of each image and the true error, by the number of nodes, in bits/dim."""

    stated: dict[int, np.ndarray]
    error: dict[int, np.ndarray]  # estimate minus truth
    doubt: float

    def covered(self, *nodes: int) -> float:
        return float(np.mean([np.abs(self.error[n]) <= self.stated[n] for n in nodes]))

    def width(self, *nodes: int) -> float:
        return float(np.median([self.stated[n] / np.abs(self.error[n]) for n in nodes]))


def measure(model: ScoreModel, x: Data, probes: int, finer: int = FINER) -> Measured:
    """With so many held probes, and so many nodes for the truth."""

    @jax.jit
    def solve(x: Data, divergence: DivergenceEstimator | None, plan: Planned) -> Likelihood:
        return ode_log_likelihood(
            model.noise, model.sde, x, KEY, eps=model.eps, divergence=divergence, solver=plan
        )

    default = None if probes > 1 else Hutchinson()
    drawn = Orthogonal(probes) if probes > 1 else Hutchinson()
    same = FixedProbe(drawn.draw(jax.random.key(1), x))
    bits = x[0].size * np.log(2)

    def value(nodes: int) -> np.ndarray:
        return -np.asarray(solve(x, same, Planned.of(nodes, finer)).log_prob, np.float64) / bits

    def stated(nodes: int) -> np.ndarray:
        return np.asarray(solve(x, default, Planned.of(nodes, finer)).solver_error) / bits

    truth = value(finer)
    return Measured(
        stated={nodes: stated(nodes) for nodes in NODES},
        error={nodes: value(nodes) - truth for nodes in NODES},
        doubt=float(np.sqrt(np.mean(np.square(value(finer // 2) - truth)))),
    )


def subject(
    name: str, workdir: Path, images: int, seed: int | None = None
) -> tuple[ScoreModel, Data]:
    """The model, trained from another ``seed`` if one is given, and its first test images."""
    if name == SHIPPED:
        model, test = scoremle.load(name), load_digits("")[1]
    else:
        other = () if seed is None else (f"--config.seed={seed}",)
        folder = workdir / (name if seed is None else f"{name}_{seed}")
        train((*NETWORKS[name], *other), folder)
        model = scoremle.load(folder)
        test = build(Workdir(folder).config()).data.test
    x = jnp.asarray(test[:images])
    return model, model.pixels.encode(x, scoremle.Uniform()(KEY, x)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark_likelihood"))
    parser.add_argument("--networks", nargs="+", choices=ROUGH, default=ROUGH)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--seed", type=int, help="of the trainings; else that of their configs")
    options = parser.parse_args()
    rows, results = [], {}
    for name in options.networks:
        model, x = subject(name, options.workdir, options.images, options.seed)
        for probes in (PROBES, 1):
            found = measure(model, x, probes)
            shares, ratios = (
                (of(DEFAULT), of(*NODES)) for of in (found.covered, found.width)
            )  # fmt: skip
            rows.append((
                name, "trace" if probes > 1 else "one probe",
                f"{np.sqrt(np.mean(found.error[DEFAULT]**2)):.1e}",
                f"{found.error[DEFAULT].mean():+.1e}", f"{found.doubt:.0e}",
                f"{np.median(found.stated[DEFAULT]):.1e}",
                f"{shares[0]:.0%}", f"{ratios[0]:.1f}", f"{shares[1]:.0%}", f"{ratios[1]:.1f}",
            ))  # fmt: skip
            results[f"{name}_{probes}"] = {"covered": shares, "width": ratios}
            print(" ".join(rows[-1]), flush=True)
    header = (
        "network", "truth of", "error", "of the mean", "doubt", "stated", "covers",
        "stated / true", "covers, about", "stated / true, about",
    )  # fmt: skip
    print(tables.table(header, rows))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
