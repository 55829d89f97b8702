"""Times whose density is learned from the loss, while a network is trained.

Let h be the loss of an example as an integrand over the log-SNR. Drawn with a density q, its
estimator h/q has the second moment int E[h^2] / q, which is least where q is proportional to
E[h^2]^(1/2). So a running mean of h^2 is kept in each bin of the log-SNR, and what is drawn next
follows its root. Whatever was learned, the loss stays unbiased: it is divided by the density.

(Nichol and Dhariwal, arXiv 2102.09672, section 3.3, in continuous time.)
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from scoremle.core.pytree import frozen_pytree
from scoremle.core.sde import SDE
from scoremle.core.times import BINS, BinnedLogSNR, bin_of, log_snr_edges
from scoremle.types import PerExample, Scalar, Times

__all__ = ["LossMoments"]

# Share of the sums that a step keeps: they remember about a hundred steps.
KEPT = 0.99
# Share of the draws that goes evenly to all bins. So a weight is bounded, and no bin is forgotten.
EVEN = 0.1


@frozen_pytree
class LossMoments:
    """Fading sums over steps of h^2, and of the numbers of draws, in each bin of the log-SNR.

    Args:
        squares: fading sums of h^2 in each bin.
        draws: fading numbers of draws in each bin.
    """

    squares: Float[Array, " bins"]
    draws: Float[Array, " bins"]

    @classmethod
    def none(cls) -> "LossMoments":
        """The sums before the first step."""
        return cls(jnp.zeros(BINS), jnp.zeros(BINS))

    @property
    def shares(self) -> Float[Array, " bins"]:
        """Shares of the draws for each bin. A bin that was never met counts as the mean one."""
        met = self.draws > 0
        roots = jnp.sqrt(self.squares / jnp.where(met, self.draws, 1))
        mean = jnp.sum(roots) / jnp.maximum(jnp.sum(met), 1)
        roots = jnp.where(met, roots, mean)
        total = jnp.sum(roots)
        learned = jnp.where(total > 0, roots / jnp.where(total > 0, total, 1), 1 / BINS)
        return EVEN / BINS + (1 - EVEN) * learned

    def times(self, sde: SDE, eps: Scalar, stratified: bool) -> BinnedLogSNR:
        """The sampler of the next step.

        Args:
            sde: the SDE whose log-SNR is drawn.
            eps: the smallest time.
            stratified: space the draws of one call evenly.
        """
        return BinnedLogSNR(sde, eps, self.shares, stratified)

    def updated(
        self, sde: SDE, eps: Scalar, losses: PerExample, t: Times, density: Times
    ) -> "LossMoments":
        """The sums after a step.

        Args:
            sde: the SDE whose log-SNR was drawn.
            eps: the smallest time.
            losses: of the examples, each divided by the density of its time.
            t: the times that were drawn.
            density: theirs.
        """
        h = losses * density / sde.likelihood_weight(t)
        bins = bin_of(log_snr_edges(sde, eps), sde.log_snr(t))
        # Not by a scatter, whose order of additions differs from run to run on a GPU.
        hits = (bins[:, None] == jnp.arange(BINS)).astype(self.squares.dtype)
        return LossMoments(
            KEPT * self.squares + jnp.sum(hits * jnp.square(h)[:, None], axis=0),
            KEPT * self.draws + jnp.sum(hits, axis=0),
        )
