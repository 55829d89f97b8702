"""Which scale should the informed decoder have: the network's own, or a fitted one; and of whom?

    python benchmarks/decoder_scale.py     # some minutes

Fashion-MNIST at 8x8 with its 256 levels, and a small U-Net with a learned range of variances on
DDPM's 1000 steps. It is trained by the loss of improved diffusion (L_hybrid, arXiv 2102.09672) at
steps drawn evenly, of which the first comes up 200 times: a long training draws it many thousands
of times. So the output of variances alone is then trained on, at the first step.

The first table: bits/dim of the step from there to the integers, over test images, by each scale.
The second: what eight images gain by a scale that is fitted to themselves over one that is fitted
to eight others, in the mean over many such groups.
"""

import argparse
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from scoremle import ScoreModel, data
from scoremle.core.betas import betas
from scoremle.core.prediction import noise_fn
from scoremle.core.schedules import Discrete
from scoremle.core.sde import SDE
from scoremle.evaluation.tables import table
from scoremle.likelihood.informed import fitted_scale
from scoremle.likelihood.reconstruction import Informed
from scoremle.likelihood.steps import RangedNoise, learned_decoder
from scoremle.nn.applied import Applied
from scoremle.nn.unet2d import UNet2D
from scoremle.numerics import expand, sum_data
from scoremle.published.family import PIXELS

STEPS, SIDE, BATCH = 1000, 8, 64
BITS = SIDE**2 * math.log(2)
# Images of a fit, as the command has it.
FEW = 8
SDE_ = SDE("vp", Discrete.of_betas(betas("linear", STEPS)), 1.0)
POINTS = jnp.asarray(PIXELS.points, jnp.float32)
NETWORK = UNet2D(
    sample_size=SIDE, in_channels=1, out_channels=2, layers_per_block=1,
    block_out_channels=(16, 32), norm_num_groups=8,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip


def noise_of(params: Any) -> RangedNoise:
    return RangedNoise(noise_fn(Partial(Applied(NETWORK), params), SDE_, conditioning="step"))


def loss(params: Any, k: jax.Array, label: jax.Array, key: jax.Array) -> jax.Array:
    """L_hybrid: the error of the noise, and of v the terms of the chain in bits/dim."""
    t, s, noise = (label + 1) / STEPS, jnp.maximum(label, 1) / STEPS, noise_of(params)
    z = jax.random.normal(key, k.shape)
    prediction, v = noise.both(SDE_.perturb(POINTS[k], t, z), t)
    error = jax.lax.stop_gradient(prediction) - z
    log_rho = (v + 1) * expand(jnp.log(SDE_.sigma(s)) - jnp.log(SDE_.sigma(t)), v)
    gain = expand(jnp.expm1(SDE_.log_snr(s) - SDE_.log_snr(t)), v)
    step = sum_data(jnp.exp(log_rho) * gain * error**2 + jnp.expm1(log_rho) - log_rho) / 2
    last = -decoder(noise).log_prob(error, SDE_, k, t, v)
    mse = jnp.mean(jnp.square(prediction - z), axis=(1, 2, 3))
    return jnp.mean(mse + jnp.where(label == 0, last, step) / BITS)


def decoder(noise: RangedNoise) -> Informed:
    found = learned_decoder(noise, SDE_, 1 / STEPS, POINTS)
    assert found is not None
    return found


def trained(images: np.ndarray, steps: int, start: Any = None) -> Any:
    """Parameters; from a ``start``, the output of variances alone, at the first step."""
    like = jnp.zeros((1, SIDE, SIDE, 1)), jnp.zeros(1)
    whole = start or NETWORK.init(jax.random.key(0), *like)["params"]
    free = jax.tree.map(lambda a: a[..., 1], whole["conv_out"]) if start else whole

    def placed(free: Any) -> Any:
        if not start:
            return free
        last = jax.tree.map(lambda a, b: a.at[..., 1].set(b), whole["conv_out"], free)
        return {**whole, "conv_out": last}

    adam = optax.adam(optax.cosine_decay_schedule(1e-2 if start else 2e-3, steps))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam)

    @jax.jit
    def gradient(free: Any, k: jax.Array, label: jax.Array, key: jax.Array) -> Any:
        return jax.grad(lambda free: loss(placed(free), k, label, key))(free)

    @jax.jit
    def update(free: Any, state: Any, found: Any) -> Any:
        change, state = optimizer.update(found, state)
        return optax.apply_updates(free, change), state

    state, rng = optimizer.init(free), np.random.default_rng(0)
    for i in range(steps):
        k = images[rng.integers(len(images), size=BATCH)]
        label = rng.integers(1 if start else STEPS, size=BATCH)
        key = jax.random.fold_in(jax.random.key(1), i)
        free, state = update(free, state, gradient(free, k, label, key))
    return placed(free)


def nats_of(params: Any, images: np.ndarray) -> Any:
    """-log p(k | z) of each image by a decoder, for the same draws of z."""
    t, noise = jnp.full(len(images), 1 / STEPS), noise_of(params)
    z = jax.random.normal(jax.random.key(2), images.shape)
    prediction, v = jax.jit(noise.both)(SDE_.perturb(POINTS[images], t, z), t)

    def nats(how: Informed) -> np.ndarray:
        return -np.asarray(how.log_prob(prediction - z, SDE_, jnp.asarray(images), t, v))

    return nats


def fitted_to(params: Any, images: np.ndarray) -> Informed:
    model = ScoreModel(noise_of(params), SDE_, 1 / STEPS, (SIDE, SIDE, 1), PIXELS)
    return Informed(POINTS, fitted_scale(model, images, jax.random.key(3)))


def rows(params: Any, train: np.ndarray, test: np.ndarray) -> list[tuple[str, ...]]:
    """Of each scale the mean over the test images, less that of a number fitted to many."""
    nats, best = nats_of(params, test), fitted_to(params, train[:1000])
    ways = {
        "the network's own": decoder(noise_of(params)),
        f"fitted to {FEW} other images": fitted_to(params, train[:FEW]),
        "fitted to 1000 other images": best,
        "of the noise": Informed.at(SDE_, 1 / STEPS, POINTS),
    }
    found = []
    for name, how in ways.items():
        bits = nats(how) / BITS
        gap = bits - nats(best) / BITS
        error = gap.std(ddof=1) / math.sqrt(len(gap))
        found.append((name, f"{bits.mean():.4f}", f"{gap.mean():+.4f}", f"{error:.4f}"))
    return found


def gain_of_own(params: Any, images: np.ndarray) -> tuple[float, float]:
    """Nats that eight images gain all together by their own scale, and its standard error."""
    groups = images.reshape(-1, FEW, SIDE, SIDE, 1)
    scales, nats = [fitted_to(params, group) for group in groups], nats_of(params, images)
    by_scale = np.stack([nats(scale).reshape(-1, FEW).sum(axis=1) for scale in scales])
    gains = np.roll(by_scale, 1, axis=0).diagonal() - by_scale.diagonal()
    return float(gains.mean()), float(gains.std(ddof=1) / math.sqrt(len(gains)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--groups", type=int, default=50)
    options = parser.parse_args()
    found = data.load("fashion_mnist", image_size=SIDE, fit="resize")
    train, test = np.asarray(found.train), np.asarray(found.test)
    params = trained(train, options.steps)
    header = ("scale", "bits/dim", "less that of 1000", "error")
    print("trained by L_hybrid, at even steps")
    print(table(header, rows(params, train, test[:1000])))
    gain, error = gain_of_own(params, test[: FEW * options.groups])
    print("\nvariances trained on, at the first step")
    print(table(header, rows(trained(train, options.steps // 5, params), train, test[:1000])))
    print(
        f"\n{FEW} images gain {gain:.2f} +- {error:.2f} nats all together by a scale of their own:"
        f" {gain / FEW / BITS:.5f} bits/dim each"
    )


if __name__ == "__main__":
    main()
