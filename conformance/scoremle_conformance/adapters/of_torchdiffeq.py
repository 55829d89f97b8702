"""torchdiffeq with a plain loop: state and trace in one ``odeint``, as in its examples/cnf.py."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchdiffeq import odeint

from scoremle_conformance.adapter import Ask
from scoremle_conformance.adapters.by_torch import TorchAdapter, log_normal
from scoremle_conformance.fields import Field
from scoremle_conformance.paths import Path

__all__ = ["TorchDiffEq", "TorchLoop", "flow"]

Velocity = Callable[[Tensor, Tensor], Tensor]


def flow(
    velocity: Velocity, x: Tensor, path: Path, probe: Tensor | None, **settings: Any
) -> Tensor:
    """log p of rows of ``x``, by the exact trace or a probe; differentiable if ``x`` is."""
    graph = x.requires_grad

    def rate(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            now = state[0] if graph else state[0].detach().requires_grad_()
            u = velocity(now, t)
            probes = torch.eye(x.shape[1]).to(x) if probe is None else probe[None]
            forms = [
                (torch.autograd.grad(u, now, v.expand_as(u), create_graph=graph,
                                     retain_graph=True)[0] * v).sum(-1)
                for v in probes
            ]  # fmt: skip
            trace = torch.stack(forms).sum(0)
        return (u, trace) if graph else (u.detach(), trace.detach())

    times = torch.tensor([path.start, path.stop]).to(x)
    z, trace = odeint(rate, (x, torch.zeros_like(x[:, 0])), times, **settings)
    return log_normal(z[-1], path.prior_std) + trace[-1]


class TorchLoop(TorchAdapter):
    """A library whose network becomes a velocity, and whose log p is ``flow``."""

    can = frozenset({"exact", "probes", "noise", "classes", "steps", "gradient"})
    settings: ClassVar = {
        "example": "float32, dopri5, rtol = atol = 1e-5, as in torchdiffeq's examples/cnf.py",
        "default": "float32 and odeint's defaults: dopri5, rtol 1e-7, atol 1e-9",
        "best": "float64, dopri5, rtol = atol = 1e-7",
    }
    solvers: ClassVar[dict[str, dict]] = {
        "example": {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5},
        "default": {},
        "best": {"method": "dopri5", "rtol": 1e-7, "atol": 1e-7},
    }
    adaptive, order = True, 4.0

    def velocity(self, field: Field, labels: Tensor | None) -> Velocity:
        """dx/dt of the probability flow, by the library's own objects."""
        raise NotImplementedError

    def of_tensor(self, field: Field, x: Tensor, labels: Tensor | None, ask: Ask) -> Tensor:
        probe = None if ask.exact else torch.randint(0, 2, x.shape).to(x) * 2 - 1
        solver = self.solvers[self.setting]
        if ask.steps is not None:
            size = (field.path.stop - field.path.start) / ask.steps
            solver = {"method": "rk4", "options": {"step_size": size}}
        return flow(self.velocity(field, labels), x, field.path, probe, **solver)


class TorchDiffEq(TorchLoop):
    name, package = "torchdiffeq", "torchdiffeq"
    paths = ("straight", "vp", "ve")

    def velocity(self, field: Field, labels: Tensor | None) -> Velocity:
        return lambda x, t: field(x, t, labels)
