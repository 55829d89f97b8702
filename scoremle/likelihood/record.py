"""A log-likelihood with its error."""

from dataclasses import replace

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from scoremle.core.pytree import frozen_pytree, known, static
from scoremle.numerics import typical
from scoremle.types import Data, PerExample

__all__ = ["Likelihood"]

# The error of a solver is hidden up to this share of the probes' standard error.
HIDDEN = 0.25


@frozen_pytree(eq=False, repr=False)
class Likelihood:
    """Log-likelihood of each example, in nats, with its error.

    ``probe_stderr`` is the standard error from the random probes: zero for an exact trace, and NaN
    for one probe that stays the same along the path. With new probes at each step, it is estimated
    from the parts that the dimensions have in a trace: from the spread of several probes, or from
    the scatter of a single one along the path. Where the network's Jacobian is not symmetric, it
    is stated too large. ``probe_deviations`` are the parts of that error, with their signs, that
    belong to each of several probes. ``solver_error`` should cover the solver's error, by its own
    estimate that is calibrated on a few images where a pilot ran, and the rounding of log p.
    ``evaluations`` counts network evaluations, each with its derivatives. Where ``ok`` is false
    the solver gave up: ``log_prob`` and its errors are NaN. ``trace``: how traces were taken.
    ``refined``: rows were solved again by more steps, if the solver stated a large error of them;
    it is false where a program is traced, of derivatives, and by a solver that was given.

    Args:
        latent: [b *d] the other end of the ODE.
    """

    log_prob: PerExample
    latent: Data
    evaluations: Int[Array, " b"]
    probe_stderr: PerExample
    probe_deviations: Float[Array, "m b"]
    solver_error: PerExample
    ok: Bool[Array, " b"]
    trace: str = static(default="")
    refined: bool = static(default=False)

    def first(self, n: int) -> "Likelihood":
        """The first ``n`` examples."""
        cut = jax.tree.map(lambda leaf: leaf[:n], self)
        return replace(cut, probe_deviations=self.probe_deviations[:, :n])

    def __repr__(self) -> str:
        """Summary in a line: the mean log-likelihood, and typical errors of one example."""
        arrays = all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(self))
        if not (arrays and known(self) and self.ok.size):
            return f"Likelihood(no values; trace {self.trace})"
        count = f"{self.ok.size} example{'s' * (self.ok.size > 1)}"
        return (
            f"Likelihood({count}: {np.mean(self.log_prob):.5g} nats in the mean;"
            f" errors of one: solver {typical(self.solver_error)}, probes"
            f" {typical(self.probe_stderr)}; trace {self.trace})"
        )
