"""torchebm: ``FlowSampler`` from data to noise, and its ``prior_logp``.

It computes no likelihood: the model that it is given has the trace as one more dimension.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torchebm.integrators import Dopri5Integrator, RK4Integrator
from torchebm.samplers import FlowSampler

from scoremle_conformance.adapter import Adapter, Answer, Ask
from scoremle_conformance.fields import Field

__all__ = ["TorchEBM"]


class Traced(nn.Module):
    """The velocity and its trace at [x, trace], from noise at t = 0 to data at t = 1."""

    def __init__(self, field: Field, labels: Tensor | None, probe: Tensor | None) -> None:
        super().__init__()
        self.probe = probe
        self.velocity = lambda x, t: -field(x, 1 - t, labels)

    def forward(self, state: Tensor, t: Tensor) -> Tensor:
        x = state[:, :-1]
        u, pull = torch.func.vjp(lambda now: self.velocity(now, t), x)[:2]
        probes = torch.eye(x.shape[1])[:, None] if self.probe is None else self.probe[None]
        trace = sum((pull(v.expand_as(u))[0] * v).sum(1, keepdim=True) for v in probes)
        return torch.cat([u, trace], 1)


class TorchEBM(Adapter):
    name, package, framework = "torchebm", "torchebm", "torch"
    can = frozenset({"exact", "probes", "classes", "steps"})
    settings: ClassVar = {
        "default": "float32, FlowSampler(reverse=True) and its default integrator, dopri5",
        "best": "float32, Dopri5Integrator(atol=1e-6, rtol=1e-6) of the velocity at 1 - t",
    }
    adaptive, order = True, 4.0

    def log_prob(self, field: Field, x: np.ndarray, ask: Ask) -> Answer:
        torch.manual_seed(ask.seed)
        labels = None if ask.labels is None else torch.from_numpy(ask.labels)
        start = torch.tensor(x, dtype=torch.float32)
        probe = None if ask.exact else torch.randint(0, 2, x.shape) * 2.0 - 1
        model, state = Traced(field, labels, probe), torch.cat([start, 0 * start[:, :1]], 1)
        fixed = RK4Integrator() if ask.steps else None
        sampler = FlowSampler(model, reverse=True, integrator=fixed)
        if self.setting == "default":
            end = sampler.sample(x=state, n_steps=ask.steps)
        else:
            n, solver = ask.steps or 50, fixed or Dopri5Integrator(atol=1e-6, rtol=1e-6)
            end = solver.integrate(
                {"x": state}, 1 / n, n, drift=lambda y, s: -model(y, (1 - s).expand(len(y)))
            )["x"]
        return Answer((sampler.prior_logp(end[:, :-1]) + end[:, -1]).numpy())
