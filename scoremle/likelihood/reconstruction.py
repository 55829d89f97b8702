"""The last term of the bound: from the noisy data x_eps at t = eps back to the data, in nats.

    E[ -log p(data | x_eps) ],        x_eps = alpha y + sigma z

*Gaussian*: what the network says of y, q = N((x_eps - sigma eps) / alpha, (sigma/alpha)^2 I), a
density (Song, Durkan et al., arXiv 2101.09258, theorem 3):

    E[ 1/2 ||eps - z||^2 ] + D/2 (log 2 pi - lambda_eps)

*Entropy*: none, so that the bound is one on the density of x_eps itself; its entropy given y
stands in the place. *Discrete*: integers k that stand at points y_k, each dimension decoded by
Bayes' rule with equal prior odds (Kingma et al., arXiv 2107.00630, equation 8),

    p(k | x_eps) = softmax_k( -(x_eps / alpha - y_k)^2 / (2 s^2) ),       s = sigma / alpha,

whose expectation is an integral over one normal variable for each k: a table, without random
error.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scoremle.core.sde import SDE
from scoremle.numerics import sum_data, sum_over
from scoremle.types import Data, IntImages, PerExample, Times

__all__ = ["LOG_2PI", "Discrete", "Entropy", "Gaussian", "Reconstruction", "decoding_cost"]

LOG_2PI = math.log(2 * math.pi)
# The trapezoidal rule over the normal variable. It converges as fast as for the normal density.
REACH, NODES = 10.0, 401


class Reconstruction(Protocol):
    """A part that is known, and one that is drawn with the network's prediction at t = eps.

    ``bounds`` says what the whole bound then is a bound on. Where nothing is ``random``, the
    network is not asked.
    """

    @property
    def bounds(self) -> Literal["density", "probability"]: ...

    @property
    def random(self) -> bool: ...

    def encode(self, integers: IntImages) -> Data | None:
        """Where integers stand, if they are decoded; None if they are to be dequantized."""
        ...

    def known(self, sde: SDE, y: Data, integers: IntImages | None, t: Times) -> PerExample:
        """The part without random error; ``integers`` are what ``y`` encodes, if it does."""
        ...

    def drawn(self, prediction: Data, z: Data, centred: PerExample) -> PerExample:
        """A draw of the rest, by the noise z and the network's prediction of it.

        ``centred`` is a function of z, of mean zero, near half its squared norm: to be subtracted.
        """
        ...


@jax.tree_util.register_static
@dataclass(frozen=True)
class Gaussian:
    """The Gaussian around the network's estimate of the data."""

    bounds: ClassVar[Literal["density", "probability"]] = "density"
    random: ClassVar[bool] = True

    def encode(self, integers: IntImages) -> None:
        return None

    def known(self, sde: SDE, y: Data, integers: IntImages | None, t: Times) -> PerExample:
        return sum_over(LOG_2PI - sde.log_snr(t), y) / 2

    def drawn(self, prediction: Data, z: Data, centred: PerExample) -> PerExample:
        return sum_data(jnp.square(prediction - z)) / 2 - centred


@jax.tree_util.register_static
@dataclass(frozen=True)
class Entropy:
    """No step to the data: the bound is one on the density of the model at t = eps."""

    bounds: ClassVar[Literal["density", "probability"]] = "density"
    random: ClassVar[bool] = False

    def encode(self, integers: IntImages) -> None:
        return None

    def known(self, sde: SDE, y: Data, integers: IntImages | None, t: Times) -> PerExample:
        return sum_over((1 + LOG_2PI) / 2 + jnp.log(sde.sigma(t)), y)

    def drawn(self, prediction: Data, z: Data, centred: PerExample) -> PerExample:
        return jnp.zeros_like(centred)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Discrete:
    """Integers k at ``points`` y_k, without dequantization: the bound is one on their probability.

    Of an SDE whose log-SNR is one number at each t.
    """

    points: Float[np.ndarray, " levels"] | Float[Array, " levels"]

    bounds: ClassVar[Literal["density", "probability"]] = "probability"
    random: ClassVar[bool] = False

    def encode(self, integers: IntImages) -> Data:
        return jnp.asarray(self.points, float)[integers]

    def known(self, sde: SDE, y: Data, integers: IntImages | None, t: Times) -> PerExample:
        if integers is None:
            raise ValueError("the discrete decoder is of integers: pass them as integers=")
        points = jnp.asarray(self.points, y.dtype)
        return sum_data(decoding_cost(points, sde.log_snr(t[0]))[integers])

    def drawn(self, prediction: Data, z: Data, centred: PerExample) -> PerExample:
        return jnp.zeros_like(centred)


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
        return jax.nn.logsumexp(exponents, axis=0) @ weights

    return jax.lax.map(cost, points)
