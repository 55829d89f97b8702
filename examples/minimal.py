"""The whole method on a page: the density of two moons, learned, evaluated, checked and drawn.

python examples/minimal.py            # needs matplotlib; half a minute; writes two_moons.png
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import scoremle

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=5000, help="training steps")
parser.add_argument("--grid", type=int, default=128, help="points on a side of the grid")
parser.add_argument("--out", default="two_moons.png", help="the picture to write")
flags = parser.parse_args()


# 1. Data: an array whose first axis counts examples.
def two_moons(rng, n):
    angle, side = rng.uniform(0, np.pi, n), rng.choice([-1, 1], n)
    moons = np.stack([np.cos(angle) + side / 2, side * (0.25 - np.sin(angle))], axis=-1)
    return np.float32(1.3 * moons + 0.2 * rng.normal(size=(n, 2)))


rng = np.random.default_rng(0)
train, test = two_moons(rng, 50_000), two_moons(rng, 5_000)

# 2. The SDE that turns data into noise; eps is the time, just after its start, that we look at.
sde, eps = scoremle.VP(), 1e-3


# 3. A model: from x at time t, it predicts the noise in it. Any function of (x, t) will do.
def model(params):
    def noise(x, t):
        level = sde.log_snr(t)[:, None] / 5 * jnp.arange(1, 4)
        h = jnp.concatenate([x, jnp.sin(level), jnp.cos(level)], axis=-1)
        for weights, bias in params[:-1]:
            h = jax.nn.silu(h @ weights + bias)
        weights, bias = params[-1]
        return sde.sigma(t)[:, None] * x + h @ weights + bias

    return noise


sizes = [(8, 128), (128, 128), (128, 128), (128, 2)]
params = [(rng.normal(size=s).astype("f") / s[0] ** 0.5, np.zeros(s[1], "f")) for s in sizes]

# 4. Maximum likelihood: the loss weighted by g^2/sigma^2, its times drawn uniform in log-SNR.
times = scoremle.UniformLogSNR(sde, eps, stratified=True)
optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, flags.steps))


def loss(params, x, key):
    noise = model(params)
    nats = scoremle.denoising_loss(noise, sde, x, key, times=times, weighting="likelihood")
    return nats.mean()


@jax.jit
def step(params, state, x, key):
    value, gradient = jax.value_and_grad(loss)(params, x, key)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, value


state = optimizer.init(params)
for i in range(flags.steps):
    x = train[rng.integers(len(train), size=512)]
    params, state, value = step(params, state, x, jax.random.key(i))
    if i % 500 == 0:
        print(f"step {i}  loss {value:.3f} nats", flush=True)

# 5. The exact log-likelihood by the probability-flow ODE, and the bound that training lowered.
noise, key, solver = model(params), jax.random.key(1), scoremle.Multistep(steps=48)


@jax.jit
def exact(x):
    trace = scoremle.Exact()  # cheap in two dimensions; scoremle.Hutchinson in many
    found = scoremle.ode_log_likelihood(
        noise, sde, x, key, eps=eps, divergence=trace, solver=solver
    )
    return found.log_prob


bound = scoremle.elbo(noise, sde, test, key, eps=eps, times=times, draws=64).log_prob
for name, nats in [("exact", -exact(test)), ("bound", -bound)]:
    print(f"-log p, {name}: {nats.mean():.3f} +- {nats.std() / len(test) ** 0.5:.3f} nats")
print("exact is of the ODE's model, bound of the SDE's: two models, so that either may be lower")

# 6. It is a density: over the plane it integrates to one.
side = jnp.linspace(-3, 3, flags.grid)
plane = jnp.stack(jnp.meshgrid(side, side), axis=-1)
density = jnp.exp(exact(plane.reshape(-1, 2))).reshape(plane.shape[:2])
print(f"integral over the plane: {density.sum() * (side[1] - side[0]) ** 2:.4f}")

# 7. Samples: the same ODE, from the prior to the data.
z = sde.prior_sample(key, (2_000, 2))
samples = scoremle.ode_sample(noise, sde, z, eps=eps, solver=solver)

figure = Figure(figsize=(12, 4.2), layout="constrained")
for axis, title in zip(figure.subplots(1, 3), ["data", "density", "samples"], strict=True):
    axis.set(title=title, aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
    if title == "density":
        axis.pcolormesh(side, side, density, cmap="magma", rasterized=True)
    else:
        axis.scatter(*(test[:2_000] if title == "data" else samples).T, s=2)
figure.savefig(flags.out)
print(f"drawn in {flags.out}")
