"""End times of samplers, by which their samples are scaled to the data.

Samples of x_t lie around alpha_t x_0, and are divided by alpha_t. Estimates of x_0 are not.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from scoremle.types import Scalar

__all__ = ["end_of"]

DrawFunction = TypeVar("DrawFunction", bound=Callable[..., Any])


def ends(end: Callable[..., Scalar | None]) -> Callable[[DrawFunction], DrawFunction]:
    """Declares the end time of a sampler.

    Args:
        end: of ``eps`` and the sampler's options, by their names: the time t of the x_t that it
            gives; None where it gives estimates of x_0.
    """

    def stated(sampler: DrawFunction) -> DrawFunction:
        sampler.end = end  # type: ignore[attr-defined]
        return sampler

    return stated


def end_of(sampler: Any, eps: Scalar) -> Scalar | None:
    """The time of the x_t that a sampler gives; None where it gives estimates of x_0.

    Args:
        sampler: with options bound by functools.partial, or without. One that declares none ends
            at ``eps``.
        eps: the smallest time.
    """
    options: dict[str, Any] = {}
    while isinstance(sampler, partial):
        sampler, options = sampler.func, {**sampler.keywords, **options}
    return sampler.end(eps, **options) if hasattr(sampler, "end") else eps
