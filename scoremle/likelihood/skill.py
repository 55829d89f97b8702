"""Errors and skill of a network, by each meaning that its output may have.

Its error E = mean (eps - z)^2 at a log-SNR is set beside two others, with the same noise:

    E_0   of an output that is zero, read in the same way: E / E_0 is what the network has left of
          its own target, be that the noise, the data or a velocity
    E_G   of a Gaussian with the mean and the power spectrum w of other images (F is the Fourier
          transform), or with the mean and the covariance of other vectors (F turns to its axes):
          eps = sigma F^-1[ F(x - alpha mean) / (alpha^2 w + sigma^2) ]

The skill of a network is what it explains of its target, over what the Gaussian explains:

    sum over log-SNRs of (1 - E / E_0)  /  sum over log-SNRs of (1 - E_G / E_0)

It is 0 before training, however the output is read, and training makes it rise where the output
is read as it is trained. E alone would be least where a reading leaves the network little to do.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.special import stdtrit

from scoremle.core.keys import example_keys, fold_in, key_of, normal
from scoremle.core.prediction import PREDICTIONS
from scoremle.core.programs import OfModels
from scoremle.numerics import mean_square, output_of
from scoremle.types import AnyArray, Data, NoiseFn, PerExample, Scalar

# How sure is certain, and by how much an error then exceeds the Gaussian's.
CERTAIN, WORSE = 0.994, 0.02
# So many vectors for each dimension are enough to estimate a covariance.
WELL_KNOWN = 4
# Replaces an error that is not finite.
HUGE = 1e30


Others = Float[AnyArray, "n *d"]


class Node(NamedTuple):
    """The places at which errors are measured: arrays of k numbers each.

    ``label`` is the time input of the network, and its input is divided by ``scale``.
    """

    alpha: Float[AnyArray, " k"]
    sigma: Float[AnyArray, " k"]
    label: Float[AnyArray, " k"]
    scale: Float[AnyArray, " k"]


class Errors(NamedTuple):
    """E, E_0 and E_G at each log-SNR, of each example."""

    own: Float[np.ndarray, "k b"]
    zero: Float[np.ndarray, "k b"]
    gaussian: Float[np.ndarray, "k b"]

    @property
    def skill(self) -> Float[np.ndarray, " b"]:
        """The skill in all examples but one, for each."""
        own, zero, gaussian = map(without_one, self)
        explained = np.maximum(1 - _over(own, zero), -1).sum(axis=0)
        # What no Gaussian explains, such as v of white data, other models do: at one log-SNR.
        return explained / np.maximum(np.maximum(1 - _over(gaussian, zero), 0).sum(axis=0), 1)

    @property
    def worse(self) -> Bool[np.ndarray, " k"]:
        """The log-SNRs at which the network is certainly worse than the Gaussian."""
        return np.asarray(certain(without_one(self.own - self.gaussian))) > WORSE


def _over(error: Float[np.ndarray, "k b"], zero: Float[np.ndarray, "k b"]) -> np.ndarray:
    """The share of E_0; 1 where that is 0, as of images that are all black: nothing to explain."""
    return np.divide(error, zero, out=np.ones_like(error), where=zero > 0)


def errors_of(
    network: NoiseFn, measured: Data, others: Others, nodes: Node, sigma_data: Scalar
) -> dict[str, Errors]:
    """The errors by each meaning of the output, "edm" with the scales that belong to it.

    Args:
        network: ``network(x, label)``.
        measured: examples whose noise it predicts, as it sees them.
        others: examples for the Gaussian.
        nodes: where.
        sigma_data: the standard deviation of data that the scales of "edm" are made for.

    Raises UserError as ``output_of``.
    """
    found, gaussian = _errors(network, measured, others, _axes(others), nodes, sigma_data)
    return {name: Errors(*map(_numbers, (*pair, gaussian))) for name, pair in found.items()}


def without_one(values: Float[np.ndarray, "*k b"]) -> Float[np.ndarray, "*k b"]:
    """The mean over all examples but one, for each (the jackknife's)."""
    return (values.sum(axis=-1, keepdims=True) - values) / (values.shape[-1] - 1)


def certain(values: Float[np.ndarray, "*k b"]) -> Float[np.ndarray, "*k"] | np.floating:
    """The number that a mean certainly exceeds (Student's), by its values without one each."""
    others = values.shape[-1] - 1
    error = math.sqrt(others) * values.std(axis=-1)
    return values.mean(axis=-1) - stdtrit(others, CERTAIN) * error


@OfModels
def _errors(
    network: NoiseFn, measured: Data, others: Others, axes: Float[Array, "d d"] | None,
    nodes: Node, sigma_data: Scalar,
) -> tuple[dict[str, list[Float[Array, "k b"]]], Float[Array, "k b"]]:  # fmt: skip
    """E and E_0 of each meaning of the output, and E_G. ``axes``: None of images."""
    to, back, mean = _basis(measured.shape[1:], axes)
    center = mean(others)
    power = jnp.mean(jnp.square(jnp.abs(to(others - center))), axis=0)
    keys = example_keys(key_of(0), len(measured))

    def at(numbered: tuple[Array, Node]) -> tuple[dict[str, list[PerExample]], PerExample]:
        number, (alpha, sigma, label, scale) = numbered
        z = normal(fold_in(keys, number), measured)
        x = alpha * measured + sigma * z
        output = output_of(network, x / scale, jnp.full(len(x), label))

        def by_edm(output: Data, x: Data, alpha: Array, sigma: Array) -> Data:
            return (sigma * x / scale - sigma_data * alpha * output) / scale

        found = {
            name: [mean_square(read(o, x, alpha, sigma) - z) for o in (output, 0 * x)]
            for name, read in (PREDICTIONS | {"edm": by_edm}).items()
        }
        gain = sigma / (jnp.square(alpha) * power + jnp.square(sigma))
        return found, mean_square(back(gain * to(x - alpha * center)) - z)

    return jax.lax.map(at, (jnp.arange(len(nodes.label)), nodes))


def _axes(x: Others) -> Float[Array, "d d"] | None:
    """Axes of the covariance of vectors, or of the space if they are few; None of images."""
    if x.ndim == 4:
        return None
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    if len(flat) < WELL_KNOWN * flat.shape[1]:
        return jnp.eye(flat.shape[1])
    return jnp.asarray(np.linalg.eigh(np.atleast_2d(np.cov(flat.T)))[1], x.dtype)


def _basis(
    shape: tuple[int, ...], axes: Float[Array, "d d"] | None
) -> tuple[Callable[[Array], Array], ...]:
    """The way to where the Gaussian's numbers are independent, the way back, and its mean."""
    if axes is None:
        return (
            lambda x: jnp.fft.fft2(x, axes=(1, 2), norm="ortho"),
            lambda y: jnp.fft.ifft2(y, axes=(1, 2), norm="ortho").real,
            lambda x: jnp.mean(x, axis=(0, 1, 2)),
        )
    return (
        lambda x: jnp.matmul(jnp.reshape(x, (len(x), -1)), axes, precision="highest"),
        lambda y: jnp.reshape(jnp.matmul(y, axes.T, precision="highest"), (len(y), *shape)),
        lambda x: jnp.mean(x, axis=0),
    )


def _numbers(errors: Float[Array, "k b"]) -> Float[np.ndarray, "k b"]:
    """Errors in float64; all are huge at a log-SNR where some are not finite."""
    found = np.asarray(errors, np.float64)
    return np.where(np.isfinite(found).all(axis=1, keepdims=True), found, HUGE)
