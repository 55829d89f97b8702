"""Learned schedules: two of VDM, and one whose ends are fitted apart from its shape.

Those of VDM have the parameters of its checkpoints (arXiv 2107.00630, H):

    scalar            b + |w| t
    network           g(t) = b1 + |W1| t + |W3| (2 sigmoid(|W2| (2 t - 1) + b2) - 1) / H
    least_variance    e_0 + (e_1 - e_0) (g(t) - g(0)) / (g(1) - g(0))

are -lambda(t), with H hidden units. Absolute values make all rise with t, whatever the sign of a
weight.

The mean of the one-sample loss L of the bound depends on the ends of the schedule alone, and so
the gradient of L is pure noise for the course between them. The third schedule has ends of its
own, which follow the gradient of L. Its course g follows that of L^2, whose mean then is the
variance but for a constant: E[2 L dL].
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scoremle.core.pytree import frozen_pytree
from scoremle.core.schedules import LinearLogSNR, Schedule, rate
from scoremle.types import PerExample, PRNGKey, Scalar, Times

__all__ = [
    "BETWEEN_ENDS", "LEARNED_SCHEDULES", "POLYNOMIAL", "BetweenEnds", "first_schedule",
    "learned_schedule", "with_least_variance",
]  # fmt: skip

BETWEEN_ENDS = "least_variance"
# The name of `polynomial_schedule`, which is loaded where it is used.
POLYNOMIAL = "polynomial"
LEARNED_SCHEDULES = ("scalar", "network", BETWEEN_ENDS)
HIDDEN = 1024
# Standard deviation of the network's weights at first.
SMALL = 0.01


@frozen_pytree(eq=False)
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


@frozen_pytree(eq=False)
class BetweenEnds(Schedule):
    """The course of a schedule between ends of its own.

    Args:
        ends: -lambda at t = 0 and at t = 1.
        course: a schedule, whose own ends don't matter.
    """

    ends: Float[Array, " 2"]
    course: Schedule

    def log_snr(self, t: Times) -> Times:
        first, last = self.course.log_snr(jnp.arange(2.0))
        share = (self.course.log_snr(t) - first) / (last - first)
        return -(self.ends[0] + (self.ends[1] - self.ends[0]) * share)


@frozen_pytree(eq=False)
class Tangent(Schedule):
    """The tangent of a schedule at the time of each example: all that a loss there depends on."""

    t: Times
    log_snrs: Times
    slopes: Times

    @classmethod
    def of(cls, schedule: Schedule, t: Times) -> "Tangent":
        return cls(t, schedule.log_snr(t), rate(schedule.log_snr, t))

    def log_snr(self, t: Times) -> Times:
        return self.log_snrs + self.slopes * (t - self.t)


# Of anything that has parameters, and the schedule: a loss of each example.
Losses = Callable[[Any, Schedule], PerExample]


def with_least_variance(losses: Losses, rest: Any, schedule: BetweenEnds, t: Times) -> PerExample:
    """``losses(rest, schedule)``, each at its time; its gradient by the course is of the squares.

    By the rest and by the ends it is that of the losses. All take one backward pass.

    Args:
        losses: one for each example, which depends on the schedule at its time alone.
        rest: any pytree.
        schedule: whose course is to be learned.
        t: [b] times.
    """
    held = jax.lax.stop_gradient
    of_ends = Tangent.of(replace(schedule, course=held(schedule.course)), t)
    of_course = Tangent.of(replace(schedule, ends=held(schedule.ends)), t)
    return _apart(losses, rest, of_ends, of_course)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apart(losses: Losses, rest: Any, of_ends: Tangent, of_course: Tangent) -> PerExample:
    """The losses; ``of_course`` is equal to ``of_ends``, and gets the gradient of the squares."""
    return losses(rest, of_ends)


def _forward(losses: Losses, rest: Any, of_ends: Tangent, of_course: Tangent) -> Any:
    found, pull = jax.vjp(losses, rest, of_ends)
    return found, (found, pull)


def _backward(losses: Losses, kept: Any, cotangent: PerExample) -> Any:
    found, pull = kept
    of_rest, of_tangent = pull(cotangent)
    return of_rest, of_tangent, jax.tree.map(lambda each: 2 * found * each, of_tangent)


_apart.defvjp(_forward, _backward)


def first_schedule(kind: str, low: Scalar, high: Scalar, key: PRNGKey) -> dict[str, Any]:
    """Parameters to begin with, whose log-SNR falls from ``high`` to nearly ``low``.

    Args:
        kind: one of ``LEARNED_SCHEDULES``.
        low: the log-SNR at t = 1.
        high: the log-SNR at t = 0.
        key: of the network's weights.
    """
    first, slope = (jnp.full(1, value, jnp.float32) for value in (-high, high - low))
    if kind == "scalar":
        return {"b": first, "w": slope}
    inner, outer = SMALL * jax.random.normal(key, (2, HIDDEN), jnp.float32)
    # Called a bias, which does not decay.
    both = {"ends": {"bias": -jnp.asarray([high, low], jnp.float32)}}
    return (both if kind == BETWEEN_ENDS else {}) | {
        "l1": {"kernel": slope[:, None], "bias": first},
        "l2": {"kernel": inner[None], "bias": jnp.zeros(HIDDEN, jnp.float32)},
        "l3": {"kernel": outer[:, None]},
    }


def learned_schedule(params: Mapping[str, Any]) -> Schedule:
    """The schedule of VDM's parameters.

    Args:
        params: "w" and "b", or those of ``MonotoneLogSNR``, perhaps with "ends".
    """
    if "ends" in params:
        return BetweenEnds(params["ends"]["bias"], MonotoneLogSNR(params))
    if "l1" in params:
        return MonotoneLogSNR(params)
    first, slope = params["b"][0], jnp.abs(params["w"][0])
    return LinearLogSNR(-(first + slope), -first)
