"""The pilot: a solver and a trace for a tolerance, by a few examples on which they are measured.

A solver's error should be small beside the probes' error: unlike that, it may have the same sign
for all examples. On a few examples, with the same probes, the solver of fixed steps is compared
with itself at many steps. These are compared with half as many, which limits how far to trust
them: where that doubt is large, twice as many are taken. The error that the solver states is
calibrated by the measured one.

Images: the fewest steps are taken whose error is below a share of the probes' standard error,
and below a limit in bits/dim. A mean over many images has levels of the solver, too (`levels.py`).

Reals, within a tolerance in nats: the fewest steps are taken whose error is at most half of it. At
each of N steps k probes leave an error of s / sqrt(N k). So the rest of the tolerance gives k, at
a cost of k derivatives a step; the exact trace of D dimensions costs D, and none of its value is
random. The cheaper of the two is taken.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from scoremle.core.arguments import as_data, check_count, check_number, check_seed
from scoremle.core.condition import conditioned, parted, rows_of
from scoremle.core.divergence import DivergenceEstimator, Exact, Hutchinson
from scoremle.core.keys import example_keys, key_of
from scoremle.core.prediction import check_model
from scoremle.core.pytree import known
from scoremle.core.sde import SDE, of_examples
from scoremle.errors import UserError
from scoremle.likelihood.levels import StepLevels, choose_levels
from scoremle.likelihood.record import HIDDEN
from scoremle.likelihood.refine import solved
from scoremle.numerics import as_pytree, dims_of
from scoremle.solvers.multistep import Multistep, Planned
from scoremle.terminal import counted
from scoremle.types import Data, NoiseFn, PRNGKey, Scalar

__all__ = ["FEW_DIMS", "PILOT_IMAGES", "Choice", "choose_within"]

# The exact trace is the default up to so many dimensions.
FEW_DIMS = 64
SCATTER_STEPS = 32
STEPS = (12, 16, 24, 32, 48, 64, 96, 128)
FINEST = 256
PILOT_IMAGES = 8
# The solver's error is at most this many bits/dim, too: an error of the mean counts where that of
# an image no longer does.
LIMIT = 0.005
# The doubt of a solution that is taken for the truth is at most this share of an error that is
# measured against it: so the stated error grows by an eighth at most.
DOUBT = 0.5
# The solver may add this share of the noise's standard error to that of a mean, where that is more
# than its tolerance.
NOISE_SHARE = 0.25
# Examples of reals, of which a few may have most of the error; and their probes, whose spread
# gives the error of one.
EXAMPLES, PROBES = 32, 4
# The share of a tolerance in nats that the solver may take: its errors may all have one sign.
SOLVER_SHARE = 0.5
# The share of errors that a calibrated one covers.
COVERED_SHARE = 0.95
# Fewer examples don't show the spread of their errors.
FEWEST = 4
# In bits/dim: smaller errors, measured or stated, are taken for this.
NEGLIGIBLE = 1e-9

Values = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Choice:
    """The solver and the trace that a pilot chose, and what they leave on its examples.

    All errors are in ``unit``: "bits/dim" of images, "nats" of reals. ``solver_error`` is a root
    mean square over the examples, with what is uncertain of the solution that it was measured
    against: an example may have more, and states it. ``solver_bias`` is the mean of estimate minus
    truth, to be subtracted from a mean in bits/dim, and its standard error. ``probe_stderr`` is
    what the probes of one example leave. ``met`` is false if even the most steps missed the aim.
    ``levels`` are those of a mean, where one is corrected. ``tried`` has numbers of steps, and the
    solver's error at each.

    Args:
        solver: the chosen one, calibrated.
        divergence: the chosen trace.
        solver_bias_stderr: the standard error of ``solver_bias``.
    """

    solver: Multistep
    divergence: DivergenceEstimator
    unit: str
    solver_error: float
    solver_bias: float
    solver_bias_stderr: float
    probe_stderr: float
    examples: int
    met: bool
    levels: StepLevels | None = None
    tried: tuple[tuple[int, float], ...] = ()

    def __str__(self) -> str:
        missed = "" if self.met else " (more than was aimed at)"
        many, unit = self.examples, self.unit
        if unit == "nats":
            return (
                f"{self.solver.steps} steps, {self.divergence}: on {many} examples the solver"
                f" states {self.solver_error:.2g} nats{missed}, and the probes leave"
                f" {self.probe_stderr:.2g}"
            )
        return (
            f"{self.solver.steps} steps: on {counted(many, 'image')} the solver's error is"
            f" {self.solver_error:.4f} {unit} an image{missed}; estimate minus truth is"
            f" {self.solver_bias:+z.4f} +- {self.solver_bias_stderr:.4f} in the mean over them;"
            f" the probes' error is {self.probe_stderr:.4f} an image{self._of_mean()}"
        )

    def _of_mean(self) -> str:
        if self.levels is None or len(self.levels.steps) == 1:
            return ""
        return f"; the mean over images is corrected to {self.levels.steps[-1]} steps"

    def to_json(self) -> dict[str, Any]:
        """The fields under the names that they have in results."""
        return {
            "nodes": self.solver.steps,
            "solver_error": self.solver_error,
            "solver_bias": self.solver_bias,
            "solver_bias_stderr": self.solver_bias_stderr,
            "probe_stderr": self.probe_stderr,
            "calibration": float(self.solver.calibration),
            "typical": float(self.solver.typical),
            "images": self.examples,
            "met": self.met,
            "levels": self.levels and asdict(self.levels),
            "tried": [list(each) for each in self.tried],
        }


class Solved(NamedTuple):
    """Values of a pilot's examples by some number of steps, in bits/dim.

    ``bpd`` is up to a constant of each example, in which all numbers of steps agree. The others
    are the errors that the solver and the probes are said to leave.
    """

    bpd: Values
    solver_error: Values
    probe_stderr: Values


# (room for steps, steps, held=) -> the values of all examples
Solve = Callable[..., Solved]


class Pilot:
    """A few examples on which the solver is measured at any number of steps.

    Args:
        solve: solves the ODE from the examples by a number of steps, with room for as many as the
            first argument; if ``held``, with the same probes at all of them.
        divergence: how traces are estimated.
        bits: nats in a bit/dim.
        finest: so many steps are taken for the truth, as far as half of them agree; more than 128.
            None: 128, or 256 where half of 128 agree too little for the steps that are chosen.

    Raises UserError for so few or fewer.
    """

    def __init__(
        self,
        solve: Solve,
        divergence: DivergenceEstimator,
        *,
        bits: float,
        finest: int | None = FINEST,
    ) -> None:
        if finest is not None:
            check_count("finest", finest, least=STEPS[-1] + 1)
        self.divergence, self.bits, self._finest = divergence, bits, finest or FINEST
        self._solved, self._scatter = cache(partial(solve, self._finest)), 0.0
        if divergence.random:
            found = self._solved(SCATTER_STEPS, held=False).probe_stderr
            self._scatter = _size(found) * math.sqrt(SCATTER_STEPS)
        self._believe(finest or STEPS[-1])
        self.examples = len(self._truth)

    @classmethod
    def of_reals(
        cls,
        noise: NoiseFn,
        sde: SDE,
        x: Data,
        key: PRNGKey,
        *,
        eps: Scalar,
        divergence: DivergenceEstimator,
        finest: int | None = FINEST,
    ) -> "Pilot":
        """The pilot of reals.

        Args:
            noise: the noise prediction eps(x, t).
            sde: the noise at each time.
            x: the examples, as the network takes them.
            key: draws the probes, and the times of the steps of each example.
            eps: the smallest time.
            divergence, finest: as a pilot takes them.

        Raises UserError for data that are not finite reals.
        """
        x = as_data(x)
        check_model(noise, sde, eps, x.shape[1:])
        bits, rows = dims_of(x) * math.log(2), (x, example_keys(key, len(x)), None)
        model = as_pytree(noise), sde, eps, divergence, False

        def solve(room: int, steps: int, *, held: bool) -> Solved:
            _, found = solved(rows, *model, Planned.of(steps, room, held=held))
            _check_known(found)
            nats = -found.log_prob, found.solver_error, found.probe_stderr
            return Solved(*(np.asarray(each, np.float64) / bits for each in nats))

        return cls(solve, divergence, bits=bits, finest=finest)

    def _believe(self, steps: int) -> None:
        """Takes the value by so many steps for the truth; its doubt: the change from half."""
        self._believed, self._truth = steps, self.bpd(steps)
        self._doubt = self.bpd(steps // 2) - self._truth

    def bpd(self, steps: int) -> np.ndarray:
        """Up to a constant, in which all numbers of steps agree."""
        return self._solved(steps, held=self.divergence.random).bpd

    def _probe_stderr(self, steps: int) -> float:
        """The standard error by the probes of an example, in bits/dim; 0 of an exact trace."""
        return self._scatter / math.sqrt(steps)

    def _aim(self, steps: int) -> float:
        """The error that the solver may have, in bits/dim."""
        return min(LIMIT, HIDDEN * self._probe_stderr(steps)) if self.divergence.random else LIMIT

    def _meets(self, steps: int) -> bool:
        return _size(self.error_or_doubt(steps)) <= self._aim(steps)

    def error_or_doubt(self, steps: int) -> np.ndarray:
        """The error at ``steps`` steps, with what is uncertain of the truth, in bits/dim."""
        return np.hypot(self.bpd(steps) - self._truth, self._doubt)

    def measure(self, steps: int) -> Choice:
        """The error of a solution by ``steps`` steps, in bits/dim, and the calibrated solver."""
        error, error_or_doubt = self.bpd(steps) - self._truth, self.error_or_doubt(steps)
        spread = error.std(ddof=min(1, self.examples - 1))
        bias_stderr = _size(np.hypot(spread, self._doubt)) / math.sqrt(self.examples)
        stated = self._solved(steps, held=False).solver_error
        calibration, typical = _calibration(error_or_doubt, np.maximum(stated, NEGLIGIBLE))
        return Choice(
            solver=Multistep(steps, calibration, typical * self.bits),
            divergence=self.divergence,
            unit="bits/dim",
            solver_error=_size(error_or_doubt),
            solver_bias=float(error.mean()),
            solver_bias_stderr=bias_stderr,
            probe_stderr=self._probe_stderr(steps),
            examples=self.examples,
            met=self._meets(steps),
        )

    def fewest(self) -> Choice:
        """The fewest of ``STEPS`` that are enough for such images; the most, if none are."""
        steps = next(filter(self._meets, STEPS), STEPS[-1])
        error = _size(self.bpd(steps) - self._truth)
        if self._believed < self._finest and not _size(self._doubt) <= DOUBT * error:
            self._believe(self._finest)
            return self.fewest()
        return replace(self.measure(steps), tried=self._tried(STEPS[: STEPS.index(steps) + 1]))

    def for_mean(self, images: int, passes: int, tolerance: float) -> Choice:
        """Chooses steps that are enough for each image, and the levels that correct the mean.

        There are no levels for fewer than two images, from fewer than four of the pilot, and where
        one of these fails.

        Args:
            images: of which the mean is wanted.
            passes: over each of them.
            tolerance: bits/dim that the solver may add to the standard error of the mean; a
                quarter of what the probes leave of it, where that is more.
        """
        choice = self.fewest()
        if self.examples < FEWEST or images < 2:
            return choice
        values = {steps: self.bpd(steps) for steps in (*STEPS, self._finest)}
        if not all(np.isfinite(bpd).all() for bpd in values.values()):
            return choice
        noise = choice.probe_stderr / math.sqrt(images * passes)
        levels = choose_levels(
            values, coarsest=choice.solver.steps, images=images, passes=passes,
            tolerance=max(tolerance, NOISE_SHARE * noise),
        )  # fmt: skip
        choice = self.measure(levels.steps[0])
        return replace(choice, levels=levels, tried=self._tried((*STEPS, self._finest)))

    def within(self, tolerance: float, dims: int) -> Choice:
        """The cheapest solver and trace for errors of so many nats together.

        Args:
            tolerance: nats, of a root mean square over examples.
            dims: of an example.

        Raises UserError for an example whose log p is not finite.
        """
        probed = self._solved(SCATTER_STEPS, held=False).probe_stderr
        wrong = np.flatnonzero(~np.isfinite(self._doubt + probed))
        if wrong.size:
            raise UserError(
                f"a tolerance needs finite values, and log p of row {wrong[0]} is not: the noise"
                " prediction is not, or the row is far beyond its range"
            )
        for steps in STEPS:
            choice = self.measure(steps)
            solver = choice.solver
            # None is stated from too few examples.
            stated = float(solver.calibration * math.sqrt(2) * solver.typical)
            error = max(self.bits * choice.solver_error, stated)
            if met := error <= SOLVER_SHARE * tolerance:
                break
        left = math.sqrt(1 - SOLVER_SHARE**2) * tolerance
        of_one = self.bits * choice.probe_stderr * math.sqrt(PROBES)
        probes = max(2, math.ceil((of_one / left) ** 2))
        exact = dims <= FEW_DIMS or probes >= dims
        return replace(
            choice,
            divergence=Exact() if exact else Hutchinson(probes),
            unit="nats",
            solver_error=error,
            solver_bias=self.bits * choice.solver_bias,
            solver_bias_stderr=self.bits * choice.solver_bias_stderr,
            probe_stderr=0.0 if exact else of_one / math.sqrt(probes),
            met=met,
        )

    def _tried(self, steps: Iterable[int]) -> tuple[tuple[int, float], ...]:
        return tuple((each, _size(self.error_or_doubt(each))) for each in steps)


def _size(values: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def _calibration(error: np.ndarray, stated: np.ndarray) -> tuple[float, float]:
    """The factor of the stated errors and the typical one together, and the typical one.

    1 and nothing, where the examples are too few or the solver fails on one of them.
    """
    if len(error) < FEWEST or not np.isfinite(error + stated).all():
        return 1.0, 0.0
    typical = _size(stated)
    deviations = stdtrit(len(error), (1 + COVERED_SHARE) / 2)  # of Student's t
    measured = np.maximum(np.abs(error), NEGLIGIBLE)
    return float(deviations) * _size(measured / np.hypot(stated, typical)), typical


def _check_known(*values: Any) -> None:
    """Raises UserError for what is traced; what a function closes over shows in its values."""
    if not known(*values):
        raise UserError(
            "a tolerance needs numbers: outside of jit and grad, let model.within choose a solver"
            " and a divergence, then compile with these"
        )


def choose_within(
    noise: NoiseFn,
    sde: SDE,
    x: Data,
    *,
    tolerance: float,
    eps: Scalar,
    condition: Any = None,
    seed: int = 0,
) -> Choice:
    """The cheapest solver and trace for log p with errors of about so many nats.

    Args:
        noise: the noise prediction eps(x, t), or eps(x, t, condition).
        sde: the noise at each time.
        x: data at t = ``eps``, of which the first 32 examples are used.
        tolerance: in nats, of the errors of solver and probes together, in root mean square.
        eps: the smallest time, where the density is taken.
        condition: any pytree of arrays, with a row for each example or one for all.
        seed: of the pilot's probes.

    Raises UserError for no data, a log p that is not finite, a tolerance that is not above 0, and
    where it is traced.
    """
    _check_known(x, as_pytree(noise), condition)
    check_number("tolerance", tolerance, above=0)
    check_seed(seed)
    x = as_data(x)
    if not len(x):
        raise UserError("a tolerance needs examples")
    few, (noise, sde) = x[:EXAMPLES], of_examples((noise, sde), slice(EXAMPLES))
    noise, own = parted(noise)
    rows = rows_of(own if condition is None else condition, len(x))
    rows = jax.tree.map(lambda row: row[: len(few)], rows)
    pilot = Pilot.of_reals(
        conditioned(noise, rows), sde, few, key_of(seed), eps=eps,
        divergence=Hutchinson(PROBES), finest=FINEST,
    )  # fmt: skip
    return pilot.within(tolerance, dims_of(x))
