"""flow_matching: ``ODESolver.compute_likelihood``, from data at t = 1 to noise at t = 0."""

from typing import Any, ClassVar

from flow_matching.solver import ODESolver
from flow_matching.utils import ModelWrapper
from torch import Tensor

from scoremle_conformance.adapter import Ask
from scoremle_conformance.adapters.by_torch import TorchAdapter, log_normal
from scoremle_conformance.fields import Field

__all__ = ["FlowMatching"]


class Backwards(ModelWrapper):
    """Its time runs from noise to data."""

    def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
        return -self.model(x, 1 - t, extras.get("labels"))


class FlowMatching(TorchAdapter):
    name, package = "flow_matching", "flow_matching"
    double = frozenset()
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

    def of_tensor(self, field: Field, x: Tensor, labels: Tensor | None, ask: Ask) -> Tensor:
        solver = self.solvers[self.setting]
        if ask.steps is not None:
            solver = {"method": "midpoint", "step_size": 1 / ask.steps}
        _, found = ODESolver(velocity_model=Backwards(field)).compute_likelihood(
            x_1=x, log_p0=lambda z: log_normal(z, 1.0), exact_divergence=ask.exact,
            enable_grad=x.requires_grad, labels=labels, **solver,
        )  # fmt: skip
        return found
