"""Base of the adapters of PyTorch libraries: arrays to tensors, log p and its gradient."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from scoremle_conformance.adapter import Adapter, Answer, Ask
from scoremle_conformance.fields import Field

__all__ = ["TorchAdapter", "log_normal"]


def log_normal(z: Tensor, std: float) -> Tensor:
    """log N(z; 0, std^2 I) of each row."""
    return torch.distributions.Normal(0.0, std).log_prob(z).sum(-1)


class TorchAdapter(Adapter):
    """A library whose log p is ``of_tensor``."""

    framework = "torch"
    double: ClassVar = frozenset({"best"})  # its settings in float64

    def of_tensor(self, field: Field, x: Tensor, labels: Tensor | None, ask: Ask) -> Tensor:
        """log p of the rows of ``x``; differentiable if ``x`` is."""
        raise NotImplementedError

    def _tensor(self, x: np.ndarray) -> Tensor:
        dtype = torch.float64 if self.setting in self.double else torch.float32
        return torch.tensor(x, dtype=dtype)

    def _asked(self, field: Field, x: Tensor, ask: Ask) -> Tensor:
        labels = None if ask.labels is None else torch.from_numpy(ask.labels)
        torch.manual_seed(ask.seed)
        return self.of_tensor(field, x, labels, ask)

    def log_prob(self, field: Field, x: np.ndarray, ask: Ask) -> Answer:
        with torch.no_grad():
            return Answer(self._asked(field, self._tensor(x), ask).numpy())

    def gradient(self, field: Field, x: np.ndarray) -> np.ndarray:
        start = self._tensor(x).requires_grad_()
        return torch.autograd.grad(self._asked(field, start, Ask()).sum(), start)[0].numpy()
