"""How many nodes a likelihood needs: measured on a few images, for a solver error that is known.

A solver's error should not show beside the probes' own: it costs the same network evaluations,
and unlike theirs its sign may be the same for all images. On a few images and with the same probes
the fixed-node solver is compared with itself at many nodes, and these with half as many, whose
difference tells how far to trust them. The fewest nodes whose error is below a share of the
probes' standard error, and below a limit, are taken.
"""

import math
from dataclasses import dataclass

import jax
import numpy as np

from scoremle.arrays import Data, NoiseFn, PRNGKey
from scoremle.divergence import DivergenceEstimator, FixedProbe
from scoremle.likelihood import ode_log_likelihood
from scoremle.multistep import Multistep, Planned
from scoremle.sde import SDE

__all__ = ["PILOT_IMAGES", "Auto", "Choice", "choose_nodes"]

NODES = (12, 16, 24, 32, 48, 64, 96, 128)
FINEST = 256
PILOT_IMAGES = 8
# The solver's error is at most this share of the probes' standard error, and at most this many
# bits/dim: an error of the mean counts where that of an image no longer does.
SHARE = 0.25
LIMIT = 0.005


@dataclass(frozen=True)
class Auto(Multistep):
    """Nodes still to be chosen by ``choose_nodes``; until then as many as are given."""


@dataclass(frozen=True)
class Choice:
    """The nodes chosen, and what was measured there, all in bits/dim over the pilot's images.

    ``solver_error`` is a root mean square, with what is uncertain of the solution that it was
    measured against; ``solver_bias`` is the mean error with its sign, and its standard error;
    ``probe_stderr`` is what the probes of one image leave. ``met`` is false if even the most nodes
    missed the aim.
    """

    nodes: int
    solver_error: float
    solver_bias: float
    solver_bias_stderr: float
    probe_stderr: float
    images: int
    met: bool


def choose_nodes(
    noise: NoiseFn,
    sde: SDE,
    x: Data,
    key: PRNGKey,
    *,
    eps: float,
    divergence: DivergenceEstimator,
) -> Choice:
    """The fewest of ``NODES`` that are enough for ``x``, a few of the images to be measured."""
    key_probe, key_fresh = jax.random.split(key)
    fixed = divergence if not divergence.random else FixedProbe(divergence.draw(key_probe, x))
    bits = x[0].size * math.log(2)

    # The plan is an argument: one compilation serves all numbers of nodes.
    @jax.jit
    def value(x: Data, solver: Planned) -> jax.Array:
        return ode_log_likelihood(
            noise, sde, x, key_probe, eps=eps, divergence=fixed, solver=solver
        ).log_prob

    def run(steps: int) -> np.ndarray:
        return np.asarray(value(x, Planned.of(steps, FINEST)), np.float64) / bits

    scatter = 0.0
    if divergence.random:
        found = jax.jit(
            lambda x: ode_log_likelihood(
                noise, sde, x, key_fresh, eps=eps, divergence=divergence, solver=Multistep(32)
            ).probe_stderr
        )(x)
        scatter = float(np.sqrt(np.mean(np.square(np.asarray(found) / bits))) * math.sqrt(32))
    truth = run(FINEST)
    doubt = run(FINEST // 2) - truth
    for steps in NODES:
        error = run(steps) - truth
        size = float(np.sqrt(np.mean(np.square(error) + np.square(doubt))))
        probe = scatter / math.sqrt(steps)
        aim = min(LIMIT, SHARE * probe) if divergence.random else LIMIT
        if met := size <= aim:
            break
    bias_stderr = float(np.sqrt(np.mean(np.var(error) + np.square(doubt)) / len(x)))
    return Choice(steps, size, float(error.mean()), bias_stderr, probe, len(x), met)
