"""Modules round a module: what others call a denoiser or a velocity, as ``module(x, label)``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Backwards", "Mean"]


class Backwards(nn.Module):
    """The negative of a velocity: that from the data to the noise, if it goes the other way."""

    def __init__(self, velocity: nn.Module) -> None:
        super().__init__()
        self.velocity = velocity

    def forward(self, x: Tensor, label: Tensor, *condition: Tensor) -> Tensor:
        return -self.velocity(x, label, *condition)


class Mean(nn.Module):
    """The mean of a denoiser of azula, for x = alpha x_0 + sigma z of VP at its log-SNR."""

    schedule: Callable[[Tensor], tuple[Tensor, Tensor]]

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.denoiser, self.schedule = denoiser, denoiser.schedule

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule(t)
        scale = torch.hypot(alpha, sigma).reshape(-1, *[1] * (x.ndim - 1))
        return self.denoiser(scale * x, t).mean
