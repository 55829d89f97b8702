"""Integer images of known probability.

    y = -1 + 2 (k + u) / levels,      k in {0, ..., levels - 1},  u in [0, 1)

The reals y have a Gaussian density with independent coordinates: that of data with the noise of
the path's start, whose size is sigma / alpha in the scale of the data. So the probability of an
image is a product of differences of normal distribution functions. An estimate from K draws of
u ~ q has, with the volume of a bin, the expectation

    E log (1/K) sum_k p(y_k) (2 / levels)^D / q(u_k)  <=  log P(image)

in closed form for K = 1, and by plain simulation of the closed densities beyond.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr, logsumexp

from scoremle_conformance.paths import Path
from scoremle_conformance.subjects import Subject, log_normal

__all__ = ["DEQUANTIZERS", "Images"]

# Of the dequantization noise: its variance, and E log q, for each dimension.
DEQUANTIZERS = {
    "uniform": (1 / 12, 0.0),
    "beta": (1 / 20, math.log(6) - 5 / 3),  # q(u) = 6 u (1 - u)
}
DRAWS, OF_VARIANCE = 4000, 400


@dataclass(frozen=True, eq=False)
class Images:
    """Images of ``shape`` and ``levels``, whose reals fill [-1, 1].

    Args:
        shape: (height, width, channels).
        levels: grey values a channel.
    """

    shape: tuple[int, int, int]
    levels: int

    @property
    def dims(self) -> int:
        return math.prod(self.shape)

    @property
    def log_volume(self) -> float:
        """log of the volume of a bin, in nats."""
        return self.dims * math.log(2 / self.levels)

    @property
    def subject(self) -> Subject:
        d = np.arange(self.dims)
        mean, variance = 0.3 * np.sin(1.0 + d), np.square(0.3 + 0.1 * np.cos(d))
        return Subject(f"{self.levels} levels", np.ones(1), mean[None], variance[None])

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """``n`` images, integers [n h w c]."""
        subject = self.subject
        y = subject.means + np.sqrt(subject.variances) * rng.normal(size=(n, self.dims))
        k = np.floor((y + 1) / 2 * self.levels).astype(int)
        return np.clip(k, 0, self.levels - 1).reshape(n, *self.shape)

    def _moments(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        at, subject = path.scales(np.float64(path.start)), self.subject
        return subject.means[0], subject.variances[0] + (at.sigma / at.alpha) ** 2

    def log_probability(self, images: np.ndarray, path: Path) -> np.ndarray:
        """log P of each image in nats: the mass of its bins."""
        mean, variance = self._moments(path)
        low = -1 + 2 * images.reshape(len(images), -1) / self.levels
        ends = [(edge - mean) / np.sqrt(variance) for edge in (low, low + 2 / self.levels)]
        flip = np.where(ends[0] > 0, -1, 1)  # the short tail
        near, far = (log_ndtr(flip * end) for end in ends)
        high, less = np.maximum(near, far), np.minimum(near, far)
        return (high + np.log1p(-np.exp(less - high))).sum(-1)

    def expected(
        self, images: np.ndarray, path: Path, *, draws: int, dequantizer: str
    ) -> np.ndarray:
        """Expectation of the estimate of log P from ``draws`` draws of u, in nats."""
        mean, variance = self._moments(path)
        k = images.reshape(len(images), -1)
        spread, log_q = DEQUANTIZERS[dequantizer]
        if draws == 1:
            middle = -1 + 2 * (k + 0.5) / self.levels
            noise = (2 / self.levels) ** 2 * spread / variance
            entropy = -self.dims * log_q
            return log_normal(middle, mean, variance) - noise.sum() / 2 + self.log_volume + entropy
        return self._simulated(images, path, DRAWS, draws, dequantizer).mean(1)

    def variance(
        self, images: np.ndarray, path: Path, *, draws: int, dequantizer: str
    ) -> np.ndarray:
        """Variance of that estimate over u, by simulation."""
        return self._simulated(images, path, OF_VARIANCE, draws, dequantizer).var(1)

    def _simulated(
        self, images: np.ndarray, path: Path, count: int, draws: int, dequantizer: str
    ) -> np.ndarray:
        """``count`` such estimates of each image, by its closed density."""
        mean, variance = self._moments(path)
        k, rng = images.reshape(len(images), -1), np.random.default_rng(0)
        shape = (len(k), count, draws, self.dims)
        u = rng.uniform(size=shape) if dequantizer == "uniform" else rng.beta(2, 2, size=shape)
        logs = log_normal(-1 + 2 * (k[:, None, None] + u) / self.levels, mean, variance)
        if dequantizer == "beta":
            logs = logs - np.log(6 * u * (1 - u)).sum(-1)
        return logsumexp(logs, axis=2) - math.log(draws) + self.log_volume
