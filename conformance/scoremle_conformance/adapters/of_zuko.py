"""zuko: a normalizing flow with a free-form Jacobian, as its ``flows.CNF`` is."""

from typing import ClassVar

import torch
from torch import Tensor
from zuko.distributions import DiagNormal, NormalizingFlow
from zuko.transforms import FreeFormJacobianTransform

from scoremle_conformance.adapter import Ask
from scoremle_conformance.adapters.by_torch import TorchAdapter
from scoremle_conformance.fields import Field

__all__ = ["Zuko"]


class Zuko(TorchAdapter):
    name, package = "zuko", "zuko"
    paths = ("straight", "vp", "ve")
    can = frozenset({"exact", "probes", "noise", "classes", "gradient"})
    settings: ClassVar = {
        "default": "float32 and the defaults: Dormand-Prince, atol 1e-6, rtol 1e-5",
        "best": "float64, atol = rtol = 1e-8",
    }
    probe, adaptive = "gaussian", True

    def of_tensor(self, field: Field, x: Tensor, labels: Tensor | None, ask: Ask) -> Tensor:
        near = {"atol": 1e-8, "rtol": 1e-8} if self.setting == "best" else {}
        start, stop = (x.new_tensor(t) for t in (field.path.start, field.path.stop))
        transform = FreeFormJacobianTransform(
            lambda t, now: field(now, t, labels), start, stop, exact=ask.exact, **near
        )
        base = DiagNormal(torch.zeros_like(x[0]), torch.full_like(x[0], field.path.prior_std))
        return NormalizingFlow(transform, base).log_prob(x)
