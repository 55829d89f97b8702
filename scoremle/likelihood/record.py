"""A log-likelihood with the evidence beside it."""

from dataclasses import dataclass, field

from jaxtyping import Array, Bool, Float, Int

from scoremle.core.pytree import pytree, static
from scoremle.types import Data, PerExample

__all__ = ["Likelihood"]


@pytree
@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of each example, in nats, with the evidence beside it.

    ``probe_stderr`` is the standard error from the random probes: zero for an exact trace, and NaN
    for one probe that stays the same along the path. With new probes at each node, the spread of
    several of them tells it. For a single one the scatter along the path tells it, but the nodes
    also leave structure of the divergence in that scatter: with few nodes in many dimensions this
    may be most of it. ``probe_deviations`` are the parts of that error, with their signs, that
    belong to each of several probes. ``solver_error`` should cover the solver's error: its own
    estimate, calibrated on a few images where a pilot ran. ``evaluations`` counts network
    evaluations, each with its derivatives. Where ``ok`` is false the solver gave up:
    ``log_prob`` and its errors are NaN. ``trace`` says how traces were taken.
    """

    log_prob: PerExample
    latent: Data = field(repr=False)
    evaluations: Int[Array, " b"]
    probe_stderr: PerExample
    probe_deviations: Float[Array, "m b"] = field(repr=False)
    solver_error: PerExample
    ok: Bool[Array, " b"]
    trace: str = static(default="")
