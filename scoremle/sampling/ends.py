"""Declarations of samplers: the end time, and the check of an SDE.

By the end time samples are scaled to the data: those of x_t lie around alpha_t x_0, and are
divided by alpha_t. Estimates of x_0 are not.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from scoremle.core.sde import SDE
from scoremle.types import Scalar

__all__ = ["check_sampler", "end_of"]

DrawFunction = TypeVar("DrawFunction", bound=Callable[..., Any])


def ends(
    end: Callable[..., Scalar | None], check: Callable[..., None] = lambda sde, **options: None
) -> Callable[[DrawFunction], DrawFunction]:
    """Declares the end time of a sampler.

    Args:
        end: of ``eps`` and the sampler's options, by their names: the time t of the x_t that it
            gives; None where it gives estimates of x_0.
        check: of the SDE and the options: raises UserError where a step is not defined for it.
    """

    def stated(sampler: DrawFunction) -> DrawFunction:
        sampler.end, sampler.check = end, check  # type: ignore[attr-defined]
        return sampler

    return stated


def end_of(sampler: Any, eps: Scalar) -> Scalar | None:
    """The time of the x_t that a sampler gives; None where it gives estimates of x_0.

    Args:
        sampler: with options bound by functools.partial, or without. One that declares none ends
            at ``eps``.
        eps: the smallest time.
    """
    sampler, options = _unbound(sampler)
    return sampler.end(eps, **options) if hasattr(sampler, "end") else eps


def check_sampler(sampler: Any, sde: SDE) -> None:
    """Raises UserError where a sampler declares that it is not defined for an SDE.

    Args:
        sampler: with options bound by functools.partial, or without.
        sde: whose numbers are known.
    """
    sampler, options = _unbound(sampler)
    if hasattr(sampler, "check"):
        sampler.check(sde, **options)


def _unbound(sampler: Any) -> tuple[Any, dict[str, Any]]:
    options: dict[str, Any] = {}
    while isinstance(sampler, partial):
        sampler, options = sampler.func, {**sampler.keywords, **options}
    return sampler, options
