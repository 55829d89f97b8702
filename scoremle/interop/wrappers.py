"""A module round a module: a denoiser of azula as ``module(x, label)``.

And the times of azula's schedules at log-SNRs: such a denoiser takes these times.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from scoremle.core.sde import SDE
from scoremle.types import Times

# So many log-SNRs of a schedule have their times, each by so many halvings.
TIMES, HALVINGS = 4096, 60


class DenoiserMean(nn.Module):
    """The mean of a denoiser of azula, for x = alpha x_0 + sigma z of VP at its log-SNR."""

    def __init__(self, inside: Any) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.inside.schedule(t)
        scale = torch.hypot(alpha, sigma).reshape(-1, *[1] * (x.ndim - 1))
        return self.inside(scale * x, t).mean


@dataclass(frozen=True, eq=False)
class TimesOf:
    """The times of a schedule of azula at rising log-SNRs: straight between any two."""

    log_snr: Float[np.ndarray, " n"]
    t: Float[np.ndarray, " n"]

    def __call__(self, sde: SDE, t: Times) -> Times:
        return jnp.interp(sde.log_snr(t), jnp.asarray(self.log_snr), jnp.asarray(self.t))


def times_of(schedule: Callable[..., Any]) -> TimesOf:
    """The times, in float64, by bisection at load."""

    def log_snr(t: np.ndarray) -> np.ndarray:
        alpha, sigma = schedule(torch.from_numpy(t))
        return 2 * torch.log(alpha / sigma).numpy()

    greatest, least = log_snr(np.array([0.0, 1.0]))
    wanted = np.linspace(least, greatest, TIMES)
    t, late = np.zeros(TIMES), np.ones(TIMES)
    for _ in range(HALVINGS):
        middle = (t + late) / 2
        early = log_snr(middle) > wanted
        t, late = np.where(early, middle, t), np.where(early, late, middle)
    return TimesOf(wanted, t)
