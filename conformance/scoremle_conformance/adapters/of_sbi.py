"""sbi: ``VectorFieldPosterior.log_prob``, what ``build_posterior`` of FMPE and NPSE gives.

Its estimators are subclassed with the exact output, as a network of one's own would be. The
observation is empty, but for a class. A posterior has one observation, so that classes are
computed one after the other. The prior is so wide that nothing is outside.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from sbi.inference.posteriors import VectorFieldPosterior
from sbi.neural_nets.estimators.flowmatching_estimator import FlowMatchingEstimator
from sbi.neural_nets.estimators.score_estimator import VEScoreEstimator, VPScoreEstimator
from torch import Tensor, nn

from scoremle_conformance.adapter import Adapter, Answer, Ask
from scoremle_conformance.fields import Field
from scoremle_conformance.paths import BETA_MAX, BETA_MIN, SIGMA_MAX, SIGMA_MIN

__all__ = ["FMPE", "NPSE"]

ESTIMATORS: dict[str, tuple[type, dict]] = {
    "straight": (FlowMatchingEstimator, {}),
    "vp": (VPScoreEstimator, {"beta_min": BETA_MIN, "beta_max": BETA_MAX}),
    "ve": (VEScoreEstimator, {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX}),
}


def estimator(field: Field, label: int | None) -> Any:
    """The estimator of the path, whose output is the field."""
    kind, numbers = ESTIMATORS[field.path.name]

    def forward(self: Any, input: Tensor, condition: Tensor, time: Tensor) -> Tensor:
        rows = input.reshape(-1, input.shape[-1])
        labels = None if label is None else torch.full((len(rows),), label)
        return field(rows, time.reshape(-1)[0], labels).reshape(input.shape)

    unused = nn.Linear(1, 1).requires_grad_(False)  # gives the device
    sizes = {"input_shape": torch.Size([field.dims]), "condition_shape": torch.Size([1])}
    exact = type("Exact", (kind,), {"forward": forward})
    return exact(unused, **sizes, **numbers)


class FMPE(Adapter):
    """The posterior of FMPE, whose network is a velocity on the straight path."""

    name, package, framework = "sbi", "sbi", "torch"
    can = frozenset({"exact", "probes", "classes", "gradient"})
    settings: ClassVar = {
        "default": "FMPE: float32 and the defaults: atol 1e-6, rtol 1e-5",
        "best": "FMPE: float32, atol = rtol = 1e-6",
    }
    probe, adaptive = "gaussian", True

    def _posterior(self, field: Field, ask: Ask, label: int | None) -> VectorFieldPosterior:
        wide = torch.distributions.Independent(
            torch.distributions.Uniform(
                torch.full((field.dims,), -1e4), torch.full((field.dims,), 1e4)
            ),
            1,
        )
        near = {"atol": 1e-6, "rtol": 1e-6} if self.setting == "best" else {}
        return VectorFieldPosterior(
            estimator(field, label), wide, neural_ode_kwargs={"exact": ask.exact, **near}
        )

    def log_prob(self, field: Field, x: np.ndarray, ask: Ask) -> Answer:
        torch.manual_seed(ask.seed)
        theta = torch.tensor(x, dtype=torch.float32)
        found = np.empty(len(x))
        labels = np.zeros(len(x), int) if ask.labels is None else ask.labels
        for label in np.unique(labels):
            mine = labels == label
            posterior = self._posterior(field, ask, None if ask.labels is None else int(label))
            found[mine] = posterior.log_prob(theta[mine], x=torch.zeros(1, 1)).numpy()
        return Answer(found)

    def gradient(self, field: Field, x: np.ndarray) -> np.ndarray:
        theta = torch.tensor(x, dtype=torch.float32, requires_grad=True)
        posterior = self._posterior(field, Ask(), None)
        found = posterior.log_prob(theta, x=torch.zeros(1, 1), track_gradients=True)
        return torch.autograd.grad(found.sum(), theta)[0].numpy()


class NPSE(FMPE):
    """The posterior of NPSE, whose network is a score."""

    name = "sbi_npse"
    outputs, paths = ("score",), ("vp", "ve")
    settings: ClassVar = {
        "default": "NPSE: float32 and the defaults: atol 1e-6, rtol 1e-5",
        "best": "NPSE: float32, atol = rtol = 1e-6",
    }
