"""VDM's learned schedules, from the parameters that its checkpoints have (arXiv 2107.00630, H).

    scalar     -lambda(t) = b + |w| t
    network    -lambda(t) = b1 + |W1| t + |W3| (2 sigmoid(|W2| (2 t - 1) + b2) - 1) / H

with H hidden units. Absolute values make both rise with t, whatever the sign of a weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from scoremle.core.pytree import pytree
from scoremle.core.schedules import LinearLogSNR, Schedule
from scoremle.types import PRNGKey, Scalar, Times

__all__ = ["LEARNED_SCHEDULES", "first_schedule", "learned_schedule"]

LEARNED_SCHEDULES = ("scalar", "network")
HIDDEN = 1024
# Standard deviation of the network's weights at first.
SMALL = 0.01


@pytree
@dataclass(frozen=True, eq=False)
class MonotoneLogSNR(Schedule):
    """-lambda by a network that is monotone in t.

    Args:
        params: "l1" and "l2" with kernel and bias, and "l3" with a kernel.
    """

    params: Mapping[str, Any]

    def log_snr(self, t: Times) -> Times:
        first, inner, outer = (self.params[name] for name in ("l1", "l2", "l3"))
        weights = jnp.abs(inner["kernel"][0])
        hidden = 2 * jax.nn.sigmoid(weights * (2 * t[..., None] - 1) + inner["bias"]) - 1
        # Not by a matrix product, whose factors a GPU rounds to ten bits.
        bent = jnp.mean(hidden * jnp.abs(outer["kernel"][:, 0]), axis=-1)
        return -(first["bias"][0] + jnp.abs(first["kernel"][0, 0]) * t + bent)


def first_schedule(kind: str, low: Scalar, high: Scalar, key: PRNGKey) -> dict[str, Any]:
    """Parameters to begin with, whose log-SNR falls from ``high`` to nearly ``low``.

    Args:
        kind: "scalar" or "network".
        low: the log-SNR at t = 1.
        high: the log-SNR at t = 0.
        key: of the network's weights.
    """
    first, slope = jnp.full(1, -high), jnp.full(1, high - low)
    if kind == "scalar":
        return {"b": first, "w": slope}
    inner, outer = SMALL * jax.random.normal(key, (2, HIDDEN))
    return {
        "l1": {"kernel": slope[:, None], "bias": first},
        "l2": {"kernel": inner[None], "bias": jnp.zeros(HIDDEN)},
        "l3": {"kernel": outer[:, None]},
    }


def learned_schedule(params: Mapping[str, Any]) -> Schedule:
    """The schedule of VDM's parameters.

    Args:
        params: "w" and "b", or those of ``MonotoneLogSNR``.
    """
    if "l1" in params:
        return MonotoneLogSNR(params)
    first, slope = params["b"][0], jnp.abs(params["w"][0])
    return LinearLogSNR(-(first + slope), -first)
