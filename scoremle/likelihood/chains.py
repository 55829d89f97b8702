"""The chain of steps of a model's bound: all of its own, some of them, or VDM's.

A model with a discrete schedule has a chain of its own. Some of its steps, evenly spaced and with
both ends, are a chain too (``timestep_respacing`` of Nichol and Dhariwal, arXiv 2102.09672). Any
other schedule is cut into steps as VDM has them (Kingma et al., arXiv 2107.00630): even in
log-SNR, with the least variance, and nothing clipped.

Where VDM's network was trained, on the middles of bins, the chain begins with a noise under which
the levels can still be told apart, and the decoder knows the levels alone. Other networks were
trained on dequantized data, or in steps that begin later, and predict little of that noise: their
chain begins where the noise is half a bin, and the decoder is around the network's estimate.
"""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from scoremle.core.dequantize import truncation_start
from scoremle.core.pixels import Pixels
from scoremle.core.schedules import Discrete
from scoremle.core.sde import SDE
from scoremle.core.times import even_times
from scoremle.errors import UserError
from scoremle.likelihood.decoders import Decoder, DiscreteDecoder, InformedDecoder
from scoremle.likelihood.steps import BySteps

__all__ = ["chain_of"]


# The decoder's scale, in units of the noise where the chain begins: an estimate by many pixels is
# nearer than by one. 0.6 is better for digits by 0.02 bits/dim, worse for Fashion-MNIST by 0.01.
SCALE = 0.8


def chain_of(
    steps: int,
    sde: SDE,
    eps: float,
    pixels: Pixels,
    own: BySteps | None = None,
    *,
    middles: bool = False,
) -> BySteps:
    """The bound of a chain of so many steps.

    Args:
        steps: how many: of a discrete schedule its own, of another those between times.
        sde: what noise is added when.
        eps: the smallest time.
        pixels: what the images are.
        own: of the model's own chain, if it is known: its variance, and whether it clips.
        middles: the network was trained on the middles of bins.

    Raises UserError for fewer than two steps, and for more than a discrete schedule has; and
    ValueError for a schedule that has a log-SNR for each dimension.
    """
    if steps < 2:
        raise UserError(f"a chain has two steps or more, not {steps}")
    schedule = sde.schedule
    if not isinstance(schedule, Discrete):
        points, start = np.asarray(pixels.points), truncation_start(sde, eps, pixels)
        decoder: Decoder = DiscreteDecoder(points)
        if not middles:
            start = truncation_start(sde, eps, pixels, half=1)
            decoder = InformedDecoder(points, SCALE * jnp.exp(-sde.common_log_snr(start) / 2))
        times = np.asarray(even_times(sde, start, steps)[::-1])
        return BySteps(times, clip=False, decoder=decoder)
    if steps > schedule.steps:
        raise UserError(f"the chain has {schedule.steps} steps, not {steps}")
    labels = np.round(np.linspace(0, schedule.steps - 1, steps))
    return replace(own or BySteps(), times=(labels + 1) / schedule.steps)
