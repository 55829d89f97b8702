"""What an evaluation is: how bits/dim are estimated, and what is measured of which checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from scoremle.core.dequantize import Dequantizer, TruncatedNormal, Uniform
from scoremle.core.divergence import DivergenceEstimator
from scoremle.core.sde import SDE
from scoremle.core.times import BinnedLogSNR, TimeSampler, UniformLogSNR, UniformTime
from scoremle.experiment.networks import FlowSpec, ModelSpec, Params
from scoremle.likelihood.control_variate import Control
from scoremle.likelihood.images import ByBound, ByOde
from scoremle.likelihood.informed import ByInformedOde
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.likelihood.reconstruction import Discrete, Entropy, Gaussian, Informed
from scoremle.likelihood.steps import BySteps
from scoremle.solvers.base import Solver

__all__ = [
    "BOUND_TIMES",
    "DEQUANTIZATIONS",
    "CheckpointNumbers",
    "Dequantization",
    "Estimators",
    "Evaluation",
]

# From the SDE, eps, whether to stratify, and a control if it was fitted.
BOUND_TIMES: dict[str, Callable[[SDE, float, bool, Any], TimeSampler]] = {
    "learned": lambda sde, eps, stratified, control: BinnedLogSNR(
        sde, eps, control.shares, stratified
    ),
    "log_snr": lambda sde, eps, stratified, control: UniformLogSNR(sde, eps, stratified),
    "time": lambda sde, eps, stratified, control: UniformTime(eps, stratified),
}


class Dequantization(NamedTuple):
    """A way to dequantize: its name, what makes it of a flow's parameters, and where it begins.

    ``start`` is None where that is the model's smallest time.
    """

    name: str
    dequantizer: Callable[[Params], Dequantizer]
    start: float | None = None


DEQUANTIZATIONS: dict[str, Callable[[ModelSpec, FlowSpec], Dequantization]] = {
    "uniform": lambda model, flow: Dequantization("uniform", lambda params: Uniform()),
    "truncated_normal": lambda model, flow: Dequantization(
        "truncated_normal",
        lambda params: TruncatedNormal(model.sde, model.truncation_start, model.pixels),
        model.truncation_start,
    ),
    "variational": lambda model, flow: Dequantization("variational", flow.dequantizer),
    "none": lambda model, flow: Dequantization(
        "none", lambda params: Uniform(), model.truncation_start
    ),
    "informed": lambda model, flow: Dequantization("informed", lambda params: Uniform()),
}


@dataclass(frozen=True)
class Estimators:
    """How bits/dim are estimated: by the ODE (the first three fields), and by bounds.

    ``pilot``: the solver's nodes are chosen by a pilot. ``offset``: bounds count the step from the
    smallest time to the data. ``discrete`` has the points where integers stand, ``decoder`` is
    what the network says of them at the smallest time. ``chain``: a bound of steps.
    """

    divergence: DivergenceEstimator
    solver: Solver | PublishedRK45
    pilot: bool
    matching: str
    draws: int
    times: str
    stratified: bool
    offset: bool
    discrete: Discrete
    decoder: Informed
    chain: BySteps | None

    def by_ode(self, dequantization: str, samples: int = 1) -> ByOde | ByInformedOde:
        """Of the ODE, from dequantized integers or by the decoder."""
        if dequantization == "informed":
            return ByInformedOde(self.decoder, self.divergence, self.solver, samples)
        return ByOde(self.divergence, self.solver, samples)

    def by_bound(self, model: ModelSpec, control: Control | None = None) -> ByBound:
        """Of bounds; ``control`` where it was fitted."""
        times = BOUND_TIMES[self.times](model.sde, model.eps, self.stratified, control)
        reconstruction = Gaussian() if self.offset else Entropy()
        return ByBound(self.draws, self.matching, times, reconstruction, control)


class CheckpointNumbers(NamedTuple):
    """Which checkpoints are meant; None: the newest, or the end alone for a beginning.

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
    """What is measured, and of which images and checkpoints.

    ``tolerance``: what the solver may add to the error of a mean, in bits/dim. ``label``: the
    class of a model of classes, or "all".
    """

    estimators: Estimators
    dequantization: str
    importance_samples: int
    label: str
    bpd: bool
    bound: bool
    loss: bool
    samples: bool
    suite: bool
    split: str
    num_images: int
    batch_size: int
    repeats: int
    tolerance: float
    checkpoints: CheckpointNumbers

    @property
    def exact(self) -> bool:
        """Is there an exact likelihood among what is measured?"""
        return self.suite or (self.bpd and not self.bound and self.estimators.chain is None)
