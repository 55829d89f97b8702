"""The last term of the bound: from the noisy data x_eps at t = eps back to the data, in nats.

    E[ -log p(data | x_eps) ],        x_eps = alpha y + sigma z

*Gaussian*: around the network's estimate of y, q = N((x_eps - sigma eps) / alpha, (sigma/alpha)^2
I), a density (Song, Durkan et al., arXiv 2101.09258, theorem 3):

    E[ 1/2 ||eps - z||^2 ] + D/2 (log 2 pi - lambda_eps)

*Entropy*: no step to the data. The bound is one on the density of x_eps itself, whose entropy
given y takes the place of this term. *Discrete*: integers k with values y_k, each dimension
decoded by Bayes' rule with equal prior odds (Kingma et al., arXiv 2107.00630, equation 8),

    p(k | x_eps) = softmax_k( -(x_eps / alpha - y_k)^2 / (2 s^2) ),       s = sigma / alpha,

whose expectation is an integral over one normal variable for each k: a table, without random
error. It needs no network, and costs 2.4 bits/dim where a model of 256 levels ends at lambda =
9.2. *Informed*: a Gaussian around the network's estimate of the data, integrated over the bin of k
(Ho et al., arXiv 2006.11239, equation 13),

    p(k | x_eps) = int_{bin k} N(y; (x_eps - sigma eps) / alpha, scale^2) dy

where bins meet halfway between the points, and those of the two end levels are open. The scale is
a number, or the choices of `scales.py`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scoremle.core.pytree import describe, frozen_pytree, frozen_static, static
from scoremle.core.sde import SDE
from scoremle.errors import UserError
from scoremle.likelihood.scales import LearnedScale, Scale
from scoremle.numerics import expand, log1mexp, sum_data, sum_over
from scoremle.types import Data, IntImages, PerExample, Times

__all__ = ["FAR", "Decoder", "DiscreteDecoder", "Entropy", "GaussianDecoder", "InformedDecoder"]

LOG_2PI = math.log(2 * math.pi)
# The trapezoidal rule over the normal variable. It converges as fast as for the normal density.
REACH, NODES = 10.0, 401
# Where the open bins end: infinity, but with gradients.
FAR = 1e6


def log_mass(log_cdf: Callable[[Data], Data], below: Data, above: Data) -> Data:
    """log of the probability between two numbers, of a distribution that is even around zero."""
    right = below + above > 0  # mirrored, so that the logarithm of a tail keeps its digits
    log_low = log_cdf(jnp.where(right, -above, below))
    log_high = log_cdf(jnp.where(right, -below, above))
    return log_high + log1mexp(log_high - log_low)


def log_normal_mass(below: Data, above: Data) -> Data:
    """log of the standard normal probability between two numbers."""
    return log_mass(jax.scipy.special.log_ndtr, below, above)


class Decoder(ABC):
    """A part that is known, and one that is drawn with the network's prediction at t = eps.

    ``bounds`` is what the whole bound then is a bound on, and ``title`` names it. The network is
    not evaluated where nothing is ``random``.
    """

    bounds: ClassVar[Literal["density", "probability"]] = "density"
    random: ClassVar[bool] = False

    @property
    @abstractmethod
    def title(self) -> str: ...

    def encode(self, integers: IntImages) -> Data | None:
        """Returns the points of the integers, if they are decoded; None to dequantize them.

        Args:
            integers: [b *d].
        """
        return None

    @abstractmethod
    def known(self, sde: SDE, y: Data, integers: IntImages | None, t: Times) -> PerExample:
        """The part without random error; ``integers`` are what ``y`` encodes, if it does.

        Args:
            sde: the noise at each time.
            y: [b *d] reals.
            integers: [b *d] what ``y`` encodes; None for reals.
            t: [b] times.
        """

    def drawn(
        self, error: Data, centred: PerExample, sde: SDE, integers: IntImages | None, t: Times,
        v: Data | None,
    ) -> PerExample:  # fmt: skip
        """A draw of the rest, by the ``error`` of the network's prediction of the noise at t.

        ``centred`` is a function of that noise, of mean zero, near half its squared norm: it may
        be subtracted. ``v`` is the output of a network with a learned range for its variance; None
        for another network. Zero of a decoder that is not ``random``.

        Args:
            error: [b *d] the predicted noise less the noise.
            centred: [b].
            sde: the noise at each time.
            integers: [b *d]; None for reals.
            t: [b] times.
            v: [b *d], or None.
        """
        return jnp.zeros_like(centred)


@frozen_static
class GaussianDecoder(Decoder):
    """The Gaussian around the network's estimate of the data."""

    random: ClassVar[bool] = True
    title: ClassVar[str] = "Gaussian decoder"

    def known(self, sde: SDE, y: Data, integers: IntImages | None, t: Times) -> PerExample:
        return sum_over(LOG_2PI - sde.log_snr(t), y) / 2

    def drawn(
        self, error: Data, centred: PerExample, sde: SDE, integers: IntImages | None, t: Times,
        v: Data | None,
    ) -> PerExample:  # fmt: skip
        return sum_data(jnp.square(error)) / 2 - centred


@frozen_static
class Entropy(Decoder):
    """No step to the data: the bound is one on the density of the model at t = eps."""

    title: ClassVar[str] = "no step to the data"

    def known(self, sde: SDE, y: Data, integers: IntImages | None, t: Times) -> PerExample:
        return sum_over((1 + LOG_2PI) / 2 + jnp.log(sde.sigma(t)), y)


@frozen_pytree(eq=False)
class DiscreteDecoder(Decoder):
    """Integers k at ``points`` y_k, without dequantization: the bound is one on their probability.

    Of an SDE whose log-SNR is one number at each t.
    """

    points: Float[Array | np.ndarray, " levels"]

    bounds: ClassVar[Literal["density", "probability"]] = "probability"
    title: ClassVar[str] = "discrete decoder"

    def encode(self, integers: IntImages) -> Data:
        return jnp.asarray(self.points, float)[integers]

    def known(self, sde: SDE, y: Data, integers: IntImages | None, t: Times) -> PerExample:
        """As ``Decoder.known``. Raises UserError without integers."""
        if integers is None:
            raise UserError("the discrete decoder is of integers: pass them as integers=")
        if len(y) == 0:
            return jnp.zeros(0, y.dtype)
        points = jnp.asarray(self.points, y.dtype)
        return sum_data(decoding_cost(points, sde.common_log_snr(t[0]))[integers])


@frozen_pytree(eq=False)
class InformedDecoder(Decoder):
    """Integers k at ``points`` y_k, decoded around the network's estimate of the data.

    Args:
        points: of the integers, in units of the data.
        scale: the standard deviation in units of the data: a number, or one for each pixel or
            channel; or a ``Scale``, which may depend on the image and on the network.
        log_mass: the log-probability between two numbers, in units of the scale; by default of
            the normal distribution.
    """

    points: Float[Array | np.ndarray, " levels"]
    scale: float | Float[Array, "*d"] | Scale
    log_mass: Callable[[Data, Data], Data] = static(default=log_normal_mass)

    bounds: ClassVar[Literal["density", "probability"]] = "probability"
    random: ClassVar[bool] = True

    @classmethod
    def at(
        cls, sde: SDE, t: float, points: Float[Array | np.ndarray, " levels"]
    ) -> "InformedDecoder":
        """The decoder at a time whose scale is that of the noise there, in units of the data.

        Args:
            sde: the noise at each time.
            t: the time.
            points: of the integers, in units of the data.
        """
        return cls(points, jnp.exp(-sde.log_snr(jnp.asarray(t)) / 2))

    @property
    def title(self) -> str:
        learned = isinstance(self.scale, LearnedScale)
        return "informed decoder" + " with the network's own scales" * learned

    def describe(self) -> dict[str, Any]:
        """The scale, as results state it: "learned" by the network, or what ``describe`` gives."""
        learned = isinstance(self.scale, LearnedScale)
        return {"decoder_scale": "learned" if learned else describe(self.scale)}

    def encode(self, integers: IntImages) -> Data:
        return jnp.asarray(self.points, float)[integers]

    def known(self, sde: SDE, y: Data, integers: IntImages | None, t: Times) -> PerExample:
        """As ``Decoder.known``. Raises UserError without integers."""
        if integers is None:
            raise UserError("the informed decoder is of integers: pass them as integers=")
        return jnp.zeros(len(y), y.dtype)

    def drawn(
        self, error: Data, centred: PerExample, sde: SDE, integers: IntImages | None, t: Times,
        v: Data | None,
    ) -> PerExample:  # fmt: skip
        assert integers is not None  # `known` requires them
        return -self.log_prob(error, sde, integers, t, v)

    def log_prob(
        self, error: Data, sde: SDE, integers: IntImages, t: Times, v: Data | None = None
    ) -> PerExample:
        """log p(k | x_t) in nats, by the ``error`` of the predicted noise in x_t, and by v.

        Args:
            error: [b *d] the predicted noise less the noise in x_t.
            sde: the noise at each time.
            integers: [b *d] those to decode.
            t: [b] times.
            v: [b *d] the network's output for its variance, if it has one.
        """
        points = jnp.asarray(self.points, error.dtype)
        halves, far = jnp.diff(points) / 2, jnp.full(1, FAR, error.dtype)
        below, above = jnp.concatenate([-far, -halves]), jnp.concatenate([halves, far])
        # From the point of k to the estimate: nothing large is subtracted.
        shift = -expand(jnp.exp(-sde.log_snr(t) / 2), error) * error
        scale = self.scale(integers, v) if callable(self.scale) else self.scale
        edges = ((edge[integers] - shift) / scale for edge in (below, above))
        return sum_data(self.log_mass(*edges))


def decoding_cost(
    points: Float[Array, " levels"], log_snr: Float[Array, ""]
) -> Float[Array, " levels"]:
    """E[-log p(k | z)] in nats for each level k."""
    e = np.linspace(-REACH, REACH, NODES)
    density = np.exp(-np.square(e) / 2)
    weights = jnp.asarray(density / density.sum(), points.dtype)

    def cost(point: Float[Array, ""]) -> Float[Array, ""]:
        # The exponent of level j beside that of the right one is -gap^2 / 2 - gap e.
        gap = (point - points)[:, None] * jnp.exp(log_snr / 2)
        exponents = -gap * (gap / 2 + jnp.asarray(e, points.dtype))
        return jnp.matmul(jax.nn.logsumexp(exponents, axis=0), weights, precision="highest")

    return jax.lax.map(cost, points)
