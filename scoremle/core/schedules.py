"""Schedules: the log signal-to-noise ratio lambda(t), which falls from t = 0 to t = 1.

A schedule states lambda(t). Its inverse is found by bisection, unless a closed form is known. At
t = 1 lambda is finite: where a formula ends at minus infinity, it is cut at a stated least value.
At t = 0 it may be infinite: likelihoods begin at a smallest time.

Numbers of a schedule are leaves, so a schedule is learned as any parameters are: write a class
with ``log_snr``, a subclass of ``Schedule``, under ``frozen_pytree``.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from scoremle.core.arguments import as_array, check_choice, check_number
from scoremle.core.kernels import KERNELS
from scoremle.core.pytree import describe, frozen_pytree, require, static
from scoremle.errors import UserError
from scoremle.numerics import floating
from scoremle.types import Scalar, Times

__all__ = [
    "Cosine", "Discrete", "GeometricSigma", "KarrasSigma", "LinearBeta", "LinearLogSNR",
    "LinearSigma", "PerDimension", "Schedule",
]  # fmt: skip

BY_T = "use what goes by t: log_prob, elbo, and times by UniformTime"


def rate(function: Callable[[Times], Array], t: ArrayLike) -> Array:
    """The derivative of ``function`` in t, elementwise."""
    t = floating(t)
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


class Schedule(abc.ABC):
    """Log-SNR lambda(t) on [0, 1], elementwise in t, strictly falling.

    Example:
        >>> @scoremle.core.pytree.frozen_pytree
        ... class Straight(scoremle.Schedule):
        ...     slope: float
        ...     def log_snr(self, t):
        ...         return self.slope * (0.5 - t)
        >>> print(f"{Straight(10.0).time_of_log_snr(jnp.asarray(0.0)):.3f}")
        0.500
    """

    # Whether lambda has a number for each dimension of the data, rather than one at each t; and
    # whether it has those of each example, by a code.
    per_dimension: ClassVar[bool] = False
    per_example: ClassVar[bool] = False

    @abc.abstractmethod
    def log_snr(self, t: Times) -> Times:
        """lambda at t.

        Args:
            t: times of any shape.
        """

    def time_of_log_snr(self, lam: Times) -> Times:
        """The t at which lambda is ``lam``, one of its values."""
        return _inverse(self, floating(lam))

    def at_zero(self) -> Times:
        """lambda at t = 0."""
        return self.log_snr(jnp.zeros(()))

    def common_log_snr(self, t: Times) -> Times:
        """lambda at t, which all dimensions share. UserError where each has its own.

        Args:
            t: times of any shape.
        """
        return self.log_snr(t)

    def at(self, code: Any) -> "Schedule":
        """The schedule of the images that ``code`` describes. UserError if all share one."""
        raise UserError(f"{type(self).__name__} is the same for all images: it takes no code")

    def taken(self, indices: Any) -> "Schedule":
        """The schedule of the examples at ``indices``, where each has its own; else itself."""
        return self

    def describe(self) -> dict[str, Any]:
        """Describes the schedule in values of JSON."""
        return describe(self)


@jax.custom_jvp
def _inverse(schedule: Schedule, lam: Times) -> Times:
    # Bisects the bits of t, which have the order of the floats: all digits are found, near 0 too.
    integer = jnp.int32 if lam.dtype.itemsize == 4 else jnp.int64
    one = jax.lax.bitcast_convert_type(jnp.ones_like(lam), integer)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        before, behind = ends
        middle = before + (behind - before) // 2
        t = jax.lax.bitcast_convert_type(middle, lam.dtype)
        early = schedule.log_snr(t) > lam
        return jnp.where(early, middle, before), jnp.where(early, behind, middle)

    # After so many halvings the ends are neighbouring floats.
    halvings = 30 if integer == jnp.int32 else 62
    _, found = jax.lax.fori_loop(0, halvings, halve, (jnp.zeros_like(one), one))
    return jax.lax.bitcast_convert_type(found, lam.dtype)


@_inverse.defjvp
def _inverse_jvp(primals: tuple, tangents: tuple) -> tuple[Times, Times]:
    """dt = (d lambda - (d lambda/d theta) d theta) / (d lambda/dt); a bisection's own is zero."""
    schedule, lam = primals
    t = _inverse(schedule, lam)
    _, by_parameters = jax.jvp(lambda s: s.log_snr(t), (schedule,), tangents[:1])
    change = (tangents[1] - by_parameters) / rate(schedule.log_snr, t)
    return t, change.astype(t.dtype)


class PerDimension(Schedule):
    """Schedule with a lambda(t) for each dimension: the shape of t, then that of the data.

    Along an axis where it is the same, one number is enough: (1, 1, 3) of three colours.

    No one time belongs to a log-SNR. So t itself is the clock of the ODE, bounds draw times evenly
    in the mean log-SNR over dimensions, and what needs a single log-SNR refuses.

    Example:
        >>> @scoremle.core.pytree.frozen_pytree
        ... class Slopes(scoremle.PerDimension):
        ...     slopes: jax.Array
        ...     def log_snr(self, t):
        ...         return self.slopes * (0.5 - t[..., None])
        >>> sde = scoremle.SDE("vp", Slopes(jnp.asarray([8.0, 9.0, 10.0])), 1.0)
        >>> sde.sigma(jnp.asarray([0.1, 0.9])).shape
        (2, 3)
    """

    per_dimension = True

    def common_log_snr(self, t: Times) -> Times:
        """Raises UserError, unless a schedule states where its dimensions meet."""
        raise UserError(
            f"{type(self).__name__} has a log-SNR for each dimension, where one for all is needed:"
            f" {BY_T}"
        )

    def time_of_log_snr(self, lam: Times) -> Times:
        """Raises UserError: there is no such time for all dimensions."""
        raise UserError(
            f"{type(self).__name__} has a log-SNR for each dimension, and no one time belongs to"
            f" them: {BY_T}"
        )


@frozen_pytree
class LinearBeta(Schedule):
    """Schedule of beta(t) = beta_min + t (beta_max - beta_min): alpha^2 = e^-B, B its integral.

    Args:
        beta_min: beta at t = 0.
        beta_max: beta at t = 1.
        kernel: "vp", "subvp" or "straight": on it depends the lambda that belongs to an alpha. In
            an SDE of another kernel the schedule has that lambda, and so the SDE other betas.

    Raises UserError for another kernel, a beta_min below 0, a beta_max of 0 or below, and values
    that are not finite.

    Example:
        >>> schedule = scoremle.LinearBeta(0.1, 20.0)
        >>> print(f"{schedule.log_alpha(jnp.ones(())):.4f}")  # -(0.1 + 20) / 4
        -5.0250
    """

    beta_min: Scalar = 0.1
    beta_max: Scalar = 20.0
    kernel: str = static(default="vp")

    def __post_init__(self) -> None:
        check_choice("kernel", self.kernel, [name for name in KERNELS if name != "ve"])
        require(
            self,
            lambda: 0 <= self.beta_min < np.inf and 0 < self.beta_max < np.inf,
            "beta_min must be a number from 0 on, and beta_max one above 0, both finite",
        )

    def log_alpha(self, t: Times) -> Times:
        """Logarithm of the kernel's mean coefficient.

        Args:
            t: times.
        """
        b = self.beta_min * t + (self.beta_max - self.beta_min) * jnp.square(t) / 2
        return -b / 2

    def log_snr(self, t: Times) -> Times:
        return KERNELS[self.kernel].log_snr(self.log_alpha(t))

    def time_of_log_snr(self, lam: Times) -> Times:
        b = -2 * KERNELS[self.kernel].log_alpha(lam)
        # The root of the quadratic in the form that subtracts nothing. Where betas fall, rounding
        # may lead beta(t)^2 below what it is at t = 1, and t beyond 1.
        least = jnp.square(jnp.minimum(self.beta_min, self.beta_max))
        squared = self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b
        t = 2 * b / (self.beta_min + jnp.sqrt(jnp.maximum(squared, least)))
        return t - jax.lax.stop_gradient(jnp.maximum(t - 1, 0))


@frozen_pytree
class GeometricSigma(Schedule):
    """Schedule whose sigma / alpha is geometric from sigma_min to sigma_max.

    Args:
        sigma_min: sigma / alpha at t = 0.
        sigma_max: sigma / alpha at t = 1.

    Raises UserError unless 0 < sigma_min < sigma_max.

    Example:
        >>> schedule = scoremle.GeometricSigma(0.01, 100.0)
        >>> print(f"{schedule.time_of_log_snr(jnp.asarray(0.0)):.3f}")  # sigma / alpha = 1
        0.500
    """

    sigma_min: Scalar = 0.01
    sigma_max: Scalar = 50.0

    def __post_init__(self) -> None:
        _check_sigmas(self)

    def log_snr(self, t: Times) -> Times:
        return -2 * (jnp.log(self.sigma_min) + t * jnp.log(self.sigma_max / self.sigma_min))

    def time_of_log_snr(self, lam: Times) -> Times:
        log_ratio = jnp.log(self.sigma_max / self.sigma_min)
        return (-lam / 2 - jnp.log(self.sigma_min)) / log_ratio


@frozen_pytree
class LinearSigma(Schedule):
    """Schedule of sigma / alpha = t sigma_max.

    Args:
        sigma_max: sigma / alpha at t = 1.

    Raises UserError for a sigma_max that is not above 0.

    Example:
        >>> schedule = scoremle.LinearSigma(50.0)
        >>> print(f"{schedule.time_of_log_snr(jnp.asarray(0.0)):.3f}")  # 1 / 50
        0.020
    """

    sigma_max: Scalar = 50.0

    def __post_init__(self) -> None:
        check_number("sigma_max", self.sigma_max, above=0)

    def log_snr(self, t: Times) -> Times:
        return -2 * (jnp.log(t) + jnp.log(self.sigma_max))

    def time_of_log_snr(self, lam: Times) -> Times:
        return jnp.exp(-lam / 2) / self.sigma_max


@frozen_pytree
class KarrasSigma(Schedule):
    """EDM's schedule: (sigma / alpha)^(1/rho) is linear in t (arXiv 2206.00364, equation 5).

    Args:
        sigma_min: sigma / alpha at t = 0.
        sigma_max: sigma / alpha at t = 1.
        rho: the exponent: the larger, the more of the times have little noise.

    Raises UserError unless 0 < sigma_min < sigma_max, and for a rho that is not above 0.

    Example:
        >>> sde = scoremle.SDE("ve", scoremle.KarrasSigma(), prior_std=80.0)
        >>> print(f"{sde.sigma(0.0):.3f} {sde.sigma(1.0):.1f}")
        0.002 80.0
    """

    sigma_min: Scalar = 0.002
    sigma_max: Scalar = 80.0
    rho: Scalar = 7.0

    def __post_init__(self) -> None:
        _check_sigmas(self)
        check_number("rho", self.rho, above=0)

    @property
    def _ends(self) -> tuple[Times, Times]:
        low, high = (jnp.asarray(s) ** (1 / self.rho) for s in (self.sigma_min, self.sigma_max))
        return low, high

    def log_snr(self, t: Times) -> Times:
        low, high = self._ends
        return -2 * self.rho * jnp.log(low + t * (high - low))

    def time_of_log_snr(self, lam: Times) -> Times:
        low, high = self._ends
        return (jnp.exp(-lam / (2 * self.rho)) - low) / (high - low)


@frozen_pytree
class LinearLogSNR(Schedule):
    """Schedule whose lambda is linear from log_snr_max to log_snr_min (arXiv 2107.00630).

    Args:
        log_snr_min: lambda at t = 1.
        log_snr_max: lambda at t = 0.

    Raises UserError unless log_snr_min < log_snr_max, both finite.

    Example:
        >>> schedule = scoremle.LinearLogSNR(-5.0, 13.0)
        >>> print(f"{schedule.time_of_log_snr(jnp.asarray(4.0)):.3f}")
        0.500
    """

    log_snr_min: Scalar = -5.0
    log_snr_max: Scalar = 13.3

    def __post_init__(self) -> None:
        _check_ends(self)

    def log_snr(self, t: Times) -> Times:
        return self.log_snr_max + t * (self.log_snr_min - self.log_snr_max)

    def time_of_log_snr(self, lam: Times) -> Times:
        return (lam - self.log_snr_max) / (self.log_snr_min - self.log_snr_max)


@frozen_pytree
class Cosine(Schedule):
    """Schedule of lambda = -2 log tan(angle), with an angle linear in t between its ends.

    So alpha of VP is a cosine (Nichol and Dhariwal, arXiv 2102.09672), here with ends that are
    finite (Hoogeboom et al., arXiv 2301.11093).

    Args:
        log_snr_min: lambda at t = 1.
        log_snr_max: lambda at t = 0.

    Raises UserError unless log_snr_min < log_snr_max, both finite.

    Example:
        >>> schedule = scoremle.Cosine(-12.0, 12.0)
        >>> print(f"{schedule.time_of_log_snr(jnp.asarray(0.0)):.3f}")
        0.500
    """

    log_snr_min: Scalar = -15.0
    log_snr_max: Scalar = 15.0

    def __post_init__(self) -> None:
        _check_ends(self)

    @property
    def _angles(self) -> tuple[Times, Times, Times]:
        """The angle at t = 0, the right angle minus the angle at t = 1, and their distance."""
        first = jnp.arctan(jnp.exp(-jnp.asarray(self.log_snr_max) / 2))
        lacking = jnp.arctan(jnp.exp(jnp.asarray(self.log_snr_min) / 2))
        return first, lacking, jnp.pi / 2 - first - lacking

    def log_snr(self, t: Times) -> Times:
        first, lacking, between = self._angles
        # The cosine is the sine of the complement, which keeps its digits near a right angle.
        cosine, sine = jnp.sin(lacking + (1 - t) * between), jnp.sin(first + t * between)
        return 2 * (jnp.log(cosine) - jnp.log(sine))

    def time_of_log_snr(self, lam: Times) -> Times:
        first, _, between = self._angles
        return (jnp.arctan(jnp.exp(-lam / 2)) - first) / between


def alpha_squared(betas: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """alpha^2 at each step: the product of 1 - beta up to it, in the precision of the betas.

    Networks were trained with these tables. (PyTorch multiplies in float64, and rounds.)
    """
    return np.cumprod(1 - betas, dtype=np.float64).astype(betas.dtype)


@frozen_pytree(eq=False)
class Discrete(Schedule):
    """Schedule of T steps, with lambda linear between them; t = (label + 1) / T.

    Likelihoods begin at ``eps`` = 1/T, the first step, whose label is 0.

    Args:
        log_snrs: lambda at each step.

    Raises UserError for fewer than two steps, and for a lambda that is not finite or does not
    fall.

    Example:
        >>> schedule = scoremle.Discrete.of_betas(np.linspace(1e-4, 0.02, 1000))
        >>> schedule.steps, schedule.eps
        (1000, 0.001)
    """

    log_snrs: Float[Array | np.ndarray, " T"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "log_snrs", as_array(self.log_snrs, "log_snrs"))
        if np.ndim(self.log_snrs) != 1 or self.steps < 2:
            raise UserError(f"{self}: log_snrs must be those of two steps or more")
        require(self, lambda: np.diff(self.log_snrs) < 0, "log_snrs must fall from step to step")
        require(
            self,
            lambda: np.isfinite(self.log_snrs),
            "log_snrs must be finite: give log_snr_min to end there",
        )

    def __repr__(self) -> str:
        return f"Discrete({self.steps} steps)"

    @classmethod
    def of_betas(
        cls, betas: Float[np.ndarray, " T"], *, log_snr_min: float = -np.inf
    ) -> "Discrete":
        """Makes a schedule of DDPM's betas: alpha^2 at a step is the product of 1 - beta up to it.

        Args:
            betas: one for each step, above 0 and at most 1; alpha^2 is rounded to their precision.
            log_snr_min: lambda at a last step whose beta is 1, for which it must be given. If the
                step before has no more than that, the last one has 1 less than the step before.

        Raises UserError for other betas.
        """
        betas = np.asarray(as_array(betas, "betas"))
        if betas.ndim != 1 or not np.all((betas > 0) & (betas <= 1)):
            raise UserError("betas must be numbers above 0, and at most 1")
        with np.errstate(divide="ignore"):
            alpha2 = alpha_squared(betas).astype(np.float64)
            log_snrs = np.log(alpha2) - np.log1p(-alpha2)
        lowest = np.min(log_snrs, where=np.isfinite(log_snrs), initial=np.inf)
        end = log_snr_min if log_snr_min < lowest else lowest - 1
        return cls(np.where(np.isneginf(log_snrs), end, log_snrs))

    @property
    def steps(self) -> int:
        return np.size(self.log_snrs)

    @property
    def eps(self) -> float:
        """The time of the first step."""
        return 1 / self.steps

    def label(self, t: Times) -> Times:
        """The number of the step at t, counted from 0: between two steps, between two numbers.

        Args:
            t: times, of which (label + 1) / steps are those of the steps.
        """
        return self.steps * t - 1

    def log_snr(self, t: Times) -> Times:
        t = floating(t)
        table = jnp.asarray(self.log_snrs, t.dtype)
        # Of a product, which is rounded once: XLA may compute it twice, and label(t), a product
        # less 1, once with and once without a rounding between. Two steps would be mixed up then.
        before = jnp.clip(jnp.floor(self.steps * t) - 1, 0, self.steps - 2).astype(int)
        share = self.label(t) - before
        return table[before] + share * (table[before + 1] - table[before])

    def time_of_log_snr(self, lam: Times) -> Times:
        lam = floating(lam)
        table = jnp.asarray(self.log_snrs, lam.dtype)
        before = jnp.clip(jnp.searchsorted(-table, -lam, side="right") - 1, 0, self.steps - 2)
        share = (lam - table[before]) / (table[before + 1] - table[before])
        return (before + share + 1) / self.steps


def _check_sigmas(schedule: GeometricSigma | KarrasSigma) -> None:
    require(
        schedule,
        lambda: 0 < schedule.sigma_min < schedule.sigma_max < np.inf,
        "sigma_min must be above 0 and below sigma_max, both finite",
    )


def _check_ends(schedule: LinearLogSNR | Cosine) -> None:
    require(
        schedule,
        lambda: -np.inf < schedule.log_snr_min < schedule.log_snr_max < np.inf,
        "log_snr_min must be below log_snr_max, and both finite",
    )
