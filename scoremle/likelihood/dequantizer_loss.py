"""Training loss of a flow dequantizer, per example, in nats.

    E[ log q(u | x) + bound(y) ],        bound(y) >= -log p(y),   y = pixels.encode(x, u)

The bound is that of `elbo.py` for a score model that does not change, from one draw of each of
its expectations, in one call of the network (Song, Durkan et al., arXiv 2101.09258, section 4.3).
"""

import jax

from scoremle.core.dequantize import Dequantizer
from scoremle.core.pixels import Pixels
from scoremle.core.sde import SDE
from scoremle.core.times import TimeSampler
from scoremle.likelihood.decoders import Decoder, GaussianDecoder
from scoremle.likelihood.elbo import elbo_at
from scoremle.types import IntImages, NoiseFn, PerExample, PRNGKey, Scalar

__all__ = ["dequantization_loss"]


def dequantization_loss(
    noise: NoiseFn,
    sde: SDE,
    pixels: Pixels,
    dequantizer: Dequantizer,
    x: IntImages,
    key: PRNGKey,
    *,
    eps: Scalar,
    times: TimeSampler,
    decoder: Decoder = GaussianDecoder(),
) -> PerExample:
    """A bound on -log P of integer images, in nats, without the constant of ``pixels``.

    Args:
        noise: eps(x, t).
        sde: the SDE that it belongs to.
        pixels: those of the images.
        dequantizer: gives the noise of the integers, and its log-density.
        x: [b *d] integers.
        key: draws noise and times.
        eps: the smallest time.
        times: how the times are drawn, over the batch.
        decoder: from t = eps to the data.
    """
    key_u, key_bound = jax.random.split(key)
    u, log_q = dequantizer(key_u, x)
    y = pixels.encode(x, u)
    key_t, key_rows = jax.random.split(key_bound)
    t, density = times(key_t, len(y))
    bound = elbo_at(
        noise, sde, y, key_rows,
        eps=eps, t=t[None], density=density[None], stratified=False,
        decoder=decoder, last_draws=int(decoder.random), at_once=True,
    )  # fmt: skip
    return log_q - bound.log_prob
