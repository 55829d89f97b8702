"""flow_matching: ``ODESolver.compute_likelihood``, from data at t = 1 to noise at t = 0."""

from typing import Any, ClassVar

import numpy as np
import torch
from flow_matching.solver import ODESolver
from flow_matching.utils import ModelWrapper
from torch import Tensor

from scoremle_conformance.adapter import Adapter, Answer, Ask
from scoremle_conformance.adapters.of_torchdiffeq import log_normal
from scoremle_conformance.fields import Field

__all__ = ["FlowMatching"]


class Backwards(ModelWrapper):
    """Its time runs from noise to data."""

    def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
        return -self.model(x, 1 - t, extras.get("labels"))


class FlowMatching(Adapter):
    name, package, framework = "flow_matching", "flow_matching", "torch"
    can = frozenset({"exact", "probes", "classes", "steps", "gradient"})
    settings: ClassVar = {
        "example": "float32, midpoint, step_size 0.05, as in its example of a flow in the plane",
        "default": "float32 and the defaults: Euler from t = 1 to t = 0, here with step_size 0.05",
        "best": "float32, dopri5, rtol = atol = 1e-6",
    }
    solvers: ClassVar[dict[str, dict]] = {
        "example": {"method": "midpoint", "step_size": 0.05},
        "default": {"step_size": 0.05},
        "best": {"method": "dopri5", "step_size": None, "rtol": 1e-6, "atol": 1e-6},
    }
    order = 2.0

    def __init__(self, setting: str | None = None) -> None:
        super().__init__(setting)
        self.adaptive = self.setting == "best"

    def _likelihood(self, field: Field, x: Tensor, ask: Ask, **more: Any) -> Tensor:
        solver = self.solvers[self.setting]
        if ask.steps is not None:
            solver = {"method": "midpoint", "step_size": 1 / ask.steps}
        if ask.labels is not None:
            more["labels"] = torch.from_numpy(ask.labels)
        torch.manual_seed(ask.seed)
        _, found = ODESolver(velocity_model=Backwards(field)).compute_likelihood(
            x_1=x, log_p0=lambda z: log_normal(z, 1.0), exact_divergence=ask.exact,
            **solver, **more,
        )  # fmt: skip
        return found

    def log_prob(self, field: Field, x: np.ndarray, ask: Ask) -> Answer:
        found = self._likelihood(field, torch.tensor(x, dtype=torch.float32), ask)
        return Answer(found.detach().numpy())

    def gradient(self, field: Field, x: np.ndarray) -> np.ndarray:
        start = torch.tensor(x, dtype=torch.float32, requires_grad=True)
        found = self._likelihood(field, start, Ask(), enable_grad=True)
        return torch.autograd.grad(found.sum(), start)[0].numpy()
