"""The record of an evaluation: its estimators, images and checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from scoremle.core.sde import SDE
from scoremle.core.times import TimeSampler, UniformLogSNR, UniformTime
from scoremle.likelihood.images import ByBound, ByOde
from scoremle.likelihood.reconstruction import Discrete
from scoremle.likelihood.steps import BySteps

__all__ = ["BOUND_TIMES", "LEARNED", "CheckpointNumbers", "Evaluation"]

# Times that are fitted to a network, when there is one.
LEARNED = "learned"
# From the SDE, eps, and whether to stratify.
BOUND_TIMES: dict[str, Callable[[SDE, float, bool], TimeSampler]] = {
    LEARNED: UniformLogSNR,
    "log_snr": UniformLogSNR,
    "time": lambda sde, eps, stratified: UniformTime(eps, stratified),
}


class CheckpointNumbers(NamedTuple):
    """Numbers of checkpoints; None: the newest, or the end alone for a beginning.

    An evaluation is of those from ``begin`` to ``end``, which it may wait for, with that of the
    ``flow`` dequantizer. A flow dequantizer is trained ``for_flow``.
    """

    begin: int | None
    end: int | None
    wait: bool
    flow: int | None
    for_flow: int | None


@dataclass(frozen=True)
class Evaluation:
    """The estimators, images and checkpoints of an evaluation.

    With ``pilot``, the steps of the solver of ``by_ode`` are chosen for a checkpoint; if
    ``bound_times`` are learned, those of ``by_bound`` and its control variate are fitted to it.
    ``discrete`` decodes integers without a network, and ``chain`` is a bound of steps.
    ``tolerance``: bits/dim that the solver may add to the standard error of a mean. ``label``: the
    class of a model of classes, or "all".
    """

    by_ode: ByOde
    by_bound: ByBound
    discrete: Discrete
    chain: BySteps | None
    pilot: bool
    bound_times: str
    dequantization: str
    label: str
    bpd: bool
    bound: bool
    loss: bool
    samples: bool
    suite: bool
    split: str
    num_images: int
    batch_size: int
    passes: int
    tolerance: float
    checkpoints: CheckpointNumbers

    @property
    def exact(self) -> bool:
        """Whether an exact likelihood is among what is measured."""
        return self.suite or (self.bpd and not self.bound and self.chain is None)

    @property
    def measures(self) -> bool:
        """Whether anything but samples is measured."""
        return self.suite or self.bpd or self.loss
