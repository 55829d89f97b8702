"""score_models: ``ScoreModel.log_likelihood``, a fixed number of steps with new probes at each.

Its network over sigma is the score: the network is -eps. It has no default number of steps.
"""

from typing import ClassVar

import numpy as np
import torch
from score_models import ScoreModel
from torch import Tensor, nn

from scoremle_conformance.adapter import Adapter, Answer, Ask
from scoremle_conformance.fields import Field
from scoremle_conformance.paths import BETA_MAX, BETA_MIN, SIGMA_MAX, SIGMA_MIN

__all__ = ["ScoreModels"]

SDES = {
    "vp": {"sde": "vp", "beta_min": BETA_MIN, "beta_max": BETA_MAX},
    "ve": {"sde": "ve", "sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX},
}


class Network(nn.Module):
    """The exact network, with the arguments in its order."""

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return -self.field(x, t)


class ScoreModels(Adapter):
    name, package, framework = "score_models", "score-models", "torch"
    outputs, paths = ("eps",), ("vp", "ve")
    can = frozenset({"probes", "several probes"})
    settings: ClassVar = {
        "default": "float32, Euler, here with ode_steps=300",
        "best": "float32, method='Heun', ode_steps=1000",
    }
    fresh = True

    def log_prob(self, field: Field, x: np.ndarray, ask: Ask) -> Answer:
        model = ScoreModel(Network(field), device="cpu", **SDES[field.path.name])
        torch.manual_seed(ask.seed)
        method, steps = ("Heun", 1000) if self.setting == "best" else ("Euler", 300)
        found = model.log_likelihood(
            torch.tensor(x, dtype=torch.float32), ode_steps=steps, t0=field.path.start,
            t1=field.path.stop, method=method, n_cotangent_vectors=ask.probes,
        )  # fmt: skip
        return Answer(found.numpy())
