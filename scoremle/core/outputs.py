"""A few numbers of what a function computes, by which two functions of one name differ."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scoremle.numerics import predict

__all__ = ["OutputSums", "agree", "outputs_of", "projected", "rounded"]

OutputSums = tuple[float, ...]
COUNT = 8
# Outputs on another machine differ by less, in units of the largest.
ROUNDING = 1e-2


def outputs_of(model: Any) -> OutputSums:
    """Numbers of a model's noise prediction at fixed points.

    Args:
        model: a ScoreModel, under its condition if it takes one; of one with a coder, and of None,
            there are none.

    Raises UserError as ``predict``.
    """
    if model is None or model.coder:
        return ()
    rng, t = np.random.default_rng(0), np.asarray([0.25, 0.5, 0.75], np.float32)
    x = rng.normal(size=(len(t), *model.shape)).astype(np.float32)
    return projected(np.asarray(predict(model.noise, jnp.asarray(x), jnp.asarray(t))), rng)


def projected(found: Float[np.ndarray, "..."], rng: np.random.Generator) -> OutputSums:
    """Sums of all numbers with random signs.

    Args:
        found: any array.
        rng: draws the signs.
    """
    signs = rng.choice([-1.0, 1.0], (COUNT, found.size))
    return tuple((signs @ np.ravel(found).astype(float) / np.sqrt(found.size)).tolist())


def agree(found: OutputSums, kept: OutputSums) -> bool:
    """Whether outputs differ by rounding alone.

    Args:
        found: those of now.
        kept: those of before.
    """
    most = ROUNDING * np.abs(kept).max(initial=0.0)
    return len(found) == len(kept) and bool(np.allclose(found, kept, rtol=0, atol=most))


def rounded(outputs: OutputSums) -> str:
    """Outputs in three digits of the largest: on another machine they are the same, as a rule.

    Args:
        outputs: of now.
    """
    values = np.asarray(outputs)
    _, exponent = np.frexp(np.abs(values).max(initial=0.0))
    return str((np.round(np.ldexp(values, -exponent), 3) + 0.0).tolist())
