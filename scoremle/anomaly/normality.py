"""One number of how unusual features are, by what was fitted to normal ones.

*Ranks*, of one feature, less its linear regression on the others: how far its rank among
the normal ones is from the middle, |rank - 1/2|, so that both ends are unusual. Beyond all normal
ones, it grows with the distance in units of their standard deviation.

*A density*, of several: minus the logarithm of a mixture of Gaussians of the standardised
features. A single Gaussian has the covariance of Ledoit and Wolf, which is well defined in any
number of dimensions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from scoremle.anomaly.conformal import places
from scoremle.errors import UserError, needing
from scoremle.numerics import varies

FeatureTable = Float[np.ndarray, "n k"]
Unusual = Float[np.ndarray, " n"]

# Normal examples for each dimension of each Gaussian of a mixture.
EXAMPLES = 10
# The change of a constant feature that is unusual, as a share of it: far beyond rounding.
LEAST_CHANGE = 1e-3


@dataclass(frozen=True)
class Ranks:
    """Ranks of the first feature. ``slopes`` are those of the other features, and a constant."""

    slopes: tuple[float, ...]
    residuals: tuple[float, ...]

    def __post_init__(self) -> None:
        residuals = np.asarray(self.residuals, float)
        if not self.slopes or not len(residuals) or np.any(np.diff(residuals) < 0):
            raise UserError("ranks need a slope or more, and residuals in ascending order")

    @classmethod
    def fit(cls, features: FeatureTable) -> "Ranks":
        design = np.column_stack([features[:, 1:], np.ones(len(features))])
        slopes = np.linalg.lstsq(design, features[:, 0], rcond=None)[0]
        return cls(tuple(slopes.tolist()), tuple(sorted(_residuals(features, slopes).tolist())))

    def __call__(self, features: FeatureTable) -> Unusual:
        values, normal = _residuals(features, np.asarray(self.slopes)), np.asarray(self.residuals)
        rank = np.mean(places(normal, values), axis=0)
        beyond = np.maximum(normal[0] - values, 0) + np.maximum(values - normal[-1], 0)
        return np.abs(rank / len(normal) - 0.5) + beyond / (np.std(normal) or 1.0)


def _residuals(features: FeatureTable, slopes: np.ndarray) -> Unusual:
    return features[:, 0] - _products(features[:, 1:], slopes[:-1, None])[:, 0] - slopes[-1]


def _products(
    rows: Float[np.ndarray, "n k"], matrix: Float[np.ndarray, "k m"]
) -> Float[np.ndarray, "n m"]:
    """Rows times a matrix, one by one: BLAS rounds a row by its place among all of them."""
    return np.matmul(rows[:, None], matrix)[:, 0]


@dataclass(frozen=True)
class Density:
    """A mixture of Gaussians. ``whitening`` are square roots of their inverse covariances."""

    shift: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    means: tuple[tuple[float, ...], ...]
    whitening: tuple[tuple[tuple[float, ...], ...], ...]

    def __post_init__(self) -> None:
        d, k = len(self.shift), len(self.weights)
        wanted = {"scale": (d,), "weights": (k,), "means": (k, d), "whitening": (k, d, d)}
        positive = min(*self.scale, *self.weights, 1.0) > 0
        if not (d and k and positive) or any(
            np.shape(getattr(self, name)) != shape for name, shape in wanted.items()
        ):
            raise UserError("a mixture needs as many numbers for each Gaussian and dimension")

    @classmethod
    def fit(cls, features: FeatureTable, most: int = 5) -> "Density":
        """Fits as many Gaussians as the Bayesian information criterion takes, ``most`` at most."""
        shift, scale = features.mean(axis=0), features.std(axis=0)
        constant = LEAST_CHANGE * np.where(shift, np.abs(shift), 1.0)  # in any unit
        scale = np.where(varies(features), scale, constant)
        gaussians = _mixture((features - shift) / scale, most)
        return cls(*map(as_tuple, (shift, scale, *gaussians)))

    def __call__(self, features: FeatureTable) -> Unusual:
        z = (features - np.asarray(self.shift)) / np.asarray(self.scale)
        logs = []
        for weight, mean, roots in zip(self.weights, self.means, self.whitening, strict=True):
            root = np.asarray(roots)
            log_det = np.linalg.slogdet(root)[1]
            white = _products(z - np.asarray(mean), root)
            logs.append(np.log(weight) + log_det - np.square(white).sum(axis=1) / 2)
        return -np.logaddexp.reduce(logs, axis=0)


Normality = Ranks | Density


def _mixture(z: FeatureTable, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and whitening matrices of the Gaussians."""
    with needing("a detector", "anomaly"):
        from sklearn.covariance import ledoit_wolf
        from sklearn.mixture import GaussianMixture
    most = max(1, min(most, len(z) // (EXAMPLES * z.shape[1])))
    tried = [GaussianMixture(k, random_state=0, reg_covar=1e-3) for k in range(1, most + 1)]
    best: Any = min(tried, key=lambda mixture: mixture.fit(z).bic(z)) if most > 1 else tried[0]
    if best.n_components > 1:
        return best.weights_, best.means_, best.precisions_cholesky_
    covariance = ledoit_wolf(z)[0] + 1e-6 * np.eye(z.shape[1])
    root = np.linalg.cholesky(np.linalg.inv(covariance))
    return np.ones(1), z.mean(axis=0)[None], root[None]


def as_tuple(array: Any) -> Any:
    """An array as nested tuples."""
    return tuple(map(as_tuple, array)) if np.ndim(array) else float(array)
