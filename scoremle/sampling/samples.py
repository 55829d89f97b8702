"""Samples of a model, each with its log-density and the errors of that."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

from scoremle.errors import UserError
from scoremle.numerics import typical

__all__ = ["Samples"]


@dataclass(frozen=True, eq=False, repr=False)
class Samples:
    """Samples with log p of each in nats, found by the solution of the ODE that drew them.

    ``log_prob`` is the model's log-density at ``x``: what ``model.log_prob`` gives there, within
    the errors that both state. ``solver_error`` should cover the solver's error, and contains what
    an error of ``x`` does to log p. ``probe_stderr`` is the standard error from random probes,
    zero for an exact trace: its square is the variance of ``log_prob``. ``latent`` are the draws
    of the prior, and ``evaluations`` counts network evaluations, each with its derivatives.

    For a model of integer images ``x`` are reals, and ``integers`` the levels of the bins in which
    they lie; a real beyond the grid has the first or the last level. ``log_prob`` is of the reals.
    With the logarithm of a bin's volume added it is not log P(integers). In the mean over samples
    it is larger: by the divergence of the reals in a bin from uniform ones. ``model.score`` bounds
    log P(integers) from the other side.

    Raises UserError for columns that do not have a number for each sample.

    Example:
        >>> sde = scoremle.VP()
        >>> noise = lambda x, t: sde.sigma(t)[:, None] * x  # of data N(0, I)
        >>> model = scoremle.ScoreModel(noise, sde, eps=1e-3, shape=(2,))
        >>> samples = model.sample(5, jax.random.key(0), log_prob=True)
        >>> exact = -np.sum(samples.x**2, axis=1) / 2 - np.log(2 * np.pi)
        >>> print(samples.x.shape, bool(np.allclose(samples.log_prob, exact, atol=0.01)))
        (5, 2) True
    """

    x: Float[np.ndarray, "n *d"]
    log_prob: Float[np.ndarray, " n"]
    solver_error: Float[np.ndarray, " n"]
    probe_stderr: Float[np.ndarray, " n"]
    latent: Float[np.ndarray, "n *d"]
    evaluations: Integer[np.ndarray, " n"]
    integers: Integer[np.ndarray, "n *d"] | None = None

    def __post_init__(self) -> None:
        for name in ("log_prob", "solver_error", "probe_stderr", "evaluations"):
            if (shape := np.shape(getattr(self, name))) != np.shape(self.x)[:1]:
                raise UserError(
                    f"{name} must be a number for each of {len(self.x)} samples, not of shape"
                    f" {shape}"
                )

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        if not len(self):
            return "Samples(none)"
        return (
            f"Samples({len(self)}: log p {np.mean(self.log_prob):.5g} nats in the mean; errors of"
            f" one: solver {typical(self.solver_error)}, probes {typical(self.probe_stderr)};"
            f" {np.mean(self.evaluations):.0f} evaluations)"
        )
