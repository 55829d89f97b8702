"""zuko: a normalizing flow with a free-form Jacobian, as its ``flows.CNF`` is."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from zuko.distributions import DiagNormal, NormalizingFlow
from zuko.transforms import FreeFormJacobianTransform

from scoremle_conformance.adapter import Adapter, Answer, Ask
from scoremle_conformance.fields import Field

__all__ = ["Zuko"]


class Zuko(Adapter):
    name, package, framework = "zuko", "zuko", "torch"
    paths = ("straight", "vp", "ve")
    can = frozenset({"exact", "probes", "noise", "classes", "gradient"})
    settings: ClassVar = {
        "default": "float32 and the defaults: Dormand-Prince, atol 1e-6, rtol 1e-5",
        "best": "float64, atol = rtol = 1e-8",
    }
    probe, adaptive = "gaussian", True

    def _log_prob(self, field: Field, x: Tensor, ask: Ask) -> Tensor:
        labels = None if ask.labels is None else torch.from_numpy(ask.labels)
        near = {"atol": 1e-8, "rtol": 1e-8} if self.setting == "best" else {}
        torch.manual_seed(ask.seed)
        start, stop = (x.new_tensor(t) for t in (field.path.start, field.path.stop))
        transform = FreeFormJacobianTransform(
            lambda t, now: field(now, t, labels), start, stop, exact=ask.exact, **near
        )
        base = DiagNormal(torch.zeros_like(x[0]), torch.full_like(x[0], field.path.prior_std))
        return NormalizingFlow(transform, base).log_prob(x)

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.tensor(x, dtype=torch.float64 if self.setting == "best" else torch.float32)

    def log_prob(self, field: Field, x: np.ndarray, ask: Ask) -> Answer:
        with torch.no_grad():
            return Answer(self._log_prob(field, self._tensor(x), ask).numpy())

    def gradient(self, field: Field, x: np.ndarray) -> np.ndarray:
        start = self._tensor(x).requires_grad_()
        (found,) = torch.autograd.grad(self._log_prob(field, start, Ask()).sum(), start)
        return found.numpy()
