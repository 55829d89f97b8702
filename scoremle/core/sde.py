"""Forward SDEs: dx = f(t) x dt + g(t) dw on t in [0, 1], with Gaussian perturbation kernels.

    p(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)
    lambda_t = log(alpha_t^2 / sigma_t^2)              log signal-to-noise ratio, falling in t
    f(t) = d log alpha_t / dt
    g(t)^2 = -sigma_t^2 d lambda_t / dt

The *schedule* is lambda(t), and the *kernel* gives alpha and sigma at a lambda: with the scale of
the prior they are an SDE. The rest is derived here, once. All forms are exact (expm1, log1p): in
float32 they are accurate to 1e-5 relative down to t = 1e-6, where 1 - e^-B has lost every digit.

Sources: Song et al. 2021 (arXiv 2011.13456) for the SDEs; Kingma et al. 2021 (arXiv 2107.00630)
for the log-SNR.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoremle.core import schedules
from scoremle.core.arguments import as_shape, check_choice, check_kind, check_number, check_part
from scoremle.core.kernels import KERNELS
from scoremle.core.keys import example_keys, per_example
from scoremle.core.pytree import describe, frozen_pytree, known, pytree
from scoremle.errors import UserError
from scoremle.numerics import expand, floating, sum_data
from scoremle.types import Data, Keys, PerExample, Scalar, Times

__all__ = [
    "SDE", "VE", "VP", "LinearVE", "SubVP", "check_dimensions", "check_eps", "check_time",
    "of_examples", "with_schedule",
]  # fmt: skip


# In place of t = 0, where factors of f and g^2 may be zero or infinite and only their product is
# finite.
SMALLEST = 1e-30
# Of a time in float32, as a share.
ROUNDING = 1e-6

Init = TypeVar("Init", bound=Callable[..., None])


@frozen_pytree
class SDE:
    """Forward SDE dx = f(t) x dt + g(t) dw on [0, 1];  p(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I).

    Methods of ``t`` are elementwise and take numbers or arrays of any shape. With a schedule that
    is ``per_dimension`` they give arrays of that shape and behind it the data's.

    Args:
        kernel: "vp", "subvp", "ve" or "straight".
        schedule: the log-SNR at each t.
        prior_std: standard deviation of the prior N(0, prior_std^2 I) at t = 1.

    Raises UserError for another kernel, what is not a schedule, and a prior_std not above 0.

    Example:
        >>> sde = scoremle.SDE("straight", scoremle.Cosine(), prior_std=1.0)
        >>> print(f"{sde.alpha(0.3) + sde.sigma(0.3):.4f}")
        1.0000
    """

    kernel: str = field(metadata={"static": True})
    schedule: schedules.Schedule
    prior_std: Scalar

    # The chain of steps that this SDE was published with, whose rules samplers follow.
    chain: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        check_choice("kernel", self.kernel, KERNELS)
        check_part("schedule", self.schedule, schedules.Schedule, "scoremle.Cosine()")
        check_number("prior_std", self.prior_std, above=0)

    def describe(self) -> dict[str, Any]:
        """Describes the SDE in values of JSON, which are the same for equal SDEs."""
        return describe(self)

    def at(self, code: Any) -> "SDE":
        """The SDE of the images that ``code`` describes. UserError if all have the same.

        Args:
            code: what the schedule takes of each image.
        """
        return dataclasses.replace(self, schedule=self.schedule.at(code))

    def log_snr(self, t: ArrayLike) -> Times:
        """lambda_t = log(alpha_t^2 / sigma_t^2).

        Args:
            t: times of any shape.
        """
        return _in_its_precision(self.schedule.log_snr, t)

    def common_log_snr(self, t: ArrayLike) -> Times:
        """``log_snr``, which all dimensions share. UserError where each has its own.

        Args:
            t: times of any shape.
        """
        return _in_its_precision(self.schedule.common_log_snr, t)

    def time_of_log_snr(self, lam: ArrayLike) -> Times:
        """The t at which the log-SNR is ``lam``.

        Args:
            lam: log-SNRs of any shape.
        """
        return _in_its_precision(self.schedule.time_of_log_snr, lam)

    def log_alpha(self, t: ArrayLike) -> Times:
        """Logarithm of the mean coefficient.

        Args:
            t: times of any shape.
        """
        return KERNELS[self.kernel].log_alpha(self.log_snr(t))

    def alpha(self, t: ArrayLike) -> Times:
        """Mean coefficient, by which data are multiplied.

        Args:
            t: times of any shape.
        """
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: ArrayLike) -> Times:
        """Standard deviation of the noise.

        Args:
            t: times of any shape.
        """
        return KERNELS[self.kernel].sigma(self.log_snr(t))

    def f(self, t: ArrayLike) -> Times:
        """Drift coefficient d log alpha / dt; at t = 0, its limit.

        Args:
            t: times of any shape.
        """
        t = jnp.maximum(t, SMALLEST)
        # Where sigma is too small for a float, the drift is, too, and the log-SNR has no rate.
        return jnp.where(self.sigma(t) == 0, 0, schedules.rate(self.log_alpha, t))

    def likelihood_weight(self, t: ArrayLike) -> Times:
        """g^2 / sigma^2 = -d lambda / dt: the paper's likelihood weighting of the noise loss.

        Args:
            t: times of any shape.
        """
        return -schedules.rate(self.log_snr, t)

    def g2(self, t: ArrayLike) -> Times:
        """Squared diffusion coefficient; at t = 0, its limit.

        Args:
            t: times of any shape.
        """
        t = jnp.maximum(t, SMALLEST)
        sigma = self.sigma(t)
        # Where sigma is too small for a float, g^2 is, too, and the other factor has no value.
        return jnp.where(sigma == 0, 0, jnp.square(sigma) * self.likelihood_weight(t))

    def perturb(self, x: Data, t: ArrayLike, noise: Data) -> Data:
        """A sample of p(x_t | x_0 = x), given standard normal ``noise``.

        Args:
            x: [b *d] data.
            t: [b] times.
            noise: [b *d] standard normal.
        """
        return expand(self.alpha(t), x) * x + expand(self.sigma(t), x) * noise

    def prior_log_prob(self, z: Data) -> PerExample:
        """log N(z; 0, prior_std^2 I) in nats.

        Args:
            z: [b *d] latents.
        """
        z = floating(z)
        std = jnp.asarray(self.prior_std, z.dtype)
        log_norm = 0.5 * jnp.log(2 * jnp.pi) + jnp.log(std)
        return -sum_data(jnp.square(z / std) / 2 + log_norm)

    def prior_sample(self, key: Keys, shape: tuple[int, ...]) -> Data:
        """``shape[0]`` draws of the prior, by one key or one for each.

        Args:
            key: one, or one for each example.
            shape: (b, *d).
        """
        shape = as_shape(shape, of_batch=True)
        keys = example_keys(key, shape[0])
        return self.prior_std * per_example(jax.random.normal, keys, shape[1:])


def _in_its_precision(function: Callable[[Times], Times], t: ArrayLike) -> Times:
    """``function(t)`` in the precision of ``t``: numbers of a schedule may have another."""
    t = floating(t)
    found = function(t)
    return found if found.dtype == t.dtype else found.astype(t.dtype)


def with_schedule(tree: Any, schedule: schedules.Schedule) -> Any:
    """A tree with another schedule in each SDE.

    Args:
        tree: any pytree.
        schedule: for all of them.
    """

    return _rescheduled(tree, lambda _: schedule)


def of_examples(tree: Any, indices: Any) -> Any:
    """A tree of which each SDE has the schedules of some examples, where each has its own.

    Args:
        tree: any pytree.
        indices: of the examples, or a slice.
    """

    return _rescheduled(tree, lambda schedule: schedule.taken(indices))


def _rescheduled(tree: Any, change: Callable[[schedules.Schedule], schedules.Schedule]) -> Any:
    """A tree whose SDEs have other schedules, by ``change``; an SDE that keeps its own stays."""

    def changed(node: Any) -> Any:
        if not isinstance(node, SDE) or (new := change(node.schedule)) is node.schedule:
            return node
        return dataclasses.replace(node, schedule=new)

    return jax.tree.map(changed, tree, is_leaf=lambda node: isinstance(node, SDE))


def check_sde(sde: Any) -> None:
    """Raises UserError for what is not an SDE.

    Args:
        sde: the argument of that name.
    """
    check_kind("sde", sde, SDE, "scoremle.VP()")


def check_time(eps: Any, name: str = "eps", at_zero: Callable[[], bool] = lambda: True) -> None:
    """Raises UserError unless ``eps`` is a time from 0 to below 1.

    Args:
        eps: the smallest time.
        name: of the argument, for the error.
        at_zero: gives whether it may be 0.
    """
    # By numpy: within a trace JAX gives no truth of its own comparison.
    if not (known(eps) and np.ndim(eps) == 0 and np.asarray(eps) == 0 and at_zero()):
        check_number(name, eps, 0, 1)


def check_eps(sde: SDE, eps: Any, name: str = "eps") -> None:
    """Raises UserError unless ``eps`` is a time from 0 to below 1 where the log-SNR is finite.

    A schedule of steps begins with its first. What is not an SDE is refused, too.

    Args:
        sde: the noise at each time.
        eps: the smallest time.
        name: of the argument, for the error.
    """
    check_sde(sde)
    check_time(eps, name, lambda: _is_finite_at_zero(sde))
    schedule = sde.schedule
    if isinstance(schedule, schedules.Discrete) and known(eps) and np.ndim(eps) == 0:
        first = schedule.eps
        if np.asarray(eps) < first * (1 - ROUNDING):
            raise UserError(f"{name} must be {first:g} or more, the first step, not {eps}")


def check_dimensions(sde: SDE, shape: tuple[int, ...]) -> None:
    """Raises UserError for a schedule of other dimensions than those of data of this shape.

    Args:
        sde: the noise at each time.
        shape: of one example.
    """
    if not sde.schedule.per_dimension or sde.schedule.per_example:
        return
    _, *found = jax.eval_shape(sde.log_snr, jax.ShapeDtypeStruct((1,), float)).shape
    suits = (n in (1, size) for n, size in zip(found, shape, strict=False))
    if len(found) != len(shape) or not all(suits):
        raise UserError(
            f"{type(sde.schedule).__name__} has log-SNRs of shape {tuple(found)}, where an example"
            f" has {shape}: each axis must have its length, or 1"
        )


def _is_finite_at_zero(sde: SDE) -> bool:
    if isinstance(sde.schedule, schedules.Discrete):  # it begins with its first step
        return False
    with jax.ensure_compile_time_eval():
        return not known(sde) or bool(jnp.isfinite(sde.schedule.at_zero()).all())


def _of_numbers(init: Init) -> Init:
    """A constructor that refuses the fields of SDE, which ``dataclasses.replace`` gives it."""
    numbers = ", ".join([*inspect.signature(init).parameters][1:])

    @functools.wraps(init)
    def constructor(self: SDE, *args: Any, **named: Any) -> None:
        if "kernel" in named:
            name = type(self).__name__
            raise TypeError(
                f"{name} is made of {numbers} alone: call {name}({numbers}) in place of replace,"
                " or replace fields of SDE(kernel, schedule, prior_std)"
            )
        init(self, *args, **named)

    return cast(Init, constructor)


def _of_schedule(name: str) -> Any:
    """A number of an SDE's schedule, as an attribute of the SDE."""
    return property(lambda sde: getattr(sde.schedule, name))


class _LinearBeta(SDE):
    """beta(t) = beta_min + t (beta_max - beta_min), and alpha^2 = e^-B with its integral B."""

    schedule: schedules.LinearBeta
    _kernel: ClassVar[str]
    beta_min, beta_max = _of_schedule("beta_min"), _of_schedule("beta_max")

    @_of_numbers
    def __init__(self, beta_min: Scalar = 0.1, beta_max: Scalar = 20.0) -> None:
        super().__init__(self._kernel, schedules.LinearBeta(beta_min, beta_max, self._kernel), 1.0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(beta_min={self.beta_min}, beta_max={self.beta_max})"

    def log_alpha(self, t: ArrayLike) -> Times:
        # Computed without lambda, through which it would lose a digit.
        return _in_its_precision(self.schedule.log_alpha, t)


@pytree
class VP(_LinearBeta):
    """Variance preserving: sigma^2 = 1 - alpha^2 (DDPM).

    Args:
        beta_min: beta at t = 0, where alpha^2 = exp(-integral of beta).
        beta_max: beta at t = 1.

    Raises UserError for a beta_min below 0, a beta_max of 0 or below, and values that are not
    finite.

    Example:
        >>> sde = scoremle.VP()
        >>> print(f"{sde.alpha(0.3) ** 2 + sde.sigma(0.3) ** 2:.4f}")
        1.0000
    """

    _kernel = "vp"
    chain = "ddpm"


@pytree
class SubVP(_LinearBeta):
    """Sub-VP: sigma = 1 - alpha^2, a smaller variance than VP at every t < 1.

    Args:
        beta_min: beta at t = 0, where alpha^2 = exp(-integral of beta).
        beta_max: beta at t = 1.

    Raises UserError for a beta_min below 0, a beta_max of 0 or below, and values that are not
    finite.

    Example:
        >>> sde = scoremle.SubVP()
        >>> print(f"{sde.alpha(0.3) ** 2 + sde.sigma(0.3):.4f}")
        1.0000
    """

    _kernel = "subvp"


@pytree
class VE(SDE):
    """Variance exploding: alpha = 1, sigma geometric from sigma_min to sigma_max (SMLD).

    Args:
        sigma_min: sigma at t = 0.
        sigma_max: sigma at t = 1, and the standard deviation of the prior.

    Raises UserError unless 0 < sigma_min < sigma_max.

    Example:
        >>> sde = scoremle.VE(0.01, 100.0)
        >>> print(f"{sde.sigma(0.5):.4f}")
        1.0000
    """

    schedule: schedules.GeometricSigma
    chain = "smld"
    sigma_min, sigma_max = _of_schedule("sigma_min"), _of_schedule("sigma_max")

    @_of_numbers
    def __init__(self, sigma_min: Scalar = 0.01, sigma_max: Scalar = 50.0) -> None:
        super().__init__("ve", schedules.GeometricSigma(sigma_min, sigma_max), sigma_max)

    def __repr__(self) -> str:
        return f"VE(sigma_min={self.sigma_min}, sigma_max={self.sigma_max})"


@pytree
class LinearVE(SDE):
    """Variance exploding: alpha = 1, sigma = t sigma_max.

    Args:
        sigma_max: sigma at t = 1, and the standard deviation of the prior.

    Raises UserError for a sigma_max that is not above 0.

    Example:
        >>> print(f"{scoremle.LinearVE(50.0).sigma(0.1):.4f}")
        5.0000
    """

    schedule: schedules.LinearSigma
    sigma_max = _of_schedule("sigma_max")

    @_of_numbers
    def __init__(self, sigma_max: Scalar = 50.0) -> None:
        super().__init__("ve", schedules.LinearSigma(sigma_max), sigma_max)

    def __repr__(self) -> str:
        return f"LinearVE(sigma_max={self.sigma_max})"
