"""A posterior learned from simulations: beside the truth, with its stated error, and calibrated?

python examples/posterior.py          # needs matplotlib; a minute of CPU

Two simulators whose posterior p(theta | x) is known. From pairs (theta, x) a small network learns
the noise in theta, with x as its condition. Then, of each:

- log p(theta | x) on a grid for one x, against the truth, with the solver's stated error;
- for x of other simulations: the ranks of the true theta among draws of the posterior, and how
  often a region that should hold a share of the posterior holds the true theta.
"""

import argparse
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from scipy.stats import chisquare, multivariate_normal, norm

import scoremle


# 1. Simulators: parameters and data in the plane.
class Gaussian:
    """theta ~ N(0, I), x = A theta + 0.5 z: the posterior is normal."""

    name, observed, ends = "linear Gaussian", np.array([1.0, -0.5]), (-2.0, 2.5)
    A, noise = np.array([[1.0, 0.5], [-0.3, 0.8]]), 0.5
    bounds = scoremle.Bounded()  # none

    def draw(self, rng, n):
        theta = rng.normal(size=(n, 2))
        return theta, theta @ self.A.T + self.noise * rng.normal(size=(n, 2))

    def log_posterior(self, theta):
        covariance = np.linalg.inv(np.eye(2) + self.A.T @ self.A / self.noise**2)
        mean = covariance @ self.A.T @ self.observed / self.noise**2
        return multivariate_normal(mean, covariance).logpdf(theta)


class TwoMoons:
    """theta ~ U(-1, 1)^2; x is a point p of a crescent, moved by theta (arXiv 2101.04653, T.8).

    p = (r cos a + 1/4, r sin a), a ~ U(-pi/2, pi/2), r ~ N(0.1, 0.01^2), and

        x = p + (-|theta_1 + theta_2|, theta_2 - theta_1) / sqrt 2

    The density of p is N(r; 0.1, 0.01^2) / (pi r) to the right of its centre, that of x given
    theta the same of p = x - move. At x = 0 both signs of theta_1 + theta_2 give it its whole
    mass within the square, where the prior is 1/4. So p(x) = 1/4 * 2, and the posterior is half of
    p(x | theta).
    """

    name, observed, ends = "two moons", np.zeros(2), (-0.36, 0.36)
    bounds = scoremle.Bounded(-1.0, 1.0)

    def move(self, theta):
        sides = np.abs(theta[:, 0] + theta[:, 1]), theta[:, 0] - theta[:, 1]
        return -np.stack(sides, axis=1) / np.sqrt(2)

    def draw(self, rng, n):
        theta, angle = rng.uniform(-1, 1, (n, 2)), rng.uniform(-np.pi / 2, np.pi / 2, n)
        p = rng.normal(0.1, 0.01, n) * np.stack([np.cos(angle), np.sin(angle)])
        return theta, np.add(p.T, [0.25, 0]) + self.move(theta)

    def log_posterior(self, theta):
        p = self.observed - self.move(theta) - [0.25, 0]
        r = np.hypot(*p.T)
        log_likelihood = norm.logpdf(r, 0.1, 0.01) - np.log(np.pi * r)
        return np.where(p[:, 0] > 0, log_likelihood, -np.inf) - np.log(2)


# 2. What learns it: any function eps(x, t, condition) of a batch that predicts the noise.
SDE, EPS, WIDTH = scoremle.VP(), 1e-4, 128


def network(params, z, t, condition):
    both = jnp.concatenate([z, condition], axis=-1)
    waves = [2**k * both for k in range(4)]  # for what is narrow
    waves.append(SDE.log_snr(t)[:, None] / 5 * jnp.arange(1, 4))
    h = jnp.concatenate([both, *map(jnp.sin, waves), *map(jnp.cos, waves)], axis=-1)
    for weights, bias in params[:-1]:
        h = jax.nn.silu(h @ weights + bias)
    weights, bias = params[-1]
    return SDE.sigma(t)[:, None] * z + h @ weights + bias


def train(simulator, steps, batch=512):
    """The model of the posterior, by the loss of maximum likelihood."""
    rng = np.random.default_rng(0)
    theta, x = simulator.draw(rng, 1_000_000)
    # The network sees parameters without bounds, of mean 0 and standard deviation 1, and x alike.
    free = np.asarray(simulator.bounds.forward(theta)[0])
    spread, of_x = map(scoremle.Affine.standardizing, (free, x))
    inside, seen = (np.asarray(a) for a in (spread.forward(free)[0], of_x.forward(x)[0]))
    sizes = [(42, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 2)]
    params = [(rng.normal(size=s).astype("f") / s[0] ** 0.5, np.zeros(s[1], "f")) for s in sizes]
    times = scoremle.UniformLogSNR(SDE, EPS, stratified=True)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    def loss(params, z, condition, key):
        def noise(z, t):
            return network(params, z, t, condition)

        return scoremle.denoising_loss(
            noise, SDE, z, key, times=times, weighting="likelihood"
        ).mean()

    @jax.jit
    def step(params, mean, state, z, condition, key):
        gradient = jax.grad(loss)(params, z, condition, key)
        updates, state = optimizer.update(gradient, state)
        params = optax.apply_updates(params, updates)
        return params, jax.tree.map(lambda m, p: 0.995 * m + 0.005 * p, mean, params), state

    mean, state = params, optimizer.init(params)
    for i in range(steps):
        rows = rng.integers(len(inside), size=batch)
        key = jax.random.key(i)
        params, mean, state = step(params, mean, state, inside[rows], seen[rows], key)

    def noise(params, z, t, condition):
        return network(params, z, t, of_x.forward(condition)[0])

    return scoremle.ScoreModel(
        jax.tree_util.Partial(noise, mean), SDE, EPS, (2,),
        solver=scoremle.Multistep(48), bijector=scoremle.Chain((simulator.bounds, spread)),
    )  # fmt: skip


@jax.jit
def log_prob(model, theta, condition):
    return model.log_prob(theta, jax.random.key(0), condition=condition)


# 3. On a grid, against the truth.
class Grid(NamedTuple):
    truth: np.ndarray
    found: np.ndarray
    solver_error: np.ndarray
    cell: float


def on_grid(simulator, model, side):
    ticks = np.linspace(*simulator.ends, side)
    theta = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    found = log_prob(model, theta, simulator.observed[None])
    cell = (ticks[1] - ticks[0]) ** 2
    return Grid(
        *(np.asarray(a).reshape(side, side) for a in
          (simulator.log_posterior(theta), found.log_prob, found.solver_error)),
        cell,
    )  # fmt: skip


def print_grid(grid):
    """Over the least region that holds 99.9 % of the posterior."""
    mass = np.exp(grid.truth.ravel()) * grid.cell
    print(f"  integral over the grid: truth {mass.sum():.3f}, model "
          f"{np.exp(grid.found).sum() * grid.cell:.3f}")  # fmt: skip
    order = np.argsort(-mass)
    region = order[np.cumsum(mass[order]) < 0.999 * mass.sum()]
    share = mass[region] / mass[region].sum()
    gap = (grid.truth - grid.found).ravel()[region]
    print(f"  log p(theta | x), truth less model: mean {share @ gap:.3f} nats, root mean square "
          f"{np.sqrt(share @ gap**2):.3f}; of that the solver's, as it states: "
          f"{share @ grid.solver_error.ravel()[region]:.4f}")  # fmt: skip


# 4. Calibration, on other simulations: ranks, and coverage of regions of highest density.
def calibration(simulator, model, simulations, draws=63):
    theta, x = simulator.draw(np.random.default_rng(1), simulations)
    repeated = np.repeat(x, draws, axis=0)
    drawn = model.sample(len(repeated), jax.random.key(1), condition=repeated, batch_size=4096)
    ranks = (drawn.reshape(simulations, draws, 2) < theta[:, None]).sum(axis=1)
    of_draws = np.asarray(log_prob(model, drawn, repeated).log_prob).reshape(simulations, draws)
    of_truth = np.asarray(log_prob(model, theta, x).log_prob)
    return ranks, np.sort((of_draws > of_truth[:, None]).mean(axis=1))


def print_calibration(ranks, credibility):
    n, expected = len(credibility), (np.arange(len(credibility)) + 0.5) / len(credibility)
    counts = [np.histogram(each, 8, (0, 64))[0] for each in ranks.T]
    p_values = ", ".join(f"{chisquare(each).pvalue:.2f}" for each in counts)
    print(f"  ranks are uniform: p-values {p_values}")
    print(f"  coverage is off by {np.abs(credibility - expected).max():.3f} at most "
          f"(calibrated ones by less than {1.36 / n**0.5:.3f} in 95 of 100 runs)")  # fmt: skip


def draw(axes, simulator, grid, ranks, credibility):
    low, high = simulator.ends
    for axis, title, values in zip(axes, ("truth", "model"), grid[:2], strict=False):
        axis.imshow(np.exp(values), origin="lower", extent=(low, high, low, high))
        axis.set_title(f"{simulator.name}: {title}")
    axes[2].hist(ranks, bins=8, range=(0, 64))
    axes[2].axhline(len(ranks) / 8, color="k", lw=0.5)
    axes[2].set_title("ranks of the true theta")
    axes[3].plot(credibility, (np.arange(len(credibility)) + 0.5) / len(credibility))
    axes[3].plot([0, 1], [0, 1], "k", lw=0.5)
    axes[3].set(title="coverage", xlabel="credibility", ylabel="share of true theta within")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000, help="training steps")
    parser.add_argument("--grid", type=int, default=128, help="points on a side of the grid")
    parser.add_argument("--simulations", type=int, default=200, help="for calibration")
    parser.add_argument("--out", default="posterior.png", help="the picture to write")
    flags = parser.parse_args()
    figure = Figure(figsize=(16, 8), layout="constrained")
    rows = figure.subplots(2, 4)
    for simulator, axes in zip((Gaussian(), TwoMoons()), rows, strict=True):
        print(f"{simulator.name}:", flush=True)
        model = train(simulator, flags.steps)
        grid = on_grid(simulator, model, flags.grid)
        print_grid(grid)
        checked = calibration(simulator, model, flags.simulations)
        print_calibration(*checked)
        draw(axes, simulator, grid, *checked)
    figure.savefig(flags.out)
    print(f"drawn in {flags.out}")


if __name__ == "__main__":
    main()
