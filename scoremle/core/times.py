"""Draws of t for training and the bound, with the density of the draw.

The likelihood weighting g^2/sigma^2 is -d lambda/dt. So the importance distribution of Song,
Durkan et al. (arXiv 2101.09258, section 5.1), proportional to g^2/sigma^2, is a uniform draw of
the log-SNR, for every SDE. A density proportional to the spread of the integrand has the least
variance, where that is known (`BinnedLogSNR`); for networks that predict a velocity, one
proportional to alpha^2 comes near it (`AlphaSquared`). A stratified draw spaces the n times evenly
and shifts them by one random offset (Kingma et al., arXiv 2107.00630, appendix I.1). Each single
time keeps its distribution.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from scoremle.core.arguments import as_array, check_count
from scoremle.core.kernels import KERNELS
from scoremle.core.keys import as_keys
from scoremle.core.pytree import frozen_pytree, require, static
from scoremle.core.schedules import Schedule
from scoremle.core.sde import SDE, check_eps, check_time
from scoremle.numerics import log1mexp
from scoremle.types import AnyArray, PRNGKey, Scalar, Times

__all__ = [
    "TIME_SAMPLER", "AlphaSquared", "BinnedLogSNR", "TimeSampler", "UniformLogSNR",
    "UniformTime", "bin_of", "even_times", "evenly", "log_snr_edges", "log_snr_range",
    "times_at", "unit_draws",
]  # fmt: skip

# Bins of the log-SNR in which a density over it is learned and the bound's terms are counted: each
# is about one unit wide.
BINS = 24
# After so many halvings of the range of the log-SNR its ends meet, in float64 too.
HALVINGS = 64


@runtime_checkable
class TimeSampler(Protocol):
    """Draws ``n`` times in [eps, 1] and gives their density.

    ``stratified``: the draws of one call are spaced evenly rather than independent.
    """

    @property
    def stratified(self) -> bool: ...

    def __call__(self, key: PRNGKey, n: int) -> tuple[Times, Times]: ...


# Their kind, and an example of it.
TIME_SAMPLER: tuple[Any, str] = TimeSampler, "scoremle.UniformTime(1e-3)"


def unit_draws(key: PRNGKey, n: int, stratified: bool) -> Times:
    """``n`` numbers, each uniform in (0, 1).

    JAX draws the left ends of 2^23 cells, in float32: with their middles, integrals over the cells
    of what falls as 1/t are right.

    Args:
        key: one.
        n: how many.
        stratified: space them evenly.

    Raises UserError for a negative number.
    """
    check_count("n", n, least=0)
    key = as_keys(key)
    if stratified:
        u = (jax.random.uniform(key) + jnp.arange(n) / n) % 1.0
    else:
        u = jax.random.uniform(key, (n,))
    half = float(jnp.finfo(u.dtype).eps) / 2
    return jnp.minimum(u + half, 1 - half)


def log_snr_range(sde: SDE, eps: Scalar) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """lambda at t = 1 and at t = eps; their difference is the paper's constant Z.

    Args:
        sde: its log-SNR is one number at each t.
        eps: the smallest time.

    Raises UserError for a schedule that has a log-SNR for each dimension.
    """
    ends = sde.common_log_snr(jnp.asarray([1.0, eps]))
    return ends[0], ends[1]


def even_times(sde: SDE, eps: Scalar, steps: int, dtype: DTypeLike | None = None) -> Times:
    """Times from t = 1 to t = eps, with so many steps between them that are even in log-SNR.

    Args:
        sde: its log-SNR is one number at each t.
        eps: the smallest time.
        steps: how many.
        dtype: of the times; None: JAX's default.

    Raises UserError for a schedule that has a log-SNR for each dimension.
    """
    low, high = log_snr_range(sde, eps)
    times = sde.time_of_log_snr(jnp.linspace(low, high, steps + 1, dtype=dtype))
    return times.at[0].set(1.0).at[-1].set(eps)


def times_at(sde: SDE, eps: Scalar, lam: Times) -> Times:
    """The times of these log-SNRs, of which rounding leaves none below ``eps`` or above 1.

    Args:
        sde: the noise at each time.
        eps: the smallest time.
        lam: between the log-SNR at t = 1 and that at t = ``eps``.
    """
    return jnp.clip(sde.time_of_log_snr(lam), eps, 1.0)


def log_snr_edges(sde: SDE, eps: Scalar) -> Float[Array, " n"]:
    """Edges of bins of equal width from the log-SNR at t = 1 to that at t = eps.

    Args:
        sde: its log-SNR is one number at each t.
        eps: the smallest time.
    """
    return jnp.linspace(*log_snr_range(sde, eps), BINS + 1)


def bin_of(edges: Float[Array, " n"], lam: Times) -> Array:
    """Index of the bin of each log-SNR.

    Args:
        edges: [n], rising.
        lam: log-SNRs; those outside belong to the end bins.
    """
    return jnp.clip(jnp.searchsorted(edges, lam, side="right") - 1, 0, len(edges) - 2)


@frozen_pytree
class UniformTime:
    """Times t, uniform on [eps, 1].

    They suit losses. Of a bound few draws are near eps, where the integrand is large: their spread
    then states too small an error. ``UniformLogSNR`` has no such.

    Args:
        eps: the smallest time.
        stratified: space the draws of one call evenly.

    Raises UserError for eps outside [0, 1).

    Example:
        >>> t, density = scoremle.UniformTime(0.2)(jax.random.key(0), 4)
        >>> print(density)  # 1 / (1 - 0.2)
        [1.25 1.25 1.25 1.25]
    """

    eps: Scalar
    stratified: bool = static(default=False)

    def __post_init__(self) -> None:
        check_time(self.eps)

    def __call__(self, key: PRNGKey, n: int) -> tuple[Times, Times]:
        u = unit_draws(key, n, self.stratified)
        t = self.eps + (1 - self.eps) * u
        return t, jnp.full_like(t, 1 / (1 - self.eps))


@frozen_pytree
class UniformLogSNR:
    """Log-SNR uniform between its values at t = 1 and t = eps: the paper's importance sampling.

    Args:
        sde: the SDE whose log-SNR is drawn.
        eps: the smallest time.
        stratified: space the draws of one call evenly.

    Raises UserError for eps outside [0, 1), and for a log-SNR that each dimension has of its own.

    Example:
        >>> sde = scoremle.VP()
        >>> t, density = scoremle.UniformLogSNR(sde, 1e-3)(jax.random.key(0), 100)
        >>> weights = sde.likelihood_weight(t) / density  # the same for all t
        >>> print(f"{weights.min() / weights.max():.3f}")
        1.000
    """

    sde: SDE
    eps: Scalar
    stratified: bool = static(default=False)

    def __post_init__(self) -> None:
        check_eps(self.sde, self.eps)

    def __call__(self, key: PRNGKey, n: int) -> tuple[Times, Times]:
        low, high = log_snr_range(self.sde, self.eps)
        u = unit_draws(key, n, self.stratified)
        t = times_at(self.sde, self.eps, low + (high - low) * u)
        return t, self.sde.likelihood_weight(t) / (high - low)


def evenly(sde: SDE, eps: Scalar) -> TimeSampler:
    """Strata of the log-SNR, or of its mean over dimensions where each has its own.

    Those of t, where each example has its own, too, between ends that all share.

    Args:
        sde: the noise at each time.
        eps: the smallest time.
    """
    if sde.schedule.per_example:
        return UniformTime(eps, stratified=True)
    if sde.schedule.per_dimension:
        sde = SDE(sde.kernel, _MeanOverDimensions(sde.schedule), sde.prior_std)
    return UniformLogSNR(sde, eps, stratified=True)


@frozen_pytree
class _MeanOverDimensions(Schedule):
    """The mean over dimensions of a log-SNR that each has of its own."""

    schedule: Schedule

    def log_snr(self, t: Times) -> Times:
        lam = self.schedule.log_snr(t)
        return jnp.mean(lam, axis=tuple(range(jnp.ndim(t), lam.ndim)))


@frozen_pytree
class AlphaSquared(UniformLogSNR):
    """Log-SNR with a density proportional to alpha^2 (Zheng et al., arXiv 2305.03935).

    With v the velocity, ||eps - eps_hat||^2 = alpha^2 ||v - v_hat||^2 for VP: so each time has the
    same weight in the loss of v.

    Args:
        sde: the SDE whose log-SNR is drawn.
        eps: the smallest time.
        stratified: space the draws of one call evenly.

    Raises UserError for eps outside [0, 1), and for a log-SNR that each dimension has of its own.

    Example:
        >>> sde = scoremle.SDE("vp", scoremle.LinearLogSNR(), 1.0)
        >>> t, density = scoremle.AlphaSquared(sde, 0.0)(jax.random.key(0), 100)
        >>> weights = sde.likelihood_weight(t) * sde.alpha(t) ** 2 / density  # the same for all t
        >>> print(f"{weights[0]:.2f} {weights.min() / weights.max():.3f}")
        13.29 1.000
    """

    def __call__(self, key: PRNGKey, n: int) -> tuple[Times, Times]:
        lam = self.log_snr(unit_draws(key, n, self.stratified))
        t = times_at(self.sde, self.eps, lam)
        first, last = self._ends
        return t, self.sde.likelihood_weight(t) * jnp.square(self.sde.alpha(t)) / (last - first)

    def log_snr(self, u: Times) -> Times:
        """The log-SNR above which a share ``u`` of the probability lies."""
        (low, high), (first, last) = log_snr_range(self.sde, self.eps), self._ends
        wanted = last - (last - first) * u
        if self.sde.kernel == "vp":  # where A = log(1 + e^lambda)
            return wanted + log1mexp(wanted)
        signal = KERNELS[self.sde.kernel].signal

        def halve(_: Array, ends: tuple[Times, Times]) -> tuple[Times, Times]:
            middle = (ends[0] + ends[1]) / 2
            below = signal(middle) < wanted
            return jnp.where(below, middle, ends[0]), jnp.where(below, ends[1], middle)

        ends = jnp.full_like(u, low), jnp.full_like(u, high)
        return jax.lax.fori_loop(0, HALVINGS, halve, ends)[1]

    @property
    def _ends(self) -> tuple[Times, Times]:
        """The values of A at t = 1 and at t = eps, whose difference normalises the density."""
        signal = KERNELS[self.sde.kernel].signal
        low, high = log_snr_range(self.sde, self.eps)
        return signal(low), signal(high)


@frozen_pytree(eq=False)
class BinnedLogSNR:
    """Log-SNR with a density that is constant on each bin of ``log_snr_edges``.

    Args:
        sde: the SDE whose log-SNR is drawn.
        eps: the smallest time.
        shares: the probabilities of the 24 bins: all above zero, with sum one.
        stratified: space the draws of one call evenly.

    Raises UserError for eps outside [0, 1), other shares, and a log-SNR that each dimension has of
    its own.

    Example:
        >>> sde, key = scoremle.VP(), jax.random.key(0)
        >>> t, _ = scoremle.BinnedLogSNR(sde, 1e-3, np.full(24, 1 / 24))(key, 100)
        >>> even, _ = scoremle.UniformLogSNR(sde, 1e-3)(key, 100)
        >>> bool(jnp.allclose(t, even, rtol=1e-3))
        True
    """

    sde: SDE
    eps: Scalar
    shares: Float[AnyArray, " bins"]
    stratified: bool = static(default=False)

    def __post_init__(self) -> None:
        check_eps(self.sde, self.eps)
        object.__setattr__(self, "shares", as_array(self.shares, "shares"))
        require(self, self._are_shares, f"shares must be {BINS} numbers above 0 of sum 1")

    def _are_shares(self) -> bool:
        shares = np.asarray(self.shares)
        return shares.shape == (BINS,) and bool(shares.min() > 0 and abs(shares.sum() - 1) < 1e-3)

    def __repr__(self) -> str:
        return f"BinnedLogSNR({np.size(self.shares)} bins)"

    def __call__(self, key: PRNGKey, n: int) -> tuple[Times, Times]:
        edges = log_snr_edges(self.sde, self.eps)
        shares = jnp.asarray(self.shares) / jnp.sum(self.shares)
        below = jnp.concatenate([jnp.zeros(1), jnp.cumsum(shares)])
        u = unit_draws(key, n, self.stratified)
        index = bin_of(below, u)
        width, share = jnp.diff(edges)[index], shares[index]
        lam = edges[index] + width * (u - below[index]) / share
        t = times_at(self.sde, self.eps, lam)
        return t, self.sde.likelihood_weight(t) * share / width
