"""Maps with an exact log-determinant: normalizing flows of other libraries, as a model.

    log p(x) = log p(z) + log |det dz/dx|,        z = inverse(x),    x = forward(z)

Nothing here has an ODE or a solver. What is left between log p and the truth of the map is that
``inverse`` and ``forward`` undo each other up to rounding, or up to an iteration's tolerance: then
log p is that of another point, x' = forward(inverse(x)). The residual, in nats, is

    |log p(x') - log p(x)| = |grad log p . (x' - x)|        to first order.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Key
from scipy.special import logsumexp, softmax

from scoremle.core.arguments import (
    as_data,
    as_reals,
    as_shape,
    check_count,
    check_kind,
    check_seed,
)
from scoremle.core.dequantize import Dequantizer, Uniform
from scoremle.core.keys import split
from scoremle.core.pixels import Pixels, bits_per_dim
from scoremle.core.pytree import frozen_pytree, static
from scoremle.errors import UserError
from scoremle.likelihood.image_model import pixels_of
from scoremle.likelihood.images import Estimator, ImageValues, number_in_words
from scoremle.likelihood.importance import jackknife
from scoremle.likelihood.score_images import example_numbers, score_images
from scoremle.likelihood.scores import Scores
from scoremle.numerics import check_finite_values, check_function, dims_of
from scoremle.types import IntImages

AnyData = Float[Array | np.ndarray, "n *d"]
Map = Callable[[np.ndarray], Any]


@frozen_pytree
class FlowModel:
    """A model that ``from_flow`` makes of the functions of another library, such as log p."""

    function: Map = static()
    shape: tuple[int, ...] = static()
    pixels: Pixels | None = static(default=None)
    inverse: Map | None = static(default=None)
    forward: Map | None = static(default=None)

    @property
    def dims(self) -> int:
        """The number of dimensions of one example."""
        return math.prod(self.shape)

    def log_prob(self, x: AnyData) -> Float[np.ndarray, " n"]:
        """log p(x) in nats.

        Args:
            x: data of the model's shape.

        Raises UserError for data of another shape, and a function that gives no number for each.
        """
        x = np.array(as_data(x))  # a copy: other libraries warn of what they can't write to
        if x.shape[1:] != self.shape:
            raise UserError(f"x must have shape (n, {str(self.shape)[1:-1]}), not {x.shape}")
        found = _numbers(self.function(x), "log_prob")
        if found.shape != (len(x),):
            raise UserError(f"log_prob must give {len(x)} numbers, not an array of {found.shape}")
        return found

    def residual(self, x: AnyData) -> Float[np.ndarray, " n"]:
        """The nats by which log p changes from x to where ``forward`` takes ``inverse(x)``.

        Args:
            x: data of the model's shape.

        Raises UserError without both directions, and where they give data of another shape.
        """
        if self.inverse is None or self.forward is None:
            raise UserError("the residual needs both directions: give inverse and forward")
        x = np.array(as_data(x))
        back = _numbers(self.forward(self.inverse(np.array(x))), "forward").astype(x.dtype)
        if back.size != x.size:
            raise UserError(f"forward must give data of shape {x.shape}, not {back.shape}")
        back = back.reshape(x.shape)
        return np.abs(self.log_prob(back) - self.log_prob(x))

    def score(
        self,
        images: Integer[Array | np.ndarray, "n h w *c"],
        *,
        draws: int = 1,
        passes: int = 1,
        dequantizer: Dequantizer | None = None,
        index: Sequence[int] | Integer[Array | np.ndarray, " n"] | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        label: str = "",
    ) -> Scores:
        """log P of integer images in nats, their bits/dim, and the errors of these.

        Args:
            images: [n h w c], or [n h w] where the model has one channel.
            draws: of the dequantization noise, all in one importance-weighted bound.
            passes: independent passes, whose spread gives the error.
            dequantizer: None: uniform noise.
            index: the number of each image, to which its randomness belongs; None: its place.
            batch_size: how many at once.
            seed: of all randomness.
            label: under which progress is shown, if there is one.

        Raises UserError for images that are not the model's, and values that are not finite.
        """
        check_seed(seed)
        check_count("passes", passes)
        images = pixels_of(self).checked(images, self.shape)
        numbers = example_numbers(index, len(images))
        if not len(images):
            return Scores(*np.zeros((5, 0)))
        estimator, dequantizer = ByLogProb(draws), dequantizer or Uniform()
        found = score_images(
            self, estimator, images, numbers, dequantizer=dequantizer, passes=passes,
            seed=seed, batch_size=batch_size, devices=jax.devices()[:1], label=label,
        )  # fmt: skip
        check_finite_values(found.finite, numbers, "bits/dim of image")
        scores = Scores.of_passes(found.values, self.dims)
        return replace(scores, estimator=number_in_words(estimator, dequantizer, self))


def from_flow(
    log_prob: Map,
    *,
    shape: Sequence[int],
    pixels: Pixels | None = None,
    inverse: Map | None = None,
    forward: Map | None = None,
) -> FlowModel:
    """A model of a normalizing flow of another library, such as zuko, flowjax or normflows.

    ``log_prob`` and ``inverse`` take an array of numpy [n *d], in float32 unless JAX is set up for
    float64, and give one of any library; ``forward`` takes what ``inverse`` gives.

    Args:
        log_prob: the log-density of data in nats, one number for each.
        shape: of one example.
        pixels: what its images are, where it is a model of integers: such as ``Pixels(256, 0, 1)``
            of one that takes (k + u) / 256. None where the data are reals.
        inverse: the latents of data.
        forward: the data of latents. With both directions scores state the residual of the map
            as ``solver_error``.

    Raises UserError for what is not a function, and an invalid shape.

    Example:
        >>> flow = scoremle.weights.from_flow(  # x = 2 z
        ...     lambda x: -np.sum(x**2, axis=1) / 8 - np.log(2 * np.pi) - 2 * np.log(2),
        ...     shape=(2,), inverse=lambda x: x / 2, forward=lambda z: 2 * z,
        ... )
        >>> x = np.asarray([[2.0, 0.0]])
        >>> print(flow.log_prob(x).round(2), flow.residual(x))
        [-3.72] [0.]
    """
    for name, function in {"log_prob": log_prob, "inverse": inverse, "forward": forward}.items():
        if function is not None or name == "log_prob":
            check_function(name, function)
    check_kind("pixels", pixels, Pixels | None, "scoremle.Pixels(256)")
    return FlowModel(log_prob, as_shape(shape), pixels, inverse, forward)


@frozen_pytree
class ByLogProb(Estimator):
    """Estimator by an exact log-density; with several ``draws``, importance weighted over them.

    Values: ``bpd``, and ``solver_error``, the residual of the map, if it has both directions; of
    several draws ``draw_stderr`` and ``effective_draws``.

    Args:
        draws: of the dequantization noise, all in one bound for each image.

    Raises UserError for no draws.
    """

    on_host: ClassVar[bool] = True

    draws: int = static(default=1)

    def __post_init__(self) -> None:
        check_count("draws", self.draws)

    @property
    def title(self) -> str:
        if self.draws == 1:
            return "exact log-determinant"
        return f"importance-weighted bound by an exact log-determinant, {self.draws} draws"

    def describe(self) -> dict[str, Any]:
        return {"estimator": self.title, "model": "flow", "importance_samples": self.draws}

    def __call__(
        self, model: FlowModel, dequantizer: Dequantizer, x: IntImages, keys: Key[Array, " b"]
    ) -> ImageValues:
        pixels, dims = pixels_of(model), dims_of(x)
        log_weights, residuals = [], []
        for each in split(keys, self.draws):
            u, log_q = dequantizer(each, x)
            y = pixels.encode(x, u)
            log_weights.append(model.log_prob(y) - np.asarray(log_q, np.float64))
            if model.inverse and model.forward:
                residuals.append(model.residual(y))
        weights, bits = np.stack(log_weights), dims * math.log(2)
        log_prob, shares = logsumexp(weights, axis=0) - math.log(self.draws), softmax(weights, 0)
        values = {"bpd": bits_per_dim(log_prob, pixels, dims)}
        if residuals:
            values["solver_error"] = np.sum(shares * residuals, axis=0) / bits
        if self.draws > 1:
            values["draw_stderr"] = jackknife(jnp.asarray(weights)) / bits
            values["effective_draws"] = 1 / np.sum(np.square(shares), axis=0)
        return {name: jnp.asarray(column) for name, column in values.items()}


def _numbers(found: Any, name: str) -> np.ndarray:
    """Converts what a function of another library gives to an array of numpy."""
    found = found.detach().cpu() if hasattr(found, "detach") else found
    return as_reals(found, f"what {name} gives")
