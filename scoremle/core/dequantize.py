"""Dequantizers: noise u in [0, 1) that turns integers into reals, with its log-density.

    -log P(x) <= E_q[ log q(u | x) - log p(y) ] - D log dy/du,      y = pixels.encode(x, u)

*Uniform* noise is what a model is usually trained with. *Truncated normal* noise (Zheng et al.,
arXiv 2305.03935) is the model's own noise at a time t, cut off at the edges of the bin of y: for a
model that was trained on the middles of bins, without noise of its own. *A flow* is trained to
make the bound tight (Ho et al., arXiv 1902.00275).
"""

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scoremle.core.arguments import check_kind
from scoremle.core.keys import example_keys, per_example
from scoremle.core.pixels import Pixels
from scoremle.core.pytree import frozen_pytree, frozen_static, static
from scoremle.core.sde import SDE, check_eps
from scoremle.numerics import dims_of, sum_data
from scoremle.types import Data, IntImages, Keys, PerExample, PRNGKey, Scalar, Times

__all__ = [
    "Dequantizer", "Flow", "TruncatedNormal", "Uniform", "levels_are_hidden", "truncation_start",
]  # fmt: skip

# The largest u below one.
BELOW_ONE = float(1 - np.finfo(np.float32).epsneg)
# Half a bin, in standard deviations of the noise where the truncated normal begins.
HALF_BIN = 3.0


@runtime_checkable
class Dequantizer(Protocol):
    """Draws u in [0, 1) for integer images by one key or one for each, with log q(u | x) in nats.

    ``start`` is the time t of the noise that u represents: y then is z / alpha_t, of a z at that
    time. None if u is other noise: z then is at the model's smallest time.
    """

    @property
    def start(self) -> Scalar | None: ...

    def __call__(self, key: Keys, x: IntImages) -> tuple[Data, PerExample]: ...


@frozen_static
class Uniform:
    """Uniform noise u in [0, 1), independent of the image: log q = 0.

    Args:
        start: None, always: this is not the noise of any time.

    Example:
        >>> u, log_q = scoremle.Uniform()(jax.random.key(0), jnp.zeros((2, 3), int))
        >>> print(u.shape, log_q)
        (2, 3) [0. 0.]
    """

    start: None = None

    def __call__(self, key: Keys, x: IntImages) -> tuple[Data, PerExample]:
        keys = example_keys(key, len(x))
        return per_example(jax.random.uniform, keys, x.shape[1:]), jnp.zeros(len(x))


@frozen_pytree
class TruncatedNormal:
    """The noise of the SDE at t = ``start`` around the middle of a bin, cut off at its edges.

    z = alpha m + sigma e lies in the bin that is scaled by alpha, where |e| <= kappa, half a bin
    in units of sigma. As u = (1 + e / kappa) / 2, its density is 2 kappa N(e) / erf(kappa/sqrt 2)
    for each pixel (Zheng et al., arXiv 2305.03935).

    Args:
        sde: what noise there is at a time.
        start: the time of the noise.
        pixels: what integers are as reals.

    Raises UserError for a start outside [0, 1), and a log-SNR that each dimension has of its own.

    Example:
        >>> dequantizer = scoremle.TruncatedNormal(scoremle.VP(), 1e-4)
        >>> u, log_q = dequantizer(jax.random.key(0), jnp.zeros((500, 1), int))
        >>> print(f"{jnp.mean(jnp.exp(-log_q)):.1f}")  # the length of [0, 1)
        1.0
    """

    sde: SDE
    start: Scalar
    pixels: Pixels = static(default=Pixels())

    def __post_init__(self) -> None:
        check_eps(self.sde, self.start, "start")
        check_kind("pixels", self.pixels, Pixels, "scoremle.Pixels(256)")

    def __call__(self, key: Keys, x: IntImages) -> tuple[Data, PerExample]:
        kappa = half_bin(self.sde.common_log_snr(self.start), self.pixels)

        def noise(key: PRNGKey, shape: tuple[int, ...]) -> Data:
            return jax.random.truncated_normal(key, -kappa, kappa, shape)

        e = per_example(noise, example_keys(key, len(x)), x.shape[1:])
        u = jnp.clip((1 + e / kappa) / 2, 0, BELOW_ONE)
        log_mass = jnp.log(jax.lax.erf(kappa / math.sqrt(2)))
        log_norm = jnp.log(2 * kappa) - math.log(2 * math.pi) / 2 - log_mass
        return u, dims_of(x) * log_norm - sum_data(jnp.square(e)) / 2


@frozen_pytree
class Flow:
    """u from a trained flow: ``apply(params, e, x)`` gives u and log q(u | x).

    e is standard normal, and x the image scaled to [0, 1].

    Args:
        apply: gives u and log q(u | x), in nats, of params, e and x.
        params: the flow's parameters.
        levels: the number of grey values a channel.
        start: None: u is not noise of the SDE.
    """

    apply: Callable[[Any, Data, Data], tuple[Data, PerExample]] = static()
    params: Any = None
    levels: int = static(default=256)
    start: None = static(default=None)

    def __call__(self, key: Keys, x: IntImages) -> tuple[Data, PerExample]:
        e = per_example(jax.random.normal, example_keys(key, len(x)), x.shape[1:])
        return self.apply(self.params, e, x / (self.levels - 1))


def half_bin(log_snr: Times, pixels: Pixels) -> Array:
    """kappa: half a bin, in units of the noise at a log-SNR."""
    return jnp.exp(pixels.log_det_per_dim + log_snr / 2) / 2


def levels_are_hidden(sde: SDE, t: Scalar, pixels: Pixels) -> bool:
    """Whether half a bin is less than the noise at t in any dimension.

    Args:
        sde: the noise at each time.
        t: the time.
        pixels: those whose bins count.
    """
    # At t = 0 a log-SNR is known that depends on a code elsewhere.
    log_snr = sde.schedule.at_zero() if t == 0 else sde.log_snr(t)
    return bool(np.min(half_bin(log_snr, pixels)) < 1)


def truncation_start(
    sde: SDE, eps: Scalar, pixels: Pixels, half: float = HALF_BIN
) -> Float[Array, ""]:
    """The t at which half a bin is ``half`` standard deviations; ``eps`` if that is later.

    Where each dimension has its own log-SNR, there is no other such time than ``eps``.

    Args:
        sde: the noise at each time.
        eps: the least time.
        pixels: those whose bins count.
        half: half a bin in units of the noise; levels can still be distinguished at three.
    """
    if sde.schedule.per_dimension:
        return jnp.asarray(eps)
    log_snr = 2 * (math.log(2 * half) - pixels.log_det_per_dim)
    return jnp.maximum(eps, sde.time_of_log_snr(jnp.asarray(log_snr)))
