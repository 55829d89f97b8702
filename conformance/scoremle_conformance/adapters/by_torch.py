"""What adapters of PyTorch libraries share: from arrays to tensors, and to log p or its slope."""

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
    """A library whose log p is ``of_tensor``. A setting in float64 says so first."""

    framework = "torch"

    def of_tensor(self, field: Field, x: Tensor, labels: Tensor | None, ask: Ask) -> Tensor:
        """log p of the rows of ``x``; differentiable if ``x`` is."""
        raise NotImplementedError

    def _of_array(self, field: Field, x: np.ndarray, ask: Ask, slope: bool) -> np.ndarray:
        double = self.settings[self.setting].startswith("float64")
        start = torch.tensor(x, dtype=torch.float64 if double else torch.float32)
        labels = None if ask.labels is None else torch.from_numpy(ask.labels)
        torch.manual_seed(ask.seed)
        with torch.set_grad_enabled(slope):
            found = self.of_tensor(field, start.requires_grad_(slope), labels, ask)
            return torch.autograd.grad(found.sum(), start)[0].numpy() if slope else found.numpy()

    def log_prob(self, field: Field, x: np.ndarray, ask: Ask) -> Answer:
        return Answer(self._of_array(field, x, ask, slope=False))

    def gradient(self, field: Field, x: np.ndarray) -> np.ndarray:
        return self._of_array(field, x, Ask(), slope=True)
