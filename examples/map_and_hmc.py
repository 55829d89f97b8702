"""The likeliest parameters, and a sample of their posterior, by gradients of a model's log p.

python examples/map_and_hmc.py        # half a minute of CPU

A diffusion model is the prior of a measurement: y = b . x + 0.2 z, with x distributed as the model
says. log p(x) + log N(y; b . x, 0.2^2) is differentiable in x. So BFGS finds its maximum, and
Hamiltonian Monte Carlo samples the posterior, without training anything for the measurement.

The prior is a mixture whose noise prediction can be written down, in place of a network: so the
posterior is known on a grid, to hold both against.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.optimize import minimize
from jax.scipy.stats import norm

import scoremle

# 1. The prior: a model of vectors. Any noise prediction will do; this is that of a mixture.
SDE, EPS = scoremle.VP(), 1e-4
MEANS, STD = jnp.asarray([[-1.0, 0.2], [0.8, 0.9], [0.3, -0.9]]), 0.5


def noise(x, t):
    alpha, sigma = SDE.alpha(t)[:, None], SDE.sigma(t)[:, None]
    variance = alpha**2 * STD**2 + sigma**2
    away = x[:, None] - alpha[..., None] * MEANS
    shares = jax.nn.softmax(-jnp.square(away).sum(-1) / (2 * variance), axis=1)
    return sigma * jnp.einsum("bk,bkd->bd", shares, away) / variance


prior = scoremle.ScoreModel(noise, SDE, EPS, (2,))

# 2. The posterior of a measurement, up to a constant; prior.log_prob is by an exact trace here.
B, Y, ERROR = jnp.asarray([1.0, 0.5]), 0.4, 0.2


def log_posterior(x):
    found = prior.log_prob(x, jax.random.key(0))
    return found.log_prob + norm.logpdf(Y, x @ B, ERROR)


# 3. Its maximum, from several starts.
@jax.jit
def climb(start):
    found = minimize(lambda x: -log_posterior(x[None])[0], start, method="BFGS")
    return found.x, -found.fun


# 4. Hamiltonian Monte Carlo: leapfrog steps for all chains at once, and a choice for each.
def sample(key, x, *, rounds, leaps=8, step=0.15):
    value_and_slope = jax.vmap(jax.value_and_grad(lambda x: log_posterior(x[None])[0]))

    def leap(state, _):
        x, p, slope = state
        p = p + step / 2 * slope
        x = x + step * p
        _, slope = value_and_slope(x)
        return (x, p + step / 2 * slope, slope), None

    def propose(state, key):
        x, value, slope = state
        for_p, for_choice = jax.random.split(key)
        p = jax.random.normal(for_p, x.shape)
        (x_new, p_new, slope_new), _ = jax.lax.scan(leap, (x, p, slope), length=leaps)
        value_new, _ = value_and_slope(x_new)
        gain = value_new - value - (jnp.square(p_new) - jnp.square(p)).sum(-1) / 2
        taken = jnp.log(jax.random.uniform(for_choice, gain.shape)) < gain
        x = jnp.where(taken[:, None], x_new, x)
        state = x, jnp.where(taken, value_new, value), jnp.where(taken[:, None], slope_new, slope)
        return state, (x, taken)

    first = (x, *value_and_slope(x))
    return jax.lax.scan(propose, first, jax.random.split(key, rounds))[1]


def truth(side=301):
    """Points of a grid, the posterior's mass at each, and its logarithm up to the constant."""
    ticks = np.linspace(-2.5, 2.5, side)
    x = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    variance = STD**2 * SDE.alpha(EPS) ** 2 + SDE.sigma(EPS) ** 2
    away = np.square(x[:, None] - SDE.alpha(EPS) * MEANS).sum(-1)
    log_prior = jax.nn.logsumexp(-away / (2 * variance), axis=1)
    log_prior -= np.log(len(MEANS) * 2 * np.pi * variance)
    values = np.asarray(log_prior + norm.logpdf(Y, x @ B, ERROR))
    return x, np.exp(values) / np.exp(values).sum(), values


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=120, help="of Hamiltonian Monte Carlo")
    parser.add_argument("--chains", type=int, default=48)
    flags = parser.parse_args()
    x, mass, values = truth()
    best, height = max((climb(start) for start in MEANS), key=lambda found: found[1])
    print(f"maximum at {np.round(best, 2)}, log {height:.3f}; on the grid at "
          f"{np.round(x[values.argmax()], 2)}, log {values.max():.3f}")  # fmt: skip

    starts = prior.sample(flags.chains, jax.random.key(1))
    drawn, taken = jax.jit(sample, static_argnames="rounds")(
        jax.random.key(2), jnp.asarray(starts), rounds=flags.rounds
    )
    kept = np.asarray(drawn[flags.rounds // 5 :], np.float64)
    mean, of_chains = kept.mean(axis=(0, 1)), kept.mean(axis=0)
    error = of_chains.std(axis=0, ddof=1) / flags.chains**0.5
    spread = np.sqrt(np.square(kept - mean).mean(axis=(0, 1)))
    exact = mass @ x
    exact_spread = np.sqrt(mass @ np.square(x - exact))
    print(f"accepted {taken.mean():.2f}")
    for i in range(2):
        print(f"x_{i + 1}: mean {mean[i]:.3f} +- {error[i]:.3f}, exact {exact[i]:.3f}; standard "
              f"deviation {spread[i]:.3f}, exact {exact_spread[i]:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
