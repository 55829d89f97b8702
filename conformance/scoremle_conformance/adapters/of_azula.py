"""azula: its ``Denoiser`` and its schedules, with a loop, since it computes no likelihood.

dx/dt = alpha' x_0 + sigma' (x - alpha x_0) / sigma,      x_0 = denoiser(x, t).mean
"""

import torch
from azula import denoise, noise
from torch import Tensor

from scoremle_conformance.adapters.of_torchdiffeq import TorchLoop, Velocity
from scoremle_conformance.fields import Field
from scoremle_conformance.paths import SIGMA_MAX, SIGMA_MIN, Path

__all__ = ["Azula"]


class PathSchedule(noise.Schedule):
    """A schedule that azula has in other numbers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        at = self.path.scales(t)
        return at.alpha, at.sigma


class ExactDenoiser(denoise.Denoiser):
    """The exact mean of the data, as a user's network would give it."""

    def __init__(self, field: Field, schedule: noise.Schedule, labels: Tensor | None) -> None:
        super().__init__()
        self.field, self.schedule, self.labels = field, schedule, labels

    def forward(self, x_t: Tensor, t: Tensor) -> denoise.DiracPosterior:
        return denoise.DiracPosterior(self.field(x_t, t, self.labels))


class Azula(TorchLoop):
    name, package = "azula", "azula"
    outputs, paths = ("x_0",), ("ve", "straight", "vp")

    def velocity(self, field: Field, labels: Tensor | None) -> Velocity:
        schedules = {
            "ve": lambda: noise.VESchedule(SIGMA_MIN, SIGMA_MAX),
            "straight": lambda: noise.RectifiedSchedule(0.0, 0.0),
            "vp": lambda: PathSchedule(field.path),
        }
        denoiser = ExactDenoiser(field, schedules[field.path.name](), labels)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            scales, rates = torch.func.jvp(denoiser.schedule, (t,), (torch.ones_like(t),))[:2]
            mean = denoiser(x, t).mean
            return rates[0] * mean + rates[1] * (x - scales[0] * mean) / scales[1]

        return velocity
