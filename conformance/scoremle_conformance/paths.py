"""Paths from data to noise: x_t = alpha x_0 + sigma z, with z standard normal.

    vp         alpha^2 = e^-B, B the integral of beta = 0.1 .. 20, and alpha^2 + sigma^2 = 1
    ve         alpha = 1, sigma geometric from 0.01 to 50
    straight   alpha = 1 - t, sigma = t

(Song et al., arXiv 2011.13456; Lipman et al., arXiv 2210.02747.) Time runs from ``start``, where
the density is computed, to ``stop``, where the model's prior is N(0, prior_std^2 I). On the
straight path both ends are open: there is no noise at t = 0 and no signal at t = 1. Where a
division by either would fail, the path is ``cut``.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from scoremle_conformance.arrays import namespace

__all__ = ["PATHS", "Path", "Scales", "cut"]

BETA_MIN, BETA_MAX = 0.1, 20.0
SIGMA_MIN, SIGMA_MAX = 0.01, 50.0


class Scales(NamedTuple):
    """alpha and sigma at a time, and their derivatives."""

    alpha: Any
    sigma: Any
    d_alpha: Any
    d_sigma: Any


@dataclass(frozen=True)
class Path:
    """The noise at each time.

    Args:
        name: "vp", "ve" or "straight".
        start: the time at which a density is computed.
        stop: the time of the prior.
        prior_std: of the prior N(0, prior_std^2 I) there.
    """

    name: str
    start: float
    stop: float
    prior_std: float

    def scales(self, t: Any) -> Scales:
        """At ``t``, a number or an array of any framework, elementwise."""
        return SCALES[self.name](t)

    def __str__(self) -> str:
        return f"{self.name} from t = {self.start:g}"


def _vp(t: Any) -> Scales:
    xp = namespace(t)
    beta = BETA_MIN + (BETA_MAX - BETA_MIN) * t
    integral = BETA_MIN * t + (BETA_MAX - BETA_MIN) * t * t / 2
    alpha, sigma = xp.exp(-integral / 2), xp.sqrt(-xp.expm1(-integral))
    return Scales(alpha, sigma, -beta / 2 * alpha, beta / 2 * alpha * alpha / sigma)


def _ve(t: Any) -> Scales:
    rate = math.log(SIGMA_MAX / SIGMA_MIN)
    sigma = SIGMA_MIN * namespace(t).exp(rate * t)
    return Scales(1 + 0 * t, sigma, 0 * t, rate * sigma)


def _straight(t: Any) -> Scales:
    return Scales(1 - t, t, 0 * t - 1, 0 * t + 1)


SCALES = {"vp": _vp, "ve": _ve, "straight": _straight}
PATHS = {
    "vp": Path("vp", 1e-3, 1.0, 1.0),
    "ve": Path("ve", 1e-3, 1.0, SIGMA_MAX),
    "straight": Path("straight", 0.0, 1.0, 1.0),
}


def cut(path: Path) -> Path:
    """The path without its open ends: some noise at the start, some signal at the stop."""
    if path.name != "straight":
        return path
    return dataclasses.replace(path, start=0.01, stop=0.999, prior_std=0.999)
