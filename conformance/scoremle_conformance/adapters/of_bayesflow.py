"""BayesFlow: ``ContinuousApproximator.log_prob`` of its ``FlowMatching``.

The network is the exact one of what the adapter standardizes, whose noise becomes N(0, I).
"""

import os
from typing import Any, ClassVar

import numpy as np
import torch

from scoremle_conformance.adapter import Adapter, Answer, Ask
from scoremle_conformance.fields import Field

os.environ.setdefault("KERAS_BACKEND", "torch")  # JAX compiles for each question
graphs = torch.is_grad_enabled()
import bayesflow as bf  # noqa: E402  (it reads the variable when it is imported)

torch.set_grad_enabled(graphs)  # which BayesFlow turns off for the whole process

__all__ = ["BayesFlow"]

MEAN, STD = 1.0, 2.0


class Exact(bf.networks.FlowMatching):
    """A network whose velocity is the field's, from noise at t = 0 to data at t = 1."""

    def __init__(self, field: Field, **how: Any) -> None:
        noise = bf.distributions.DiagonalNormal(-MEAN / STD, 1 / STD)
        super().__init__(base_distribution=noise, integrate_kwargs=how)
        self.field = field

    def velocity(self, xz: Any, time: Any, conditions: Any = None, **unused: Any) -> Any:
        labels = None if conditions is None else conditions[:, 0]
        return -self.field(MEAN + STD * xz, 1 - time, labels) / STD


class BayesFlow(Adapter):
    name, package, framework = "bayesflow", "bayesflow", os.environ["KERAS_BACKEND"]
    can = frozenset({"exact", "classes", "steps"})
    settings: ClassVar = {
        "default": "float32 and the defaults: tsit5, adaptive, atol 1e-6, rtol 1e-4",
        "best": "float32, rk45, adaptive, atol = rtol = 1e-6",
    }
    adaptive, order = True, 5.0

    @torch.no_grad()
    def log_prob(self, field: Field, x: np.ndarray, ask: Ask) -> Answer:
        best = {"method": "rk45", "atol": 1e-6, "rtol": 1e-6} if self.setting == "best" else {}
        network = Exact(field, **best, steps=ask.steps or "adaptive")
        data, shape = {"inference_variables": np.asarray(x, np.float32)}, None
        if ask.labels is not None:
            data["inference_conditions"], shape = ask.labels[:, None].astype(np.float32), (None, 1)
        network.build((None, field.dims), shape)
        adapter = bf.Adapter().standardize("inference_variables", mean=MEAN, std=STD)
        own = bf.ContinuousApproximator(
            inference_network=network, adapter=adapter, standardize=None
        )
        return Answer(own.log_prob(data))
