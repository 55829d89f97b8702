"""The betas of discrete diffusion models, by the names that schedules have in the field.

    linear               even from start to end (Ho et al., arXiv 2006.11239)
    scaled_linear        even in their square roots
    cosine               alpha^2 a squared cosine of t, beta at most 0.999
                         (Nichol and Dhariwal, arXiv 2102.09672; squaredcos_cap_v2 in diffusers)
    sigmoid              a logistic curve from start to end
"""

import math

import numpy as np
from jaxtyping import Float

from scoremle.core.arguments import check_choice, check_count, check_number
from scoremle.core.schedules import alpha_squared

__all__ = ["betas", "with_no_signal_at_the_end"]

NAMES = ("linear", "scaled_linear", "cosine", "sigmoid")
ALIASES = {"squaredcos_cap_v2": "cosine"}
MOST = 0.999
OFFSET = 0.008  # of the cosine
MOST_STEPS = 1_000_000


def betas(
    name: str, steps: int = 1000, start: float | None = None, end: float | None = None
) -> Float[np.ndarray, " steps"]:
    """The betas of a named schedule, in float64.

    Args:
        name: one of ``NAMES``, or squaredcos_cap_v2, which is cosine.
        steps: how many, at most a million.
        start: the first; None: 0.1 / steps.
        end: the last; None: 20 / steps.

    Raises UserError for another name, more steps, and betas that are not above 0.
    """
    check_choice("the name of betas", name, (*NAMES, *ALIASES))
    check_count("steps", steps, 1, MOST_STEPS)
    start = 0.1 / steps if start is None else start
    end = 20 / steps if end is None else end
    for limit, beta in (("start", start), ("end", end)):
        check_number(f"the {limit} of betas", beta, above=0)
    name = ALIASES.get(name, name)
    if name == "linear":
        return np.linspace(start, end, steps)
    if name == "scaled_linear":
        return np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2
    if name == "cosine":
        angle = (np.arange(steps + 1) / steps + OFFSET) / (1 + OFFSET) * math.pi / 2
        signal = np.cos(angle) ** 2
        return np.minimum(1 - signal[1:] / signal[:-1], MOST)
    return (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps))) + start


def with_no_signal_at_the_end(betas: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """The betas changed so that nothing of the data is left at the last step.

    alpha is shifted and scaled (Lin et al., arXiv 2305.08891, algorithm 1): the last beta is 1.

    Args:
        betas: [T] variances of the steps of a chain.
    """
    alpha = np.sqrt(alpha_squared(betas))
    alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    signal = np.square(alpha)
    return 1 - np.concatenate([signal[:1], signal[1:] / signal[:-1]])
