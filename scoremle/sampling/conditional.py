"""Conditional generation with an unconditional model (Song et al., arXiv 2011.13456, section 5).

Known values y are given in some orthogonal coordinates of x: single pixels (inpainting), or the
grey value of each pixel (colourisation). Before each evaluation of the network they are replaced
by a fresh draw of p(y_t | y) = N(alpha_t y, sigma_t^2 I), and at the end by y itself. The network
then sees p(x_t | y_t) and not p(x_t | y): an approximation, which Langevin steps (a corrector)
improve, exact where known and unknown values are independent.

With a classifier p(y | x_t) of noisy images the posterior score is exact (appendix I):

    grad log p_t(x | y) = grad log p_t(x) + grad log p(y | x_t)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from scoremle.core.arguments import as_array, as_data
from scoremle.core.bijectors import AtTime
from scoremle.core.keys import normal
from scoremle.core.prediction import check_network
from scoremle.core.pytree import known as is_known
from scoremle.core.sde import SDE, check_dimensions
from scoremle.errors import UserError
from scoremle.numerics import check_function, expand, predict
from scoremle.sampling.predictor_corrector import PredictorCorrector, pc_sample
from scoremle.types import Data, Images, Keys, NoiseFn, PerExample, Times

# Of a pixel's colour, of length 1.
GREY = np.ones(3) / np.sqrt(3)


def inpaint(
    noise: NoiseFn,
    sde: SDE,
    key: Keys,
    x: Data,
    known: ArrayLike,
    *,
    eps: float,
    method: PredictorCorrector = PredictorCorrector(),
) -> Data:
    """Samples that are ``x`` where it is known.

    Args:
        noise: the noise prediction eps(x, t).
        sde: the noise at each time.
        key: one, or one for each sample.
        x: the known values; what else it holds does not matter.
        known: where they are: booleans that broadcast against ``x``.
        eps: the time of the last step.
        method: which steps to take; a corrector improves the approximation.

    Raises UserError where ``known`` does not broadcast against ``x``, or is not booleans.
    """
    known, given = as_array(known, "known"), as_array(x, "x")
    if is_known(known) and not np.isin(known, (False, True)).all():
        raise UserError("known must be booleans, or 0 and 1")
    try:
        with np.errstate(over="ignore"):  # what is not known may be beyond float32
            x = jnp.where(jnp.broadcast_to(known, given.shape), given, 0)
    except ValueError:
        raise UserError(f"known has shape {known.shape}, and x has {given.shape}") from None
    x = as_data(x)

    def replace(new: Data, old: Data) -> Data:
        return jnp.where(known, new, old)

    return _complete(noise, sde, key, x, replace, eps, method)


def colourise(
    noise: NoiseFn,
    sde: SDE,
    key: Keys,
    grey: Float[Array, "b h w 1"],
    *,
    eps: float,
    method: PredictorCorrector = PredictorCorrector(),
) -> Images:
    """Colour images whose means over the three channels are given.

    Args:
        noise: the noise prediction eps(x, t) of colour images.
        sde: the noise at each time.
        key: one, or one for each image.
        grey: the means.
        eps: the time of the last step.
        method: which steps to take; a corrector improves the approximation.

    Raises UserError for means of another shape.
    """
    grey = as_data(grey, name="grey")
    if grey.ndim != 4 or grey.shape[3] != 1:
        raise UserError(f"grey must have shape (b, h, w, 1), not {grey.shape}")
    x = jnp.broadcast_to(grey, (*grey.shape[:-1], 3))
    along_grey = jnp.asarray(GREY, x.dtype)

    def replace(new: Data, old: Data) -> Data:
        change = jnp.sum((new - old) * along_grey, axis=-1, keepdims=True)
        return old + change * along_grey

    return _complete(noise, sde, key, x, replace, eps, method)


def _complete(
    noise: NoiseFn, sde: SDE, key: Keys, x: Data, replace: Callable[[Data, Data], Data],
    eps: float, method: PredictorCorrector,
) -> Data:  # fmt: skip
    """Samples in which ``replace(new, old)`` puts what is known of ``x`` in place of the old."""

    def constraint(keys: Keys, state: Data, t: Times) -> Data:
        return replace(sde.perturb(x, t, normal(keys, x)), state)

    sample = pc_sample(noise, sde, key, x.shape, eps=eps, method=method, constraint=constraint)
    return replace(x, AtTime(sde, method.end(eps)).inverse(sample))


def guided(noise: NoiseFn, sde: SDE, log_prob: Callable[[Data, Times], PerExample]) -> NoiseFn:
    """The noise prediction given what ``log_prob(x, t)`` says: log p(y | x_t), or that weighted.

    Any sampler takes it, and raises UserError where either gives another shape than it must.
    """
    check_network(noise, sde)
    check_function("log_prob", log_prob)

    def total(x: Data, t: Times) -> Array:
        found = jnp.asarray(log_prob(x, t))
        if found.shape != t.shape or not jnp.issubdtype(found.dtype, jnp.floating):
            raise UserError(
                f"log_prob must give {len(x)} reals, not an array {found.dtype} {found.shape}"
            )
        return jnp.sum(found)

    def eps(x: Data, t: Times) -> Data:
        check_dimensions(sde, x.shape[1:])
        return predict(noise, x, t) - expand(sde.sigma(t), x) * jax.grad(total)(x, t)

    return eps
