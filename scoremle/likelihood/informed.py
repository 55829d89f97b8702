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

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Key, Shaped
from scipy.optimize import minimize_scalar

from scoremle.core.dequantize import Dequantizer
from scoremle.core.divergence import DivergenceEstimator, Hutchinson
from scoremle.core.keys import image_keys, normal, split
from scoremle.core.pytree import pytree, static
from scoremle.devices import compiled
from scoremle.likelihood.images import ImageModel, Values, by_draws
from scoremle.likelihood.ode import Likelihood, ode_log_likelihood
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.likelihood.reconstruction import LOG_2PI, Informed, decoding_cost
from scoremle.numerics import dims_of, predict, sum_data, sum_over
from scoremle.resumable import Arrays, in_parts
from scoremle.solvers.base import Solver
from scoremle.solvers.multistep import Multistep
from scoremle.types import IntImages, Keys, PerExample, PRNGKey

__all__ = ["ByInformedOde", "decoder_worth", "fitted_scale"]

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

    @property
    def on_host(self) -> bool:
        return isinstance(self.solver, PublishedRK45)

    @property
    def words(self) -> str:
        return f"ODE bound, informed decoder, {self.samples} draw{'s' * (self.samples > 1)}"

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
            error = predict(model.noise, z, t) - noise
            decoded = self.decoder.log_prob(error, model.sde, x, t)
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
    enough. Not of the images that are then scored. Raises UserError for images of another type or
    range than the model's.
    """
    pixels = model.pixels
    images = pixels.checked(np.asarray(images), np.shape(images)[1:])
    error, t = _errors(model, images, key), jnp.full(len(images), model.eps)

    @jax.jit
    def nats(log_scale: Array) -> Array:
        decoder = Informed(pixels.points, jnp.exp(log_scale))
        return -jnp.mean(decoder.log_prob(error, model.sde, jnp.asarray(images), t))

    width = pixels.high - pixels.low
    ends = math.log(SMALLEST * width / pixels.levels), math.log(width)
    found = minimize_scalar(lambda at: float(nats(at)), bounds=ends, method="bounded")
    return math.exp(found.x)


def decoder_worth(
    model: ImageModel, decoder: Informed, images: Shaped[np.ndarray, "n h w c"], key: PRNGKey
) -> tuple[float, float]:
    """What the step from the last noise to the integers costs: by this decoder, and by a flat one.

    In bits/dim, in the mean over these images: of the first by one network evaluation for each,
    of the second without random error.
    """
    error, t = _errors(model, images, key), jnp.full(len(images), model.eps)
    informed = -decoder.log_prob(error, model.sde, jnp.asarray(images), t)
    points = jnp.asarray(model.pixels.points, float)
    flat = decoding_cost(points, model.sde.log_snr(jnp.asarray(model.eps)))[images]
    bits = math.log(2)
    return float(jnp.mean(informed)) / (images[0].size * bits), float(jnp.mean(flat)) / bits


def _errors(
    model: ImageModel, images: Shaped[np.ndarray, "n h w c"], key: PRNGKey
) -> Float[Array, "n h w c"]:
    """Of the predicted noise at the smallest time, a draw for each image."""

    @compiled
    def errors(model: ImageModel, x: IntImages, keys: Key[Array, " b"]) -> Array:
        y, t = Informed(model.pixels.points, 1.0).encode(x), jnp.full(len(x), model.eps)
        noise = normal(keys, y)
        return predict(model.noise, model.sde.perturb(y, t, noise), t) - noise

    def work(_: int, place: Integer[np.ndarray, " size"]) -> Arrays:
        return {"error": np.asarray(errors(model, images[place], image_keys(key, place)))}

    return jnp.asarray(in_parts(work, len(images), size=BATCH_SIZE)["error"][0])
