"""What brings a likelihood within so many nats at the least cost: nodes and trace, by a pilot.

On a few examples the solver is measured (`nodes.py`): the fewest nodes are taken whose stated
error is at most half the tolerance. At each of N nodes k probes leave an error of s / sqrt(N k).
So the rest of the tolerance asks for k of them, at a cost of k derivatives a node; the exact trace
of D dimensions costs D, and none of its value is random. The cheaper of the two is taken.
"""

import math
from dataclasses import dataclass

from scoremle.core.divergence import DivergenceEstimator, Exact, Hutchinson
from scoremle.likelihood.nodes import NODES, Pilot
from scoremle.solvers.multistep import Multistep

__all__ = ["EXAMPLES", "FEW_DIMS", "PROBES", "Accuracy", "choose_within"]

# The exact trace is the default up to so many dimensions.
FEW_DIMS = 64
# A pilot's examples, of which a few may have most of the error; and its probes, whose spread tells
# the error of one.
EXAMPLES, PROBES = 32, 4
# The share of the tolerance that the solver may take: its errors may all have one sign.
SOLVER_SHARE = 0.5


@dataclass(frozen=True)
class Accuracy:
    """The solver and the trace that were chosen, and what they leave on the pilot, in nats.

    Both errors are root mean squares over the pilot's ``examples``: an example may have more, and
    states it. ``met`` is false if even the most nodes missed the tolerance.
    """

    solver: Multistep
    divergence: DivergenceEstimator
    solver_error: float
    probe_stderr: float
    examples: int
    met: bool

    def __str__(self) -> str:
        missed = "" if self.met else "; the tolerance is not met"
        return (
            f"{self.solver.nodes} nodes, {self.divergence}: on {self.examples} examples the"
            f" solver states {self.solver_error:.2g} nats, and the probes leave"
            f" {self.probe_stderr:.2g}{missed}"
        )


def choose_within(pilot: Pilot, tolerance: float, dims: int) -> Accuracy:
    """The cheapest solver and trace for an error of ``tolerance`` nats.

    Args:
        pilot: a few examples, measured by ``Hutchinson(PROBES)``.
        tolerance: in nats, of the solver's and the probes' error together.
        dims: of one example.
    """
    nats = dims * math.log(2)
    for steps in NODES:
        choice = pilot.measure(steps)
        stated = choice.calibration * math.sqrt(2) * choice.typical  # none from too few examples
        error = max(nats * choice.solver_error, stated)
        if met := error <= SOLVER_SHARE * tolerance:
            break
    left = math.sqrt(1 - SOLVER_SHARE**2) * tolerance
    of_one = nats * choice.probe_stderr * math.sqrt(PROBES)
    probes = max(2, math.ceil((of_one / left) ** 2))
    exact = dims <= FEW_DIMS or probes >= dims
    return Accuracy(
        solver=choice.solver,
        divergence=Exact() if exact else Hutchinson(probes),
        solver_error=error,
        probe_stderr=0.0 if exact else of_one / math.sqrt(probes),
        examples=pilot.images,
        met=met,
    )
