"""Is a model what it is declared to be? Told by how well it predicts the noise in a few images.

A network that is fed or read in another way than it was trained predicts the noise badly, and its
likelihoods are wrong without a sign. So its error (eps - z)^2 is compared, at log-SNRs over the
whole range and with the same noise, to that of a Gaussian: the stationary one with the mean and
the power spectrum w of other images (F is the Fourier transform),

    eps = sigma F^-1[ F(x - alpha mean) / (alpha^2 w + sigma^2) ]

That is a weak model of images: a network that is worse was not trained there, or is misread. An
error that is larger by d costs the bound d/2 nats per dimension and unit of log-SNR.

Where the network is worse, its output is read in all other ways; it is told of t in other ways,
and shown pixels of another range. What then leaves little of the error is what it was trained for.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from scoremle.core.keys import example_keys, fold_in, normal
from scoremle.core.pixels import Pixels
from scoremle.core.prediction import (
    CONDITIONINGS,
    PREDICTIONS,
    Conditioned,
    Conditioning,
    NetworkNoise,
    noise_fn,
)
from scoremle.core.sde import SDE
from scoremle.core.times import log_snr_range
from scoremle.devices import compiled
from scoremle.errors import UserError
from scoremle.likelihood.images import ImageModel
from scoremle.likelihood.steps import RangedNoise
from scoremle.numerics import mean_square
from scoremle.types import IntImages, NoiseFn, PerExample, Scalar

__all__ = ["check"]

# The log-SNRs; the images measured at each, and those for the spectrum.
NODES, MEASURED_IMAGES, OTHER_IMAGES = 12, 8, 256
FEWEST_IMAGES = 4
# By how much an error must exceed another to count, at a node and in the mean over all, and by how
# many standard errors.
WORSE, BETTER, CERTAIN = 0.02, 0.005, 2.0
# A reading that is worse than the Gaussian at more of the nodes than this explains nothing.
FEW = 0.2
# What pixels are scaled to; ranges whose ends differ by less than this share are the same.
RANGES, NEAR = ((-1.0, 1.0), (0.0, 1.0), (-0.5, 0.5)), 0.1

# By how much the error of each example exceeds the Gaussian's at each node.
Excess = Float[np.ndarray, "k b"]


@dataclass(frozen=True)
class Reading:
    """How a network is fed, and what its output means."""

    prediction: str
    conditioning: str | Conditioning
    pixels: Pixels

    def changes(self, other: "Reading") -> int:
        """In how many of these two readings differ."""
        mine, others = vars(self).values(), vars(other).values()
        return sum(a != b for a, b in zip(mine, others, strict=True))


def check(model: ImageModel, images: IntImages, *, condition: Any = None) -> list[str]:
    """What is likely wrong with the declaration of a model: a line each, and none if all is well.

    The network is asked about a hundred times where all is well, and up to two thousand times
    where not. It is told of t in other ways only if it is known apart from that, by ``noise_fn``.

    Args:
        model: of images.
        images: of the kind that it was trained on; a few of them are used.
        condition: what the noise prediction takes, a row for each image.

    Raises UserError for fewer than four images, and ValueError for a schedule that has a log-SNR
    for each dimension.
    """
    if len(images) < FEWEST_IMAGES:
        raise UserError(f"a check needs {FEWEST_IMAGES} images or more, not {len(images)}")
    trial = _Trial(model, images, condition)
    declared = trial.declared
    found = dict(trial.as_fed(declared, declared.prediction == "edm"))
    if _worse(found[declared]).any() or _best(declared, found) != declared:
        for way in (declared, *trial.other_ways()):
            for scaled in (False, True):
                found |= trial.as_fed(way, scaled)
        found = {r: excess for r, excess in found.items() if r == declared or _good(excess)}
    best = _best(declared, found)
    return [*trial.differences(best), *trial.regions(found[best])]


class _Trial:
    """A network, and the nodes, noise and images that all its readings have in common."""

    def __init__(self, model: ImageModel, images: IntImages, condition: Any) -> None:
        count, noise = min(MEASURED_IMAGES, len(images) // 2), model.noise
        if condition is not None:
            noise = Conditioned(noise, jax.tree.map(lambda row: row[:count], condition))
        self.sde, (self.noise, self.known) = model.sde, _record_of(noise, model.sde)
        self.declared = Reading(self.noise.prediction, self.noise.conditioning, model.pixels)
        self.measured = np.asarray(images[:count])
        self.others = np.asarray(images[count : count + OTHER_IMAGES])
        low, high = log_snr_range(model.sde, model.eps)
        self.log_snr = np.linspace(float(low), float(high), NODES)
        self.t = jnp.clip(model.sde.time_of_log_snr(jnp.asarray(self.log_snr)), model.eps, 1.0)

    def labels(self, conditioning: str | Conditioning) -> Float[Array, " k"]:
        """What the network is told at the nodes."""
        tell = CONDITIONINGS[conditioning] if isinstance(conditioning, str) else conditioning
        return tell(self.sde, self.t)

    def as_fed(self, way: Reading, scaled: bool) -> Iterator[tuple[Reading, Excess]]:
        """All that its output may mean, where a network is fed in this way; ``scaled``: by EDM."""
        measured, others = (
            jnp.asarray(way.pixels.points, float)[x] for x in (self.measured, self.others)
        )
        alpha, sigma = self.sde.alpha(self.t), self.sde.sigma(self.t)
        scale = jnp.hypot(sigma, self.noise.sigma_data * alpha) if scaled else jnp.ones_like(alpha)
        found = _excesses(
            self.noise.network, measured, others,
            (alpha, sigma, self.labels(way.conditioning), scale), self.noise.sigma_data,
        )  # fmt: skip
        for name in ("edm",) if scaled else PREDICTIONS:
            excess = np.asarray(found[name])
            yield replace(way, prediction=name), np.where(np.isfinite(excess), excess, np.nan)

    def other_ways(self) -> Iterator[Reading]:
        """To feed the network, with one thing changed."""
        old, has_steps = self.declared, hasattr(self.sde.schedule, "label")
        for name in CONDITIONINGS if self.known else ():
            if name != old.conditioning and (name != "step" or has_steps):
                yield replace(old, conditioning=name)
        for low, high in RANGES:
            if abs(low - old.pixels.low) + abs(high - old.pixels.high) > NEAR * (high - low):
                yield replace(old, pixels=replace(old.pixels, low=low, high=high))

    def differences(self, reading: Reading) -> Iterator[str]:
        """What a reading changes in the declared one."""
        old = self.declared
        if reading.prediction != old.prediction:
            yield f"declared {old.prediction}; behaves like {reading.prediction}"
        if reading.conditioning != old.conditioning:
            ends, declared = map(self._ends, (reading.conditioning, old.conditioning))
            yield (
                f"labels look like {ends} (conditioning={reading.conditioning!r}); declared are"
                f" {declared}"
            )
        if reading.pixels != old.pixels:
            low, high = (f"{end:g}" for end in (reading.pixels.low, reading.pixels.high))
            was = " to ".join(f"{end:.3g}" for end in (old.pixels.low, old.pixels.high))
            yield f"looks trained on [{low}, {high}]; declared are pixels from {was}"

    def _ends(self, conditioning: str | Conditioning) -> str:
        """The least and the greatest label, in words."""
        labels = self.labels(conditioning)
        return f"{float(jnp.min(labels)):.4g}..{float(jnp.max(labels)):.4g}"

    def regions(self, excess: Excess) -> Iterator[str]:
        """Where the network is worse than the Gaussian."""
        worse, middles = _worse(excess), (self.log_snr[1:] + self.log_snr[:-1]) / 2
        if worse.all():
            yield (
                "at no log-SNR does it predict the noise as well as a Gaussian of the images: it"
                " is untrained, or declared wrongly in more ways than one"
            )
            return
        (turns,) = np.diff(worse, prepend=False, append=False).nonzero()
        for first, stop in turns.reshape(-1, 2).tolist():
            mean = np.maximum(excess[first:stop].mean(axis=1), 0)
            cost = mean.sum() / 2 * (self.log_snr[1] - self.log_snr[0]) / math.log(2)
            words = f"worse than a Gaussian of the images, which costs {cost:.2g} bits/dim"
            if stop == NODES:
                start = float(self.sde.time_of_log_snr(jnp.asarray(middles[first - 1])))
                yield (
                    f"above log-SNR {middles[first - 1]:.1f} {words}: if it was not trained"
                    f" there, start at eps={start:.3g}"
                )
            elif first == 0:
                yield f"below log-SNR {middles[stop - 1]:.1f} {words}: was it trained there?"
            else:
                low, high = middles[first - 1], middles[stop - 1]
                yield f"from log-SNR {low:.1f} to {high:.1f} {words}: was it trained there?"


def _record_of(noise: NoiseFn, sde: SDE) -> tuple[NetworkNoise, bool]:
    """A network with its declaration, and whether it is known apart from its noise prediction."""
    if isinstance(noise, Conditioned):
        inner, known = _record_of(noise.noise, sde)
        return replace(inner, network=Conditioned(inner.network, noise.condition)), known
    if isinstance(noise, RangedNoise):
        return noise.noise, True
    if isinstance(noise, NetworkNoise):
        return noise, True
    return noise_fn(noise, sde, conditioning="time"), False


@compiled
def _excesses(
    network: NoiseFn,
    measured: Float[Array, "b h w c"],
    others: Float[Array, "n h w c"],
    nodes: tuple[Float[Array, " k"], ...],
    sigma_data: Scalar,
) -> dict[str, Float[Array, "k b"]]:
    """Of each prediction: how much the error of the noise exceeds the Gaussian's at each node.

    ``nodes`` are alpha, sigma, the label, and what the network's input is divided by.
    """
    mean = jnp.mean(others, axis=(0, 1, 2))
    keys = example_keys(jax.random.key(0), len(measured))
    fourier = partial(jnp.fft.fft2, axes=(1, 2), norm="ortho")
    power = jnp.mean(jnp.square(jnp.abs(fourier(others - mean))), axis=0)

    def at(node: tuple[Array, ...]) -> dict[str, PerExample]:
        number, alpha, sigma, label, scale = node
        z = normal(fold_in(keys, number), measured)
        x = alpha * measured + sigma * z
        of_gaussian = fourier(x - alpha * mean) / (jnp.square(alpha) * power + jnp.square(sigma))
        of_gaussian = sigma * jnp.fft.ifft2(of_gaussian, axes=(1, 2), norm="ortho").real
        output = network(x / scale, jnp.full(len(x), label))[..., : x.shape[-1]]
        found = {name: read(output, x, alpha, sigma) for name, read in PREDICTIONS.items()}
        found["edm"] = (sigma * x / scale - sigma_data * alpha * output) / scale
        least = mean_square(of_gaussian - z)
        return {name: mean_square(eps - z) - least for name, eps in found.items()}

    return jax.lax.map(at, (jnp.arange(len(nodes[0])), *nodes))


def _best(declared: Reading, found: dict[Reading, Excess]) -> Reading:
    """The reading with the fewest changes among those of which no other is certainly better."""
    least = min(found.values(), key=_mean)

    def behind(excess: Excess) -> bool:
        gaps = (excess - least).mean(axis=0)
        return not gaps.mean() - CERTAIN * _stderr(gaps) < BETTER

    level = [reading for reading, excess in found.items() if not behind(excess)]
    return min(level or [declared], key=lambda r: (r.changes(declared), _mean(found[r])))


def _worse(excess: Excess) -> Bool[np.ndarray, " k"]:
    """Where it is certainly larger than is tolerated, or no number."""
    return ~(excess.mean(axis=1) - CERTAIN * _stderr(excess) < WORSE)


def _good(excess: Excess) -> bool:
    return bool(_worse(excess).mean() <= FEW)


def _mean(excess: Excess) -> float:
    mean = float(excess.mean())
    return math.inf if math.isnan(mean) else mean


def _stderr(values: Float[np.ndarray, "*k b"]) -> Float[np.ndarray, "*k"] | np.floating:
    return values.std(axis=-1, ddof=1) / math.sqrt(values.shape[-1])
