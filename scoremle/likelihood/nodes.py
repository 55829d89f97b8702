"""How many nodes a likelihood needs: measured on a few images, for a solver error that is known.

A solver's error should be small beside the probes' error: unlike that, it may have the same sign
for all images. On a few images, with the same probes, the fixed-node solver is compared with
itself at many nodes. These are compared with half as many, which tells how far to trust them. The
fewest nodes are taken whose error is below a share of the probes' standard error, and below a
limit. The error that the solver states is calibrated by the measured one.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.special import stdtrit

from scoremle.core.arguments import as_data, check_count
from scoremle.core.divergence import DivergenceEstimator, Field, Probes
from scoremle.core.keys import as_keys, example_keys, split
from scoremle.core.programs import Programs
from scoremle.core.sde import SDE
from scoremle.likelihood.flow import flow_log_likelihood
from scoremle.likelihood.levels import Levels, choose_levels
from scoremle.likelihood.record import Likelihood
from scoremle.numerics import as_pytree, dims_of
from scoremle.solvers.multistep import Multistep, Planned
from scoremle.types import AnyArray, Data, Keys, NoiseFn, PRNGKey, Scalar

__all__ = ["PILOT_IMAGES", "Choice", "Pilot", "choose_for_mean", "choose_nodes"]

SCATTER_NODES = 32
NODES = (12, 16, 24, 32, 48, 64, 96, 128)
FINEST = 256
PILOT_IMAGES = 8
# The solver's error is at most this share of the probes' standard error, and at most this many
# bits/dim: an error of the mean counts where that of an image no longer does.
SHARE = 0.25
LIMIT = 0.005
# The share of errors that a calibrated one covers.
COVERAGE = 0.95
# Fewer images can't tell the spread of their errors.
FEWEST = 4
# In bits/dim: a stated error below this is none to calibrate.
NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Choice:
    """The nodes chosen, and what was measured there, all in bits/dim over the pilot's images.

    ``solver_error`` is a root mean square, with what is uncertain of the solution that it was
    measured against; ``solver_bias`` is the mean of estimate minus truth, to be subtracted from a
    mean in bits/dim, and its standard error; ``probe_stderr`` is what the probes of one image
    leave. ``calibration`` is the factor by which the error that the solver states of an image
    covers the true one, if what it states of the pilot's images, ``typical``, in nats, is added as
    a square; 1 and nothing if the images are too few to tell. ``met`` is false if even the most
    nodes missed the aim. ``levels`` are those of a mean, where one is corrected.
    ``tried`` has numbers of nodes, and the solver's error at each.
    """

    nodes: int
    solver_error: float
    solver_bias: float
    solver_bias_stderr: float
    probe_stderr: float
    calibration: float
    typical: float
    images: int
    met: bool
    levels: Levels | None = None
    tried: tuple[tuple[int, float], ...] = ()

    def __str__(self) -> str:
        missed = "" if self.met else " (more than was aimed at)"
        return (
            f"{self.nodes} nodes: on {self.images} images the solver's error is "
            f"{self.solver_error:.4f} bits/dim an image{missed}; estimate minus truth is "
            f"{self.solver_bias:+.4f} +- {self.solver_bias_stderr:.4f} in the mean; the probes' "
            f"error is {self.probe_stderr:.4f} an image{self._of_mean()}"
        )

    def _of_mean(self) -> str:
        if self.levels is None or len(self.levels.nodes) == 1:
            return ""
        return f"; the mean is corrected to {self.levels.nodes[-1]} nodes"

    @property
    def solver(self) -> Multistep:
        """The solver with these nodes, whose stated error is calibrated."""
        return Multistep(self.nodes, self.calibration, self.typical)


@dataclass(frozen=True)
class _Held:
    """An estimator whose probes are these if it is to hold them."""

    estimator: DivergenceEstimator
    probes: Probes
    hold: Bool[AnyArray, ""]

    @property
    def random(self) -> bool:
        return self.estimator.random

    def __repr__(self) -> str:
        return repr(self.estimator)

    def draw(self, key: Keys, x: Data) -> Probes:
        return jnp.where(self.hold, self.probes, self.estimator.draw(key, x))

    def __call__(self, field: Field, x: Data, probes: Probes) -> tuple[Data, Float[Array, "m b"]]:
        return self.estimator(field, x, probes)

    def deviations(self, estimates: Float[Array, "m b"]) -> Float[Array, "m b"]:
        return self.estimator.deviations(estimates)


# One program serves all numbers of nodes, and probes of both kinds.
@Programs
def _solved(
    rows: tuple[Data, Keys],
    noise: NoiseFn,
    sde: SDE,
    eps: Scalar,
    divergence: DivergenceEstimator,
    probes: Probes,
    hold: Bool[AnyArray, ""],
    solver: Planned,
) -> Likelihood:
    return flow_log_likelihood(
        noise, sde, *rows, eps=eps, divergence=_Held(divergence, probes, hold), solver=solver
    )


class Pilot:
    """A few images on which the solver is measured at any number of nodes.

    Args:
        noise: the noise prediction eps(x, t).
        sde: what noise is added when.
        x: the images, as reals.
        key: draws the probes, and the times of the nodes of each image.
        eps: the smallest time.
        divergence: how traces are estimated.
        finest: so many nodes are taken for the truth, as far as half of them agree; 128 or more.

    Raises UserError for fewer, and data that are not finite reals.
    """

    def __init__(
        self,
        noise: NoiseFn,
        sde: SDE,
        x: Data,
        key: PRNGKey,
        *,
        eps: Scalar,
        divergence: DivergenceEstimator,
        finest: int = FINEST,
    ) -> None:
        check_count("finest", finest, least=NODES[-1])
        x = as_data(x)
        key_probe, key_fresh = split(as_keys(key))
        self.images, self._bits = len(x), dims_of(x) * math.log(2)

        # The same probes for all numbers of nodes: what differs is the solver's error.
        probes = divergence.draw(key_probe, x)

        def solved(steps: int, *, hold: bool) -> Likelihood:
            key = key_probe if hold and divergence.random else key_fresh
            held = divergence, probes, np.asarray(hold)
            rows = x, example_keys(key, len(x))
            return _solved(rows, as_pytree(noise), sde, eps, *held, Planned.of(steps, finest))

        self._solved = solved
        self._scatter = None
        if divergence.random:
            found = self._in_bits(solved(SCATTER_NODES, hold=False).probe_stderr)
            self._scatter = _size(found) * math.sqrt(SCATTER_NODES)
        self.bpd = cache(self._bpd)
        self._truth = self.bpd(finest)
        self._doubt = self.bpd(finest // 2) - self._truth

    def _in_bits(self, values: jax.Array) -> np.ndarray:
        return np.asarray(values, np.float64) / self._bits

    def _bpd(self, steps: int) -> np.ndarray:
        """Up to a constant, in which all numbers of nodes agree."""
        return -self._in_bits(self._solved(steps, hold=True).log_prob)

    def error_or_doubt(self, steps: int) -> np.ndarray:
        """The error at ``steps`` nodes, with what is uncertain of the truth, in bits/dim."""
        return np.hypot(self.bpd(steps) - self._truth, self._doubt)

    def measure(self, steps: int) -> Choice:
        """What ``steps`` nodes leave."""
        error, error_or_doubt = self.bpd(steps) - self._truth, self.error_or_doubt(steps)
        bias_stderr = _size(np.hypot(error.std(), self._doubt)) / math.sqrt(self.images)
        stated = self._in_bits(self._solved(steps, hold=False).solver_error)
        calibration, typical = _calibration(error_or_doubt, np.maximum(stated, NEGLIGIBLE))
        probe, aim = 0.0, LIMIT
        if self._scatter is not None:
            probe = self._scatter / math.sqrt(steps)
            aim = min(LIMIT, SHARE * probe)
        return Choice(
            nodes=steps,
            solver_error=_size(error_or_doubt),
            solver_bias=float(error.mean()),
            solver_bias_stderr=bias_stderr,
            probe_stderr=probe,
            calibration=calibration,
            typical=typical * self._bits,
            images=self.images,
            met=_size(error_or_doubt) <= aim,
        )


def _size(values: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def _calibration(error: np.ndarray, stated: np.ndarray) -> tuple[float, float]:
    """The factor of the stated errors and the typical one together, and the typical one."""
    if len(error) < FEWEST:
        return 1.0, 0.0
    typical = _size(stated)
    deviations = stdtrit(len(error), (1 + COVERAGE) / 2)  # of Student's t
    return float(deviations) * _size(error / np.hypot(stated, typical)), typical


def choose_nodes(pilot: Pilot) -> Choice:
    """The fewest of ``NODES`` that are enough for images such as the pilot's.

    Args:
        pilot: a few images, on which the solver is measured.

    Example:
        >>> sde, key = scoremle.VP(), jax.random.key(0)
        >>> pilot = scoremle.likelihood.nodes.Pilot(  # of data N(0, I)
        ...     lambda x, t: sde.sigma(t)[:, None] * x, sde, jax.random.normal(key, (4, 2)), key,
        ...     eps=1e-3, divergence=scoremle.Exact(), finest=128,
        ... )
        >>> choice = scoremle.choose_nodes(pilot)
        >>> print(choice.met, choice.solver_error < 0.005)
        True True
    """
    for steps in NODES:
        choice = pilot.measure(steps)
        if choice.met:
            break
    return replace(choice, tried=_tried(pilot, NODES[: NODES.index(steps) + 1]))


def _tried(pilot: Pilot, nodes: Iterable[int]) -> tuple[tuple[int, float], ...]:
    return tuple((steps, _size(pilot.error_or_doubt(steps))) for steps in nodes)


def choose_for_mean(pilot: Pilot, *, images: int, passes: int, tolerance: float) -> Choice:
    """As many nodes for each image as it needs, or more, and the levels that correct the mean.

    ``tolerance`` is in bits/dim, of a mean over so many ``images``, each in so many ``passes``.
    There are none from fewer than four images of the pilot or where one of them fails, and for
    fewer than two images.
    """
    choice = choose_nodes(pilot)
    values = {steps: pilot.bpd(steps) for steps in (*NODES, FINEST)}
    finite = all(np.isfinite(bpd).all() for bpd in values.values())
    if pilot.images < FEWEST or images < 2 or not finite:
        return choice
    levels = choose_levels(
        values, coarsest=choice.nodes, images=images, passes=passes, tolerance=tolerance
    )
    choice = pilot.measure(levels.nodes[0])
    return replace(choice, levels=levels, tried=_tried(pilot, (*NODES, FINEST)))
