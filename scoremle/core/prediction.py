"""From a network's raw output to the noise prediction, and between noise and score.

The noise prediction eps(x, t) is what everything here takes: it is of order one at every t. The
score is a view of it, score = -eps / sigma_t.

The published networks predict the noise and are conditioned on 999 t for VP, sub-VP and linear VE;
for the geometric VE they are conditioned on sigma_t, and their output is the score itself.
The embedding of 999 t oscillates several times between the nodes of a solver; one of the log-SNR
itself is smooth there, and every solver of the ODE is cheaper for it (docs/math.md).
"""

from collections.abc import Callable
from typing import Literal

from scoremle.core.sde import SDE, VE
from scoremle.numerics import expand
from scoremle.types import Data, NoiseFn, ScoreFn, Times

__all__ = ["Conditioning", "data_of", "noise_fn", "noise_of", "score_of"]

LABEL_SCALE = 999.0

Conditioning = Literal["time", "log_snr"]


def score_of(noise: NoiseFn, sde: SDE) -> ScoreFn:
    """The score that belongs to a noise prediction."""
    return lambda x, t: -noise(x, t) / expand(sde.sigma(t), x)


def noise_of(score: ScoreFn, sde: SDE) -> NoiseFn:
    """The noise prediction that belongs to a score."""
    return lambda x, t: -score(x, t) * expand(sde.sigma(t), x)


def data_of(noise: NoiseFn, sde: SDE) -> Callable[[Data, Times], Data]:
    """The estimate of the data, E[x_0 | x_t], that belongs to a noise prediction (Tweedie)."""
    return lambda x, t: (x - expand(sde.sigma(t), x) * noise(x, t)) / expand(sde.alpha(t), x)


def noise_fn(
    apply: Callable[[Data, Times], Data], sde: SDE, conditioning: Conditioning = "time"
) -> NoiseFn:
    """The noise prediction of a network ``apply(x, labels)``.

    ``labels`` are the published ones, or the log-SNR of t; then the output is the noise for every
    SDE.
    """
    if conditioning == "log_snr":
        return lambda x, t: apply(x, sde.log_snr(t))
    if isinstance(sde, VE):
        return noise_of(lambda x, t: apply(x, sde.sigma(t)), sde)
    return lambda x, t: apply(x, LABEL_SCALE * t)
