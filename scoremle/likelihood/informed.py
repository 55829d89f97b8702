"""From the last log-SNR that a network knows to the integers, by what the network says of them.

A model that was trained down to t = eps, where noise still hides the levels from each other, says
nothing of integers k by itself. Its estimate of the data there does: p(k | z), the decoder
`Informed` of `reconstruction.py`. With the density of the ODE at t = eps,

    P(k) = int p_eps(z) p(k | z) dz >= exp E_q[ log p_eps(z) + log p(k | z) - log q(z) ],

    q(z) = N(alpha y_k, sigma^2 I)

(the expectation of -log q is the entropy, D/2 log(2 pi e sigma^2)): *ODE bound, informed decoder*.
It is a bound and never exact: the first line is a normalised distribution over the integers, and
several draws z close in on its P(k), importance weighted as in `importance.py`. The noise
itself, not only its entropy, stays in the weight, because it pairs off with that in log p_eps.
Neither clean nor uniformly dequantized data may take the place of z: they do not lie at t = eps.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Key, Shaped
from scipy.optimize import minimize_scalar

from scoremle.core.arguments import check_count
from scoremle.core.dequantize import Dequantizer
from scoremle.core.divergence import DivergenceEstimator, Hutchinson
from scoremle.core.keys import image_keys, normal, split
from scoremle.core.pytree import pytree, static
from scoremle.core.sde import SDE
from scoremle.devices import compiled
from scoremle.likelihood.images import ImageModel, Values, by_draws
from scoremle.likelihood.nodes import PILOT_IMAGES
from scoremle.likelihood.ode import Likelihood, ode_log_likelihood
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.likelihood.reconstruction import LOG_2PI, Informed, decoding_cost
from scoremle.likelihood.scales import ScaleOfOthers
from scoremle.numerics import as_pytree, dims_of, predict_ranged, sum_data, sum_over
from scoremle.resumable import Arrays, in_parts
from scoremle.solvers.base import Solver
from scoremle.solvers.multistep import Multistep
from scoremle.types import IntImages, Keys, NoiseFn, PerExample, PRNGKey, Scalar

__all__ = ["ByInformedOde", "decoder_worth", "fitted_scale", "scale_of_others"]

BATCH_SIZE = 64
# The scale is looked for from this share of a bin to the whole range of the data.
SMALLEST = 1e-2


@pytree
@dataclass(frozen=True)
class ByInformedOde:
    """ODE bound, informed decoder: a bound on the probability of integers, without dequantizer.

    Args:
        decoder: from the model's smallest time to the integers.
        divergence: how traces are estimated.
        solver: how the ODE is solved.
        samples: draws of the noise at the smallest time, all in one bound for each image.

    Values: those of ``ByOde``; each draw takes one network evaluation more.
    """

    decoder: Informed
    divergence: DivergenceEstimator = Hutchinson()
    solver: Solver | PublishedRK45 = Multistep()
    samples: int = static(default=1)

    def __post_init__(self) -> None:
        check_count("samples", self.samples)

    @property
    def on_host(self) -> bool:
        return isinstance(self.solver, PublishedRK45)

    @property
    def words(self) -> str:
        return f"ODE bound, {self.decoder.words}, {self.samples} draw{'s' * (self.samples > 1)}"

    def __call__(
        self, model: ImageModel, dequantizer: Dequantizer, x: IntImages, keys: Key[Array, " b"]
    ) -> Values:
        key_z, key_probe = split(keys)
        y, t = self.decoder.encode(x), jnp.full(len(x), model.eps)

        def draw(keys: Keys) -> tuple[Likelihood, PerExample]:
            noise = normal(keys, y)
            z = model.sde.perturb(y, t, noise)
            found = ode_log_likelihood(
                model.noise, model.sde, z, key_probe,
                eps=model.eps, divergence=self.divergence, solver=self.solver,
            )  # fmt: skip
            prediction, v = predict_ranged(model.noise, z, t)
            decoded = self.decoder.log_prob(prediction - noise, model.sde, x, t, v)
            log_sigma = jnp.log(model.sde.sigma(t))
            log_q = -sum_data(jnp.square(noise)) / 2 - sum_over(LOG_2PI / 2 + log_sigma, y)
            return replace(found, evaluations=found.evaluations + 1), log_q - decoded

        log_prob, values = by_draws(
            draw, key_z, self.samples, dims_of(y), prior_std=model.sde.prior_std
        )
        return {"bpd": -log_prob / (dims_of(y) * jnp.log(2.0)), **values}


def fitted_scale(
    model: ImageModel, images: Shaped[np.ndarray, "n h w c"], key: PRNGKey
) -> float:
    """The scale of `Informed` under which the integers of these images are likeliest.

    By one network evaluation for each image, and a search in one dimension; a hundred images are
    enough. Scores of these images gain by it, if less than a nat all together: `scale_of_others`
    is for images that are then scored. Raises UserError for images of another type or range than
    the model's.
    """
    images = model.pixels.checked(np.asarray(images), np.shape(images)[1:])
    return _likeliest(model, _predicted(model, images, key)[0], images)


def scale_of_others(
    model: ImageModel, images: Integer[np.ndarray, "n h w c"], key: PRNGKey
) -> ScaleOfOthers:
    """A scale for these images and all others that is fitted to no image that it decodes.

    The first 16 of them are halved, or all if they are fewer. The first half has the scale that is
    fitted to the second, and every other image that of the first. An image that is alone has that
    of the noise. Equal images count as one.
    """
    _, firsts = np.unique(images[: 2 * PILOT_IMAGES], axis=0, return_index=True)
    few = images[np.sort(firsts)]
    errors, half = _predicted(model, few, key)[0], (len(few) + 1) // 2
    noise = float(jnp.exp(-model.sde.log_snr(jnp.asarray(model.eps)) / 2))
    scale, of_these = (
        _likeliest(model, errors[part], few[part]) if len(few[part]) else noise
        for part in (slice(half), slice(half, None))
    )
    return ScaleOfOthers(few[:half], scale, of_these)


def decoder_worth(
    model: ImageModel, decoder: Informed, images: Shaped[np.ndarray, "n h w c"], key: PRNGKey
) -> tuple[float, float]:
    """What the step from the last noise to the integers costs: by this decoder, and by a flat one.

    In bits/dim, in the mean over these images: of the first by one network evaluation for each,
    of the second without random error.
    """
    (error, v), t = _predicted(model, images, key), jnp.full(len(images), model.eps)
    informed = -decoder.log_prob(error, model.sde, jnp.asarray(images), t, v)
    points = jnp.asarray(model.pixels.points, float)
    flat = decoding_cost(points, model.sde.log_snr(jnp.asarray(model.eps)))[images]
    bits = math.log(2)
    return float(jnp.mean(informed)) / (images[0].size * bits), float(jnp.mean(flat)) / bits


def _likeliest(
    model: ImageModel, error: Float[Array, "n h w c"], images: Integer[np.ndarray, "n h w c"]
) -> float:
    """The scale under which these integers are, by the errors of the predicted noise."""
    pixels, t = model.pixels, jnp.full(len(images), model.eps)
    points, x = jnp.asarray(pixels.points, float), jnp.asarray(images)
    width = pixels.high - pixels.low
    ends = math.log(SMALLEST * width / pixels.levels), math.log(width)
    found = minimize_scalar(
        lambda at: float(_nats(at, points, error, model.sde, x, t)), bounds=ends, method="bounded"
    )
    return math.exp(found.x)


@jax.jit
def _nats(
    log_scale: Array, points: Array, error: Array, sde: SDE, x: IntImages, t: Array
) -> Array:
    decoder = Informed(points, jnp.exp(log_scale))
    return -jnp.mean(decoder.log_prob(error, sde, x, t))


def _predicted(
    model: ImageModel, images: Shaped[np.ndarray, "n h w c"], key: PRNGKey
) -> tuple[Float[Array, "n h w c"], Float[Array, "n h w c"] | None]:
    """At the smallest time, of a draw for each image: the error of the predicted noise, and v."""

    def work(_: int, place: Integer[np.ndarray, " size"]) -> Arrays:
        error, v = at_the_end(images[place], image_keys(key, place))
        return {"error": np.asarray(error)} | ({} if v is None else {"v": np.asarray(v)})

    points = jnp.asarray(model.pixels.points, float)
    at_the_end = partial(
        _compiled_at_the_end, as_pytree(model.noise), model.sde, model.eps, points
    )
    found = in_parts(work, len(images), size=BATCH_SIZE)
    return jnp.asarray(found["error"][0]), jnp.asarray(found["v"][0]) if "v" in found else None


def _at_the_end(
    noise: NoiseFn,
    sde: SDE,
    eps: Scalar,
    points: Float[Array, " levels"],
    x: IntImages,
    keys: Key[Array, " b"],
) -> tuple[Array, Array | None]:
    y, t = points[x], jnp.full(len(x), eps)
    z = normal(keys, y)
    prediction, v = predict_ranged(noise, sde.perturb(y, t, z), t)
    return prediction - z, v


_compiled_at_the_end = compiled(_at_the_end)
