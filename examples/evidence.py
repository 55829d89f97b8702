"""The evidence of a posterior, by importance weights, against its closed form.

python examples/evidence.py        # a minute of CPU

A simulator draws theta from a prior, and observes y = A theta + noise. A diffusion model learns
the posterior from simulations alone. Samples of it carry their log p, and so they can be weighed
for prior times likelihood: the mean weight is the evidence p(y), and the weighted mean is that of
the true posterior, whatever the network has not learned. Here all is Gaussian, so both are known.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import multivariate_normal, norm

import scoremle
from scoremle.weights import reweigh

# 1. The simulator: theta ~ N(0, I) of three dimensions, and y of four.
A, NOISE = np.random.default_rng(1).normal(size=(4, 3)), 0.5


def simulate(rng, n):
    theta = rng.normal(size=(n, 3))
    return np.float32(theta), np.float32(theta @ A.T + NOISE * rng.normal(size=(n, 4)))


def log_joint(theta, y):
    return norm.logpdf(theta).sum(axis=1) + norm.logpdf(y, theta @ A.T, NOISE).sum(axis=1)


# 2. A network that predicts the noise in theta, given y; and its training.
SDE, EPS = scoremle.VP(), 1e-4
SPREAD = np.float32(np.sqrt(np.diag(A @ A.T) + NOISE**2))


def network(params, theta, t, y):
    level = SDE.log_snr(t)[:, None] / 5 * jnp.arange(1, 4)
    h = jnp.concatenate([theta, y / SPREAD, jnp.sin(level), jnp.cos(level)], axis=-1)
    for weights, bias in params[:-1]:
        h = jax.nn.silu(h @ weights + bias)
    weights, bias = params[-1]
    return SDE.sigma(t)[:, None] * theta + h @ weights + bias


def loss(params, batch, key):
    theta, y = batch[:, :3], batch[:, 3:]
    times = scoremle.UniformLogSNR(SDE, EPS, stratified=True)
    return scoremle.denoising_loss(
        lambda x, t: network(params, x, t, y), SDE, theta, key, times=times, weighting="likelihood"
    ).mean()


def train(steps, width=96):
    rng = np.random.default_rng(0)
    simulations = np.concatenate(simulate(rng, 200_000), axis=1)
    sizes = [(13, width), (width, width), (width, width), (width, 3)]
    params = [(rng.normal(size=s).astype("f") / s[0] ** 0.5, np.zeros(s[1], "f")) for s in sizes]
    params = scoremle.fit(
        loss, params, lambda i: simulations[np.arange(512 * i, 512 * i + 512) % len(simulations)],
        steps=steps, optimizer=optax.adam(optax.cosine_decay_schedule(2e-3, steps)), ema_rate=0.99,
    )  # fmt: skip
    return scoremle.ScoreModel(jax.tree_util.Partial(network, params), SDE, EPS, (3,))


# 3. Samples with log p, their weights, and the closed forms.
def show(model, y, n, seed):
    samples = model.sample(n, jax.random.key(seed), condition=y[None], log_prob=True)
    found = reweigh(samples, lambda theta: log_joint(theta, y))
    exact = multivariate_normal.logpdf(y, np.zeros(4), A @ A.T + NOISE**2 * np.eye(4))
    mean, stderr, _ = found.expectation(samples.x)
    posterior = np.linalg.solve(A.T @ A / NOISE**2 + np.eye(3), A.T @ y / NOISE**2)
    print(found)
    print(
        f"log evidence {found.log_z:.4f} +- {found.stderr:.4f}, solver {found.solver_error:.4f};"
        f" exact {exact:.4f}"
    )
    for name, values in {"mean": mean, "+-": stderr, "exact": posterior}.items():
        print(f"  {name:6}", *(f"{value:8.4f}" for value in values))
    print("  model ", *(f"{value:8.4f}" for value in samples.x.mean(axis=0)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500, help="training steps")
    parser.add_argument("--samples", type=int, default=4000, help="for each observation")
    flags = parser.parse_args()
    model = train(flags.steps)
    _, observed = simulate(np.random.default_rng(7), 3)
    for i, y in enumerate(observed):
        print(f"\nobservation {i + 1}: {y.round(2)}")
        show(model, y, flags.samples, i)


if __name__ == "__main__":
    main()
