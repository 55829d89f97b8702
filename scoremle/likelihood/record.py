"""A log-likelihood with the evidence beside it."""

from dataclasses import dataclass

from jaxtyping import Array, Bool, Float, Int

from scoremle.core.pytree import pytree
from scoremle.types import Data, PerExample

__all__ = ["Likelihood"]


@pytree
@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of each example, in nats, with the evidence beside it.

    ``probe_stderr`` is the standard error from the random probes: zero for an exact trace, and NaN
    where one probe, the same all along, can't tell. With new probes at each node, several
    differ there by their errors alone; from one it is estimated by the scatter along the path,
    which also holds what the divergence has of unresolved structure: with few nodes in many
    dimensions that may be most of it. ``probe_deviations`` are what each of several probes adds to
    it, with its sign. ``solver_error`` is to cover the error that the solver made, calibrated on a
    few images or as it can tell by itself. ``evaluations`` counts network evaluations, each with
    its derivatives. Where ``ok`` is false the solver gave up, and
    ``log_prob`` and its errors are NaN.
    """

    log_prob: PerExample
    latent: Data
    evaluations: Int[Array, " b"]
    probe_stderr: PerExample
    probe_deviations: Float[Array, "m b"]
    solver_error: PerExample
    ok: Bool[Array, " b"]
