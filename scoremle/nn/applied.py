"""A network as a function of its parameters too."""

from dataclasses import dataclass
from typing import Any

from flax import linen as nn

__all__ = ["Applied"]


@dataclass(frozen=True)
class Applied:
    """``apply(params, *inputs)`` of a network, such as x, label; equal for equal networks.

    So that models of one architecture are arguments of one compiled program. With ``channels``
    only so many of the output are taken: a network may tell the variance in those behind.
    """

    network: nn.Module
    channels: int | None = None

    def __call__(self, params: Any, *inputs: Any) -> Any:
        output: Any = self.network.apply({"params": params}, *inputs)
        return output if self.channels is None else output[..., : self.channels]
