"""Profiles of examples over noise levels: bits, where they lie, and the shape of the density.

The log-SNR is cut into bins of equal width, and its draws are stratified in each. With noise:

    bits     1/2 int E ||eps(x_t, t) - z||^2 d lambda, over log 2: the diffusion term of the
             bound (`elbo.py`), bin by bin
    where    the same integral over all bins, of each number of the example

Without noise, at alpha x in the middle of each bin:

    square   ||eps||^2,      trace   sigma tr(d eps/dx),      flipd = D - trace + square

FLIPD (Kamkari et al., arXiv 2406.03537) is about the dimension of what the data fill near x, as
far as it can be seen through this noise. The norm of the score at ten noise levels is what MSMA
goes by (Mahmood et al., arXiv 2010.13132).

The noised square and trace are means of the same two at x_t. By Stein's identity they give the
bits again, for an exact noise prediction: E ||eps - z||^2 = E[||eps||^2 - 2 sigma tr + D].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scoremle.core.divergence import DivergenceEstimator, Exact, Hutchinson
from scoremle.core.keys import fold_in, normal, per_example, split
from scoremle.core.sde import SDE
from scoremle.core.times import log_snr_range, times_at, unit_draws
from scoremle.errors import needing
from scoremle.likelihood.elbo import variance_of_mean
from scoremle.numerics import dims_of, expand, predict, sum_data, within_forms
from scoremle.types import Data, Keys, NoiseFn, PerExample, Scalar, Times

__all__ = ["Profile", "msma_levels", "profile_columns", "score_norms", "square_and_trace"]

# Noise levels of MSMA, of data between 0 and 1: those of the networks that its authors take.
MSMA_SIGMAS = np.geomspace(1.0, 0.01, 10)

# Up to so many dimensions the trace without noise is exact.
EXACT_DIMS = 16

OfBins = Float[np.ndarray, "n bins"]


@dataclass(frozen=True, eq=False, repr=False)
class Profile:
    """Profiles of examples over noise levels, in bits, with standard errors.

    The standard error of a bin is by few draws itself: by four, its double covers less than 95 %.

    ``bits`` of each example and bin of log-SNR add up to the diffusion term of the bound, and
    ``where`` has those of all bins for each number of the example. ``square`` and ``trace`` are
    ||eps||^2 and sigma tr(d eps/dx) at alpha x in the middle of each bin. The trace is exact up to
    16 dimensions, and an estimate beyond. The ``noised_`` two are their means over noised points.
    ``norms`` are those of the score at the log-SNR ``levels`` of MSMA, as far as the model has
    them. ``log_snr_edges`` are those of the bins.

    Args:
        bits_stderr: of ``bits``.
        where_stderr: of ``where``.
        trace_stderr: of ``trace``; 0 where that is exact.
        noised_square: as ``square``, over noised points.
        noised_square_stderr: of ``noised_square``.
        noised_trace: as ``trace``, over noised points.
        noised_trace_stderr: of ``noised_trace``.

    Example:
        >>> model = scoremle.load("digits")
        >>> found = model.profile(np.zeros((1, 8, 8, 1), np.uint8), bins=4, draws=2)
        >>> print(found.bits.shape, found.where.shape, found.flipd.shape)
        (1, 4) (1, 8, 8, 1) (1, 4)
    """

    log_snr_edges: Float[np.ndarray, " edges"]
    bits: OfBins
    bits_stderr: OfBins
    where: Float[np.ndarray, "n *d"]
    where_stderr: Float[np.ndarray, "n *d"]
    square: OfBins
    trace: OfBins
    trace_stderr: OfBins
    noised_square: OfBins
    noised_square_stderr: OfBins
    noised_trace: OfBins
    noised_trace_stderr: OfBins
    levels: Float[np.ndarray, " levels"]
    norms: Float[np.ndarray, "n levels"]

    def __len__(self) -> int:
        return len(self.bits)

    def __repr__(self) -> str:
        low, high, total = *self.log_snr_edges[[0, -1]], self.bits.sum(axis=1)
        mean = f"; {total.mean():.4g} bits in the mean" if len(self) else ""
        return (
            f"Profile({len(self)} example{'s' * (len(self) != 1)}, {self.bits.shape[1]} bins of"
            f" log-SNR from {low:.1f} to {high:.1f}{mean})"
        )

    def of(self, example: int) -> "Profile":
        """The profile of one example.

        Args:
            example: its number.

        Example:
            >>> model = scoremle.load("digits")
            >>> found = model.profile(np.zeros((2, 8, 8, 1), np.uint8), bins=4, draws=2)
            >>> print(found.of(1).bits.shape)
            (1, 4)
        """
        names = {field.name for field in fields(self)} - {"log_snr_edges", "levels"}
        return replace(self, **{name: getattr(self, name)[example, None] for name in names})

    @property
    def flipd(self) -> OfBins:
        """Local intrinsic dimension in each bin; its standard error is ``trace_stderr``.

        Example:
            >>> sde = scoremle.VP()
            >>> def noise(x, t):  # of data N(0, 1) in two of three dimensions
            ...     alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
            ...     return sigma * x / (alpha**2 * jnp.asarray([1, 1, 0]) + sigma**2)
            >>> model = scoremle.ScoreModel(noise, sde, eps=1e-3, shape=(3,))
            >>> print(f"{model.profile(np.zeros((1, 3), np.float32)).flipd[0, -1]:.1f}")
            2.0
        """
        return math.prod(self.where.shape[1:]) - self.trace + self.square

    def plot(self, example: int = 0, axes: Any = None) -> Any:
        """Draws the bits of an example over the log-SNR, and those of half of all examples.

        Args:
            example: its number.
            axes: of matplotlib; None: the current ones.

        Returns the axes. Raises UserError without matplotlib.

        Example:
            >>> model = scoremle.load("digits")
            >>> found = model.profile(np.zeros((2, 8, 8, 1), np.uint8), bins=4, draws=2)
            >>> try:
            ...     print(found.plot(1).get_ylabel())
            ... except scoremle.UserError:  # where matplotlib is not installed
            ...     print("bits")
            bits
        """
        if axes is None:
            with needing("plot", "plots"):
                from matplotlib import pyplot
            axes = pyplot.gca()
        edges, bits = self.log_snr_edges, self.bits[example]
        low, high = np.quantile(self.bits, [0.25, 0.75], axis=0)
        axes.stairs(high, edges, baseline=low, fill=True, alpha=0.3, label="half of the examples")
        axes.stairs(bits, edges, label=f"example {example}")
        axes.errorbar(
            (edges[:-1] + edges[1:]) / 2, bits, 2 * self.bits_stderr[example], fmt="none",
            color="k", capsize=2,
        )  # fmt: skip
        axes.set(xlabel="log-SNR: noise on the left, data on the right", ylabel="bits")
        axes.legend()
        return axes


def msma_levels(sde: SDE, eps: Scalar, width: float) -> Float[np.ndarray, " levels"]:
    """Log-SNR of MSMA's noise levels that the model has, of data in a range of this width.

    Args:
        sde: its log-SNR is one number at each t.
        eps: the smallest time.
        width: of the data's range.
    """
    low, high = map(float, log_snr_range(sde, eps))
    levels = -2 * np.log(MSMA_SIGMAS * width)
    return levels[(levels >= low) & (levels <= high)].astype(np.float32)


def profile_columns(
    noise: NoiseFn,
    sde: SDE,
    x: Data,
    keys: Keys,
    *,
    eps: Scalar,
    bins: int,
    draws: int,
    levels: Float[Array, " levels"],
    dequantized: Callable[[Keys], Data],
) -> dict[str, Array]:
    """The columns of ``Profile``, a row for each example.

    Args:
        noise: the noise prediction eps(x, t).
        sde: the SDE that it belongs to.
        x: data.
        keys: one for each example.
        eps: the smallest time.
        bins: of log-SNR.
        draws: of noise and times in each bin, two at least, and probes where the trace is not
            exact.
        levels: log-SNR at which the norm of the score is taken.
        dequantized: the data anew, by a key for each example, for each draw of noise.
    """
    low, high = log_snr_range(sde, eps)
    width, forms = (high - low) / bins, within_forms(noise)

    def noised(inputs: tuple[Array, Times, Keys]) -> tuple[Data, PerExample, PerExample]:
        number, t, keys = inputs
        key_u, key_z, key_w = split(fold_in(keys, number), 3)
        z, w = normal(key_z, x), per_example(jax.random.rademacher, key_w, x.shape[1:], x.dtype)
        x_t = sde.perturb(dequantized(key_u), t, z)
        prediction, jw = jax.jvp(lambda y: predict(forms, y, t), (x_t,), (w,))
        trace = sde.sigma(t) * sum_data(w * jw)
        return jnp.square(prediction - z) / 2, sum_data(jnp.square(prediction)), trace

    def in_bin(number: Array) -> dict[str, Array]:
        key_t, key_rows, key_probes = split(fold_in(keys, number), 3)
        u = jax.vmap(lambda key: unit_draws(key, draws, True), out_axes=1)(key_t)
        t = times_at(sde, eps, low + width * (number + jnp.sort(u, axis=0))).astype(x.dtype)
        each = jnp.arange(draws), t, jnp.broadcast_to(key_rows, (draws, len(x)))
        where, square, trace = jax.lax.map(noised, each)
        middle, of_bits = low + width * (number + 0.5), width / jnp.log(2.0)
        return {
            **_mean("bits", of_bits * jax.vmap(sum_data)(where)),
            **_mean("where", of_bits * where),
            **_mean("noised_square", square),
            **_mean("noised_trace", trace),
            **square_and_trace(noise, sde, x, key_probes, middle, eps=eps, probes=draws),
        }

    found = jax.lax.map(in_bin, jnp.arange(bins))
    where = {
        "where": jnp.sum(found.pop("where"), axis=0),
        "where_stderr": jnp.sqrt(jnp.sum(jnp.square(found.pop("where_stderr")), axis=0)),
    }
    norms = score_norms(noise, sde, x, levels, eps=eps)
    return {name: column.T for name, column in found.items()} | where | {"norms": norms}


def square_and_trace(
    noise: NoiseFn, sde: SDE, x: Data, keys: Keys, lam: Array, *, eps: Scalar, probes: int
) -> dict[str, PerExample]:
    """||eps||^2 and sigma tr(d eps/dx) at alpha x, at this log-SNR, with the trace's error.

    Args:
        noise: the noise prediction eps(x, t).
        sde: the SDE that it belongs to.
        x: data.
        keys: draw the probes, one for each example.
        lam: the log-SNR.
        eps: the smallest time.
        probes: how many, in more dimensions than those of an exact trace.
    """
    exact, forms = dims_of(x) <= EXACT_DIMS, within_forms(noise)
    divergence: DivergenceEstimator = Exact() if exact else Hutchinson(probes)
    t = jnp.full(len(x), times_at(sde, eps, lam), x.dtype)
    x_t, sigma = expand(sde.alpha(t), x) * x, sde.sigma(t)
    drawn = divergence.draw(keys, x_t)
    prediction, traces, _ = divergence(lambda y: predict(forms, y, t), x_t, drawn)
    variance = jnp.sum(jnp.square(divergence.deviations(traces)), axis=0)
    return {
        "square": sum_data(jnp.square(prediction)),
        "trace": sigma * jnp.mean(traces, axis=0),
        "trace_stderr": sigma * jnp.sqrt(variance),
    }


def score_norms(
    noise: NoiseFn, sde: SDE, x: Data, levels: Float[Array, " levels"], *, eps: Scalar
) -> Float[Array, "b levels"]:
    """The norm of the score of data, as a function of these and not of x_t, at each level.

    Args:
        noise: the noise prediction eps(x, t).
        sde: the SDE that it belongs to.
        x: data, to which no noise is added.
        levels: log-SNR.
        eps: the smallest time.
    """

    def norm(lam: Array) -> PerExample:
        t = jnp.full(len(x), times_at(sde, eps, lam), x.dtype)
        prediction = predict(noise, expand(sde.alpha(t), x) * x, t)
        return jnp.sqrt(sum_data(jnp.square(prediction))) * jnp.exp(lam / 2)

    return jax.lax.map(norm, levels).T


def _mean(name: str, samples: Float[Array, "draws b *d"]) -> dict[str, Array]:
    """The mean of stratified draws, and its standard error."""
    flat = samples.reshape(len(samples), -1)
    stderr = jnp.sqrt(variance_of_mean(flat, stratified=True)).reshape(samples.shape[1:])
    return {name: jnp.mean(samples, axis=0), f"{name}_stderr": stderr}
