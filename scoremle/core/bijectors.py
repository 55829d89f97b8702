"""Invertible maps of data, each with the logarithm of its determinant.

    log p(x) = log p(z) + log |det dz/dx|,        z = forward(x)

Networks are made for data of mean zero and standard deviation one, and a diffusion for data
without bounds. At t = eps, where a likelihood starts and samples end, data have shrunk by alpha:
that is a map as well (`AtTime`). All maps here act on each dimension alone.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from scoremle.core.arguments import as_array, as_data, as_reals, check_kind
from scoremle.core.pytree import frozen_pytree, known, require
from scoremle.core.sde import SDE, check_dimensions
from scoremle.errors import UserError
from scoremle.numerics import expand, floating, sum_data, sum_over, varies
from scoremle.types import Data, DataLike, PerExample, Scalar

__all__ = [
    "Affine", "AtTime", "Bijector", "Bounded", "Chain", "forward_of", "in_all_digits",
    "inverse_of",
]  # fmt: skip


@runtime_checkable
class Bijector(Protocol):
    """A map of data to what a network sees, and back."""

    def forward(self, x: Data) -> tuple[Data, PerExample]:
        """z, and log |det dz/dx| of each example.

        Args:
            x: [b *d] data.
        """
        ...

    def inverse(self, z: Data) -> Data:
        """Returns the data of z.

        Args:
            z: [b *d].
        """
        ...


def forward_of(bijector: Bijector, x: Data) -> tuple[Data, PerExample]:
    """``forward`` of data, checked.

    Args:
        bijector: the map, which may be a user's own.
        x: [b *d] data.

    Raises UserError unless it gives z of the shape of x, and a logarithm for each example.
    """
    found = bijector.forward(x)
    check_kind("what forward gives", found, tuple, "(z, log_det)")
    shapes = [*map(np.shape, found)]
    if shapes != [x.shape, x.shape[:1]]:
        raise UserError(
            f"forward of {type(bijector).__name__} must give z of shape {x.shape} and log_det of"
            f" shape {x.shape[:1]}, not {' and '.join(map(str, shapes))}"
        )
    return found


def inverse_of(bijector: Bijector, z: Data) -> Data:
    """``inverse`` of z, checked.

    Args:
        bijector: the map, which may be a user's own.
        z: [b *d].

    Raises UserError unless it gives data of the shape of z.
    """
    x = bijector.inverse(z)
    if np.shape(x) != z.shape:
        raise UserError(
            f"inverse of {type(bijector).__name__} must give data of shape {z.shape}, not"
            f" {np.shape(x)}"
        )
    return x


def in_all_digits(bijector: Bijector, x: Float[np.ndarray, "b *d"]) -> Data:
    """``forward`` of data in float64: beside an offset they have more digits than float32.

    Args:
        bijector: the map.
        x: [b *d] data.
    """
    with jax.enable_x64(True):
        return forward_of(bijector, jnp.asarray(x, float))[0]


@frozen_pytree(eq=False)
class Affine:
    """Map z = (x - shift) / scale.

    Args:
        shift: a number, or one for each dimension.
        scale: likewise; none is 0.

    Raises UserError for a scale of 0, what is not finite, both in float32, and what are not
    numbers or not of one shape.

    Example:
        >>> z, log_det = scoremle.Affine(1.0, 2.0).forward(jnp.asarray([[3.0, 1.0]]))
        >>> print(z, f"{log_det[0]:.3f}")  # -2 log 2
        [[1. 0.]] -1.386
    """

    shift: ArrayLike
    scale: ArrayLike

    def __post_init__(self) -> None:
        _check_numbers(self, shift=self.shift, scale=self.scale)
        require(self, lambda: np.isfinite(_in_float32(self.shift)), "shift must be finite")
        # And its inverse, in float32, which most data have.
        least = np.finfo(np.float32).tiny
        require(
            self,
            lambda: np.isfinite(of := _in_float32(self.scale)) & (np.abs(of) >= least),
            "scale must not be 0, and finite",
        )

    def __repr__(self) -> str:
        return "Affine"

    @classmethod
    def standardizing(cls, x: DataLike) -> "Affine":
        """Makes the map that gives such data mean 0 and standard deviation 1 in each dimension.

        Args:
            x: data, two examples or more.

        Raises UserError for what are not finite reals, and for a dimension in which all are equal.
        """
        if len(as_data(x)) < 2:
            raise UserError("x must have two examples or more")
        digits = np.asarray(x, np.float64)
        mean, std = np.mean(digits, axis=0), np.std(digits, axis=0)
        if not varies(digits).all():
            raise UserError("x is the same in all examples, in some dimension")
        return cls(mean, std)

    def forward(self, x: Data) -> tuple[Data, PerExample]:
        (shift, scale), x = _like(x, self.shift, self.scale)
        log_scale = jnp.broadcast_to(jnp.log(jnp.abs(scale)), x.shape)
        return (x - shift) / scale, -sum_data(log_scale)

    def inverse(self, z: Data) -> Data:
        (shift, scale), z = _like(z, self.shift, self.scale)
        return shift + scale * z


@frozen_pytree(eq=False)
class Bounded:
    """Map from (``low``, ``high``) to all reals: log(x - low) - log(high - x).

    A bound that is infinite is none, and its logarithm is left out: of data that are positive,
    ``Bounded(low=0.0)`` gives log x. Where both are infinite, z = x.

    Args:
        low: a number, or one for each dimension.
        high: likewise.

    Raises UserError unless low < high, and for what are not numbers or not of one shape.

    Example:
        >>> bounded = scoremle.Bounded(np.asarray([0.0, -np.inf]), np.asarray([1.0, np.inf]))
        >>> z, log_det = bounded.forward(jnp.asarray([[0.5, 7.0]]))
        >>> print(z, f"{log_det[0]:.3f}")  # log 4, as dz/dx = 1 / (x (1 - x))
        [[0. 7.]] 1.386
    """

    low: ArrayLike = -np.inf
    high: ArrayLike = np.inf

    def __post_init__(self) -> None:
        _check_numbers(self, low=self.low, high=self.high)
        require(self, lambda: np.less(self.low, self.high), "low must be below high")

    def __repr__(self) -> str:
        return "Bounded"

    def _ends(self, x: Data) -> tuple[Array, ...]:
        """``x``, the bounds with 0 in place of none, and whether there are any."""
        (low, high), x = _like(x, self.low, self.high)
        below, above = jnp.isfinite(low), jnp.isfinite(high)
        return x, jnp.where(below, low, 0), jnp.where(above, high, 0), below, above

    def forward(self, x: Data) -> tuple[Data, PerExample]:
        x, low, high, below, above = self._ends(x)
        log_up = jnp.log(jnp.where(below, x - low, 1))
        log_down = jnp.log(jnp.where(above, high - x, 1))
        width = jnp.log(jnp.where(below & above, high - low, 1))
        z = jnp.where(below | above, log_up - log_down, x)
        return z, sum_data(width - log_up - log_down)

    def inverse(self, z: Data) -> Data:
        z, low, high, below, above = self._ends(z)
        up = low + jnp.exp(jnp.where(below & ~above, z, 0))
        down = high - jnp.exp(-jnp.where(above & ~below, z, 0))
        between = low + (high - low) * jax.nn.sigmoid(z)
        one = jnp.where(below, up, jnp.where(above, down, z))
        x = jnp.where(below & above, between, one)
        # Rounding may not lead to a bound, where the logarithm is infinite.
        x = jnp.where(below, jnp.maximum(x, _next(low, 1)), x)
        return jnp.where(above, jnp.minimum(x, _next(high, -1)), x)


def _in_float32(value: ArrayLike) -> np.ndarray:
    """Numbers as most data have them: infinite or 0 where float32 has none such."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(value, np.float32)


def _check_numbers(record: Any, **given: ArrayLike) -> None:
    """Raises UserError for what are not reals, and for shapes that do not go together."""
    if not known(record):
        return
    shapes = [as_reals(value, f"{record}: {name}").shape for name, value in given.items()]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        names = " and ".join(f"{n} of shape {s}" for n, s in zip(given, shapes, strict=True))
        raise UserError(f"{record}: {names} do not go together") from None


@frozen_pytree
class Chain:
    """Several maps, one after another.

    Args:
        maps: the first is that of the data.

    Raises UserError for what are not maps.

    Example:
        >>> chain = scoremle.Chain((scoremle.Bounded(low=0.0), scoremle.Affine(1.0, 2.0)))
        >>> z, _ = chain.forward(jnp.asarray([[jnp.e, jnp.e**3]]))
        >>> print(z)
        [[0. 1.]]
    """

    maps: tuple[Bijector, ...]

    def __post_init__(self) -> None:
        such = "scoremle.Affine(1.0, 2.0)"
        check_kind("maps", self.maps, tuple | list, f"({such},)")
        for each in self.maps:
            check_kind("each of maps", each, Bijector, such)

    def forward(self, x: Data) -> tuple[Data, PerExample]:
        log_det = jnp.zeros(len(x), jnp.asarray(x).dtype)
        for each in self.maps:
            x, change = forward_of(each, x)
            log_det = log_det + change
        return x, log_det

    def inverse(self, z: Data) -> Data:
        for each in reversed(self.maps):
            z = inverse_of(each, z)
        return z


@frozen_pytree
class AtTime:
    """z = alpha_t x: from the scale of the data to that of a model at time t.

    A density p_t of z is one of the data with noise of the size sigma_t / alpha_t,

        log p(x) = log p_t(alpha_t x) + sum_i log alpha_t,i

    where each dimension i has its own alpha, or all have the same.

    Args:
        sde: the noise at each time.
        t: the time.

    Example:
        >>> z, log_det = AtTime(scoremle.VP(), 0.5).forward(jnp.asarray([[1.0, 2.0]]))
        >>> print(z, f"{log_det[0]:.3f}")  # alpha is 0.2812
        [[0.2812 0.5623]] -2.538
    """

    sde: SDE
    t: Scalar

    def _log_alpha(self, x: Data) -> Array:
        check_dimensions(self.sde, x.shape[1:])
        return self.sde.log_alpha(jnp.full(len(x), self.t, x.dtype))

    def forward(self, x: Data) -> tuple[Data, PerExample]:
        x = floating(as_array(x, "x"))
        log_alpha = self._log_alpha(x)
        return expand(jnp.exp(log_alpha), x) * x, sum_over(log_alpha, x)

    def inverse(self, z: Data) -> Data:
        z = floating(as_array(z, "z"))
        return z / expand(jnp.exp(self._log_alpha(z)), z)


def _next(bound: Array, sign: int) -> Array:
    """The neighbour of a bound among the numbers that are not denormal."""
    tiny = sign * jnp.finfo(bound.dtype).tiny
    neighbour = jnp.nextafter(bound, jnp.full_like(bound, sign * jnp.inf))
    return jnp.where(bound == 0, tiny, neighbour)


def _like(x: Data, *numbers: ArrayLike) -> tuple[list[Array], Array]:
    """Numbers for an example, in the precision of ``x``, and ``x`` as an array of JAX."""
    x = floating(as_array(x, "x"))
    found = [jnp.asarray(as_array(number, "a bound"), x.dtype) for number in numbers]
    try:  # x is never broadcast: it would have another number of dimensions
        return [jnp.broadcast_to(number, (1, *x.shape[1:])) for number in found], x
    except ValueError:
        shapes = " and ".join(str(number.shape) for number in found)
        raise UserError(
            f"data of shape {x.shape} take a number, or one for each dimension, not {shapes}"
        ) from None
