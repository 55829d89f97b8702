"""A network of one's own, trained and evaluated on images whose density is known.

python examples/own_network.py        # half a minute on a CPU

The images are 4x4 reals: a ramp that rises along one of four directions, each as likely as the
others, with independent normal noise. Their density is a mixture that can be written down, so what
a model adds to -log p is its own, and in the mean never below zero.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import norm

import scoremle

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=3000, help="training steps")
flags = parser.parse_args()

# 1. Images [n h w c], and their true log-density in nats. (Integer images would be encoded first:
# scoremle.Pixels.)
SIDE, STD = 4, 0.3
ramp = np.broadcast_to(np.linspace(-0.7, 0.7, SIDE), (SIDE, SIDE))
patterns = np.stack([ramp, ramp[:, ::-1], ramp.T, ramp.T[::-1]])[..., None]
DIMS = patterns[0].size


def draw(rng, n):
    pattern = patterns[rng.integers(len(patterns), size=n)]
    return np.float32(pattern + STD * rng.normal(size=pattern.shape))


def true_log_prob(x):
    squares = np.square(x[:, None] - patterns).sum(axis=(2, 3, 4)) / STD**2
    each = -(squares + DIMS * np.log(2 * np.pi * STD**2)) / 2
    return np.log(np.exp(each).mean(axis=1))


rng = np.random.default_rng(0)
train, test = draw(rng, 50_000), draw(rng, 1_000)

# 2. The SDE that turns data into noise; eps is the time, just after its start, that we look at.
sde, eps = scoremle.VP(), 1e-4


# 3. The network: any function eps(x, t) of a batch that predicts the noise in x at time t.
def model(params):
    def noise(x, t):
        level = sde.log_snr(t)[:, None] / 5 * jnp.arange(1, 4)
        flat = x.reshape(len(x), -1)
        h = jnp.concatenate([flat, jnp.sin(level), jnp.cos(level)], axis=-1)
        for weights, bias in params[:-1]:
            h = jax.nn.silu(h @ weights + bias)
        weights, bias = params[-1]
        return (sde.sigma(t)[:, None] * flat + h @ weights + bias).reshape(x.shape)

    return noise


sizes = [(DIMS + 6, 256), (256, 256), (256, 256), (256, DIMS)]
params = [(rng.normal(size=s).astype("f") / s[0] ** 0.5, np.zeros(s[1], "f")) for s in sizes]

# 4. Training by maximum likelihood; `fit` returns the running average of the parameters.
times = scoremle.UniformLogSNR(sde, eps, stratified=True)
optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, flags.steps))


def loss(params, x, key):
    noise = model(params)
    nats = scoremle.denoising_loss(noise, sde, x, key, times=times, weighting="likelihood")
    return nats.mean()


ema = scoremle.fit(
    loss, params, lambda i: train[np.random.default_rng(i).integers(len(train), size=256)],
    steps=flags.steps, optimizer=optimizer, ema_rate=0.995, every=500,
)  # fmt: skip

# 5. The exact log-likelihood by the probability-flow ODE, and the bound that training lowered:
# image by image beside the truth, only what the model adds is left to differ.
noise, key, solver = model(ema), jax.random.key(1), scoremle.Multistep(steps=48)
exact = scoremle.ode_log_likelihood(
    noise, sde, test, key, eps=eps, divergence=scoremle.Exact(), solver=solver
)
bound = scoremle.elbo(noise, sde, test, key, eps=eps, times=times, draws=256)
true = true_log_prob(test)

print(f"-log p, true: {-true.mean():.3f} nats")
for name, log_prob in [("exact", exact.log_prob), ("bound", bound.log_prob)]:
    excess = true - np.asarray(log_prob)
    error = excess.std(ddof=1) / len(test) ** 0.5
    print(f"-log p, {name}: {-log_prob.mean():.3f} nats, {excess.mean():.3f} +- {error:.3f} more")
print("exact is of the ODE's model, bound of the SDE's: two models, so that either may be lower")

# 6. The same function as a model of integer images, of 32 grey levels: their probability, too,
# is known.
pixels = scoremle.Pixels(32, low=-2.0, high=2.0)
images = np.asarray(pixels.decode(test))
scores = scoremle.ScoreModel(noise, sde, eps, test.shape[1:], pixels, solver).score(images)


def true_bits_per_dim(images):
    edges = pixels.low + (images[:, None, ..., None] + np.arange(2)) * 4 / pixels.levels
    edges = np.where(edges <= pixels.low, -np.inf, edges)  # the end bins are open
    edges = np.where(edges >= pixels.high, np.inf, edges)
    mass = np.diff(norm.cdf(edges, patterns[..., None], STD), axis=-1)
    return -np.log2(np.prod(mass, axis=(2, 3, 4, 5)).mean(axis=1)) / DIMS


excess = scores.bpd - true_bits_per_dim(images)
print(f"integers: {scores.bpd.mean():.3f} bits/dim, {excess.mean():.4f} +- "
      f"{excess.std(ddof=1) / len(test) ** 0.5:.4f} more than the truth: the model's part, and the"
      " noise's")  # fmt: skip
