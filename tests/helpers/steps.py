"""A training step as a function of one batch of images, or of a stack of them."""

import numpy as np

from scoremle import devices
from scoremle.training.program import make_program


def make_step(loss, optimizer, ema_rate, *, seed=0):
    program = make_program(loss, optimizer, ema_rate, seed=seed)

    def step(state, images):
        # Where its result will lie: else the second call would be compiled anew.
        state, single = devices.replicate(state), np.ndim(images) == 4
        state, rows = program(state, images[None] if single else images)
        return state, {name: row[0] for name, row in rows.items()} if single else rows

    return step
