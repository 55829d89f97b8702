"""The chain of steps of a model's bound: all of its own, some of them, or VDM's.

A model with a discrete schedule has a chain of its own. Some of its steps, evenly spaced and with
both ends, are a chain too (``timestep_respacing`` of Nichol and Dhariwal, arXiv 2102.09672). Any
other schedule is cut into steps as VDM has them (Kingma et al., arXiv 2107.00630): even in
log-SNR, with the least variance, nothing clipped, and a decoder that knows the levels alone. They
begin with a noise under which the levels can still be told apart. Nearer to the data a step has
nothing to tell, and a network that was trained on dequantized data knows nothing.
"""

from dataclasses import replace

import numpy as np

from scoremle.core.dequantize import levels_are_hidden, truncation_start
from scoremle.core.pixels import Pixels
from scoremle.core.schedules import Discrete
from scoremle.core.sde import SDE
from scoremle.core.times import even_times
from scoremle.errors import UserError
from scoremle.likelihood.decoders import DiscreteDecoder, InformedDecoder
from scoremle.likelihood.steps import BySteps

__all__ = ["chain_of"]


def chain_of(
    steps: int, sde: SDE, eps: float, pixels: Pixels, own: BySteps | None = None
) -> BySteps:
    """The bound of a chain of so many steps.

    Args:
        steps: how many: of a discrete schedule its own, of another those between times.
        sde: what noise is added when.
        eps: the smallest time.
        pixels: what the images are.
        own: of the model's own chain, if it is known: its variance, and whether it clips.

    Raises UserError for fewer than two steps, and for more than a discrete schedule has; and
    ValueError for a schedule that has a log-SNR for each dimension.
    """
    if steps < 2:
        raise UserError(f"a chain has two steps or more, not {steps}")
    schedule = sde.schedule
    if not isinstance(schedule, Discrete):
        times = np.asarray(even_times(sde, truncation_start(sde, eps, pixels), steps)[::-1])
        hidden, points = levels_are_hidden(sde, eps, pixels), np.asarray(pixels.points)
        decoder = InformedDecoder.at(sde, eps, points) if hidden else DiscreteDecoder(points)
        return BySteps(times, clip=False, decoder=decoder)
    if steps > schedule.steps:
        raise UserError(f"the chain has {schedule.steps} steps, not {steps}")
    labels = np.round(np.linspace(0, schedule.steps - 1, steps))
    return replace(own or BySteps(), times=(labels + 1) / schedule.steps)
