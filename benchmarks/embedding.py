"""Can a solver gain from knowing how the embedding of 999 t oscillates?

    python benchmarks/embedding.py --networks digits
    python benchmarks/embedding.py          # and two of those that benchmarks/likelihood.py trains

Four ways that cost no evaluation, beside the nodes as they are. ``filtered``: each wave of the
embedding is replaced by its average over a step, so that those that the nodes do not resolve fade
out. ``placed``: each node is moved by at most half an oscillation of the fastest wave, so that its
phase advances by the golden section of a cycle from node to node. The sum of such phases is
bounded, where steps of a whole number of oscillations add them all up. Nodes stay where steps are
shorter than 2.5 oscillations. ``weighted``: each step takes five values and integrates parabolas
exactly; what that leaves free is chosen so that the whole integral errs least, in the mean square,
for a random function. It is the sum of a smooth one and of the waves of the embedding, a tenth as
large, whose amplitudes drift slowly. ``both``: these weights at the nodes of ``placed``. Here all
images share one clock.

Columns: the solver's error of an image by the number of nodes, root mean square, bits/dim, from
384 plain nodes with the same four probes. The last is the root of the mean of the squares of all,
each over that of the plain nodes: below 1 is a gain.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from stated import KEY, ROUGH, subject

from scoremle.core.divergence import FixedProbe, Orthogonal
from scoremle.core.prediction import LABEL_SCALE
from scoremle.evaluation import tables
from scoremle.likelihood.ode import ode_log_likelihood
from scoremle.model import ScoreModel
from scoremle.nn import layers
from scoremle.solvers import clock as own_clock
from scoremle.solvers import multistep
from scoremle.solvers.multistep import DIFFERENCE, Plan, Planned
from scoremle.solvers.probability_flow import WIDTH, ProbabilityFlow
from scoremle.types import Data, Times

NODES, FINER, PROBES = (16, 20, 24, 28, 32, 40, 48, 64), 384, 4
GOLDEN = (3 - 5**0.5) / 2
LONG = 2.5  # of steps, in oscillations
# Of the random function, as shares of the span: how far its smooth part and the amplitudes of its
# waves keep their values; the size of the waves; and points that stand for the whole span.
SMOOTH, DRIFT, WAVES, POINTS = 0.05, 0.1, 0.1, 2000
# The variance of what is neither: it keeps the changes of weights small.
ROUGH_REST = 1e-4

plain_nodes, plain_plan = multistep._nodes, multistep.plan


def frequencies(size: int) -> np.ndarray:
    """Of the waves of an embedding of labels, in radians a label."""
    half = size // 2
    return np.exp(np.arange(half) * (-np.log(1e4) / (half - 1)))


class Clock:
    """The clock of a model's solver, as a share of its span."""

    def __init__(self, model: ScoreModel) -> None:
        self.sde = model.sde
        start, stop = ProbabilityFlow(model.noise, model.sde).span(model.eps, jnp.float32)
        self.start, self.span = float(start), float(stop - start)

    def time(self, node: np.ndarray) -> np.ndarray:
        clock = jnp.asarray(self.start + self.span * node)
        return np.asarray(self.sde.time_of_log_snr(WIDTH * jnp.sinh(clock)), np.float64)

    def node(self, t: Times) -> Times:
        return (jnp.arcsinh(self.sde.log_snr(t) / WIDTH) - self.start) / self.span

    def labels_a_node(self, t: Times) -> Times:
        """How far the label moves for a whole span, at the speed that it has at t."""
        return LABEL_SCALE / jax.jvp(self.node, (t,), (jnp.ones_like(t),))[1]

    def placed(self, steps: int) -> np.ndarray:
        """Nodes at which the fastest wave has phases by the golden section."""
        nodes = plain_nodes(steps)
        cycles = LABEL_SCALE * self.time(nodes) / (2 * np.pi)
        shift = (GOLDEN * np.arange(steps + 1) - cycles + 0.5) % 1 - 0.5
        shift[np.abs(np.gradient(cycles)) < LONG] = 0
        shift[[0, -1]] = 0
        moved = self.node(jnp.asarray(2 * np.pi * (cycles + shift) / LABEL_SCALE, jnp.float32))
        return np.where(shift == 0, nodes, np.asarray(moved, np.float64))


@contextmanager
def filtered(clock: Clock, width: jax.Array) -> Iterator[None]:
    """Averages the embedding of labels over ``width`` of the span."""
    plain = layers.positional_embedding

    def averaged(labels: Times, size: int) -> jax.Array:
        step = width * clock.labels_a_node(labels / LABEL_SCALE)
        damped = jnp.sinc(step[:, None] * frequencies(size) / (2 * np.pi))
        waves = plain(labels, size)
        return waves * jnp.pad(jnp.tile(damped, 2), ((0, 0), (0, size % 2)), constant_values=1)

    with mock.patch.object(layers, "positional_embedding", averaged):
        yield


def covariance(clock: Clock, waves: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of the random function, at these nodes and those."""
    gap = np.square(a[:, None] - b)
    labels = LABEL_SCALE * (clock.time(a)[:, None] - clock.time(b))
    oscillation = np.mean([np.cos(wave * labels) for wave in waves], axis=0)
    drift = np.exp(-gap / (2 * DRIFT**2))
    return np.exp(-gap / (2 * SMOOTH**2)) + WAVES**2 * oscillation * drift


def free_weights(nodes: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """A step's end, and changes of its weights, newest first, that parabolas don't notice."""
    for end in range(DIFFERENCE, len(nodes)):
        window = nodes[end::-1][: DIFFERENCE + 1]
        powers = np.vander((window - window[-1]) / (window[0] - window[-1]), 3, increasing=True)
        for change in np.linalg.svd(powers.T)[2][3:]:
            yield end, change


def weighted(clock: Clock, waves: np.ndarray, steps: int, room: int | None = None) -> Plan:
    """The plan whose whole integral errs least for the random function."""
    plan = plain_plan(steps, room)
    nodes = plan.node[: steps + 1]
    changes = list(free_weights(nodes))
    of_total = np.zeros((len(changes), steps + 1))
    for row, (end, change) in zip(of_total, changes, strict=True):
        row[end - np.arange(DIFFERENCE + 1)] = change
    middles = (np.arange(POINTS) + 0.5) / POINTS
    known = covariance(clock, waves, nodes, nodes)
    wanted = covariance(clock, waves, nodes, middles).mean(axis=1)
    left = of_total @ (wanted - known @ plan.total[: steps + 1])
    spread = of_total @ known @ of_total.T + ROUGH_REST * np.eye(len(changes))
    sizes = np.linalg.solve(spread, left)
    corrector, total = plan.corrector.copy(), plan.total.copy()
    for size, (end, change) in zip(sizes, changes, strict=True):
        corrector[end] += size * change
    total[: steps + 1] += sizes @ of_total
    return plan._replace(corrector=corrector, total=total)


def errors(model: ScoreModel, x: Data) -> dict[str, np.ndarray]:
    """Root mean squares by number of nodes, bits/dim."""
    clock, bits = Clock(model), x[0].size * np.log(2)
    waves = frequencies(model.noise.network.func.network.nf)
    probes = FixedProbe(Orthogonal(PROBES).draw(jax.random.key(1), x))

    @jax.jit
    def solve(x: Data, plan: Planned, width: jax.Array) -> jax.Array:
        with filtered(clock, width), mock.patch.object(own_clock, "MOST", 0.0):
            return ode_log_likelihood(
                model.noise, model.sde, x, KEY, eps=model.eps, divergence=probes, solver=plan
            ).log_prob

    def value(nodes: int, width: float = 0.0) -> np.ndarray:
        plan = Planned.of(nodes, FINER)
        return np.asarray(solve(x, plan, jnp.float32(width)), np.float64) / bits

    truth = value(FINER)

    def over(of: Callable[[int], np.ndarray]) -> np.ndarray:
        return np.array([np.sqrt(np.mean(np.square(of(n) - truth))) for n in NODES])

    found = {"plain": over(value), "filtered": over(lambda nodes: value(nodes, 1 / nodes))}
    by_weights = mock.patch.object(multistep, "plan", partial(weighted, clock, waves))
    with by_weights:
        found["weighted"] = over(value)
    plain_plan.cache_clear()
    with mock.patch.object(multistep, "_nodes", clock.placed):
        found["placed"] = over(value)
        with by_weights:
            found["both"] = over(value)
    plain_plan.cache_clear()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark_likelihood"))
    parser.add_argument("--networks", nargs="+", choices=ROUGH, default=ROUGH[:3])
    parser.add_argument("--images", type=int, default=24)
    options = parser.parse_args()
    rows, results = [], {}
    for name in options.networks:
        found = errors(*subject(name, options.workdir, options.images))
        for way, each in found.items():
            ratio = float(np.sqrt(np.mean(np.square(each / found["plain"]))))
            rows.append((name, way, *(f"{error:.1e}" for error in each), f"{ratio:.2f}"))
            results[f"{name}, {way}"] = ratio
            print(" ".join(rows[-1]), flush=True)
    print(tables.table(("network", "way", *map(str, NODES), "over plain"), rows))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
