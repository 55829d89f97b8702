"""A network as a function of its parameters too."""

from dataclasses import dataclass
from typing import Any

from flax import linen as nn

from scoremle.types import Images, Times

__all__ = ["Applied"]


@dataclass(frozen=True)
class Applied:
    """``apply(params, x, label, condition)`` of a network; equal for equal networks.

    So that models of one architecture are arguments of one compiled program. With ``channels``
    only so many of the output are taken: a network may tell the variance in those behind.
    """

    network: nn.Module
    channels: int | None = None

    def __call__(self, params: Any, x: Images, label: Times, *condition: Any) -> Images:
        output: Any = self.network.apply({"params": params}, x, label, *condition)
        return output[..., : self.channels]
