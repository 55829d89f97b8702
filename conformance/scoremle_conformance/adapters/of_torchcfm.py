"""torchcfm: its ``torch_wrapper`` under torchdyn's ``NeuralODE``, as in its tutorials.

It computes no likelihood. The trace is one of the two of torchdyn's ``CNF``, beside the state.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchcfm.utils import torch_wrapper
from torchdyn.core import NeuralODE
from torchdyn.models.cnf import autograd_trace, hutch_trace

from scoremle_conformance.adapter import Adapter, Answer, Ask
from scoremle_conformance.adapters.by_torch import log_normal
from scoremle_conformance.fields import Field

__all__ = ["TorchCFM"]


class TorchCFM(Adapter):
    name, package, framework = "torchcfm", "torchcfm", "torch"
    can = frozenset({"exact", "probes", "noise", "classes", "steps", "gradient"})
    settings: ClassVar = {
        "example": "float32, NeuralODE by dopri5, atol = rtol = 1e-4, as in its tutorials",
        "best": "float32, NeuralODE by dopri5, atol = rtol = 1e-6",
    }
    adaptive, order = True, 4.0

    def _log_prob(self, field: Field, x: Tensor, ask: Ask) -> Tensor:
        torch.manual_seed(ask.seed)
        labels = None if ask.labels is None else torch.from_numpy(ask.labels)
        probe = torch.randint(0, 2, x.shape) * 2.0 - 1
        # From noise at t = 0 to data at t = 1.
        net = torch_wrapper(lambda xt: -field(xt[:, :-1], 1 - xt[:, -1], labels))

        def rates(t: Tensor, state: Tensor, args: Any = None) -> Tensor:
            with torch.enable_grad():
                now = state[:, 1:] if state.requires_grad else state[:, 1:].requires_grad_()
                u = net(t, now)
                trace = autograd_trace(u, now) if ask.exact else hutch_trace(u, now, probe)
            return torch.cat([trace[:, None], u], 1)

        near, solver = 1e-6 if self.setting == "best" else 1e-4, "rk4" if ask.steps else "dopri5"
        ode = NeuralODE(rates, solver, atol=near, rtol=near)
        times = torch.linspace(1 - field.path.start, 1 - field.path.stop, (ask.steps or 1) + 1)
        end = ode.trajectory(torch.cat([torch.zeros_like(x[:, :1]), x], 1), times)[-1]
        return log_normal(end[:, 1:], field.path.prior_std) + end[:, 0]

    @torch.no_grad()
    def log_prob(self, field: Field, x: np.ndarray, ask: Ask) -> Answer:
        return Answer(self._log_prob(field, torch.tensor(x).float(), ask).numpy())

    def gradient(self, field: Field, x: np.ndarray) -> np.ndarray:
        start = torch.tensor(x).float().requires_grad_()
        return torch.autograd.grad(self._log_prob(field, start, Ask()).sum(), start)[0].numpy()
