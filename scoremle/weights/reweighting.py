"""From samples of a model to a target: weights, the normalising constant, and expectations.

    log w_i = log target(x_i) - log q(x_i) - v_i / 2,        Z = E[w],    E_target[f] = E[w f] / Z

where log q is known up to noise of variance v from random probes. Without v / 2 the weights are
too large by exp(v / 2) in the mean. Where v is estimated from a few probes, which ``Doubling``
holds along the path, log Z stays too large: take 16 of them or more, or an exact trace.

With ESS the effective sample size of n weights, n / ESS - 1 is the square of their coefficient of
variation. So the logarithm of their mean has the standard error sqrt(1/ESS - 1/n), and is off by
-(1/ESS - 1/n) / 2 to first order, which is corrected. An expectation is a ratio of two means. Its
bias and error are by the jackknife, from the changes when one sample is left out.

The solver's error of log q is not random: its sign may be the same for all samples. So it moves
log Z by at most the weighted mean of its absolute values. That is stated apart, and shrinks with
more steps of the solver, not with more samples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp, softmax

from scoremle.core.arguments import as_reals, check_examples, check_kind
from scoremle.errors import UserError, warn
from scoremle.sampling.samples import Samples
from scoremle.weights.pareto import LARGEST_OF_ERRORS, largest_trusted, pareto_k


class Expectation(NamedTuple):
    """A mean over the target, its standard error, and what the solver's error may add to that."""

    mean: Float[np.ndarray, "*m"]
    stderr: Float[np.ndarray, "*m"]
    solver_error: Float[np.ndarray, "*m"]


@dataclass(frozen=True, eq=False, repr=False)
class Reweighted:
    """Samples as those of a target: log Z in nats, and what may be wrong with it.

    ``log_z`` is the logarithm of the target's integral, with ``bias`` (estimate minus truth)
    subtracted. ``stderr`` is its standard error, by the spread of the weights, and contains the
    noise of random probes. ``solver_error`` is what the solver's error can add to that.
    ``ess`` is the effective sample size, (sum w)^2 / sum w^2. ``pareto_k`` is the shape of the
    largest weights: above 0.5 the errors may be too small, and above min(0.7, 1 - 1/log10 n) the
    means can't be trusted either.
    ``zeros`` counts the samples at which the target is 0. ``log_weights`` and ``solver_errors``
    are those of each sample, in nats.

    Example:
        >>> samples = scoremle.Samples(  # of N(0, 1)
        ...     x=(x := np.random.default_rng(0).normal(size=(1000, 1))),
        ...     log_prob=-x[:, 0] ** 2 / 2 - np.log(2 * np.pi) / 2,
        ...     solver_error=np.zeros(1000), probe_stderr=np.zeros(1000), latent=x,
        ...     evaluations=np.ones(1000, int),
        ... )
        >>> found = scoremle.weights.reweigh(samples, lambda x: -((x[:, 0] - 0.5) ** 2) / 2)
        >>> mean, stderr, _ = found.expectation(samples.x[:, 0])
        >>> print(f"{found.ess:.0f}", bool(abs(mean - 0.5) < 3 * stderr))
        792 True
    """

    log_weights: Float[np.ndarray, " n"]
    log_z: float
    stderr: float
    bias: float
    solver_error: float
    ess: float
    pareto_k: float
    zeros: int
    solver_errors: Float[np.ndarray, " n"]

    @property
    def weights(self) -> Float[np.ndarray, " n"]:
        """The weights, whose sum is 1."""
        return softmax(self.log_weights)

    def expectation(self, values: Float[np.ndarray, "n *m"]) -> Expectation:
        """The mean of a function over the target, with its bias to first order subtracted.

        NaN where one sample has all of the weight.

        Args:
            values: of the function at each sample, of any shape.

        Raises UserError for another number of values than samples, what are not reals, and what
        are not finite where the weight is above 0.
        """
        values, weights = as_reals(values, "values"), self.weights
        if values.shape[:1] != weights.shape:
            raise UserError(f"values must have a row for each of {len(weights)} samples")
        here = weights > 0
        values, weights, errors = values[here], weights[here], self.solver_errors[here]
        n = len(here)
        if not np.isfinite(values).all():
            raise UserError("values has a number that is not finite, where the weight is above 0")
        mean = np.tensordot(weights, values, 1)
        away = values - mean
        with np.errstate(divide="ignore", invalid="ignore"):
            moves = (away.T * (weights / (1 - weights))).T
        usual = moves.sum(axis=0) / n  # of all samples: those without a weight move nothing
        spread = np.square(moves - usual).sum(axis=0) + (n - len(moves)) * np.square(usual)
        return Expectation(
            mean + usual * (n - 1),
            np.sqrt(spread * (n - 1) / n),
            np.tensordot(weights * errors, np.abs(away), 1),
        )

    def __repr__(self) -> str:
        at_zero = f"; the target is 0 at {self.zeros}" if self.zeros else ""
        return (
            f"Reweighted({len(self.log_weights)} samples: log Z {self.log_z:.5g} +-"
            f" {self.stderr:.2g} nats, the solver's error at most {self.solver_error:.2g};"
            f" effective sample size {self.ess:.0f}, Pareto k {self.pareto_k:.2f}{at_zero})"
        )


def reweigh(
    samples: Samples, log_target: Callable[[Float[np.ndarray, "n *d"]], Any]
) -> Reweighted:
    """Weighs samples of a model so that they represent a target, and gives log of its integral.

    Warns where the largest weights have so heavy a tail that their mean, or its error, can't be
    trusted.

    Args:
        samples: with log p of each: ``model.sample(n, key, log_prob=True)``.
        log_target: the target's log-density in nats of x [n *d], up to a constant; minus infinity
            where it is 0.

    Raises UserError for fewer than two samples, or whose log p is not finite; for a log_target
    that gives no number for each sample, or NaN, or infinity, or 0 everywhere; and for samples
    whose random probes stay the same, which gives no variance.

    Example:
        >>> sde = scoremle.VP()
        >>> noise = lambda x, t: sde.sigma(t)[:, None] * x  # of data N(0, I)
        >>> model = scoremle.ScoreModel(noise, sde, eps=1e-3, shape=(2,))
        >>> samples = model.sample(2000, jax.random.key(0), log_prob=True)
        >>> found = scoremle.weights.reweigh(samples, lambda x: -np.sum(x**2, axis=1))
        >>> print(bool(abs(found.log_z - np.log(np.pi)) < 3 * found.stderr + found.solver_error))
        True
    """
    if not isinstance(samples, Samples) or len(samples) < 2:
        raise UserError(
            "samples must be two or more with their log p: model.sample(n, key, log_prob=True)"
        )
    check_kind("log_target", log_target, Callable, "lambda x: -np.sum(x**2, axis=1)")
    target = _checked(log_target(np.array(samples.x)), len(samples))
    check_examples(samples.log_prob, "log_prob of samples")
    variance = np.square(np.asarray(samples.probe_stderr, np.float64))
    if not np.isfinite(variance).all():
        raise UserError(
            "the probes' variance of log p is not known: draw samples with an exact trace, or with"
            " several probes"
        )
    log_weights = target - np.asarray(samples.log_prob, np.float64) - variance / 2
    n, weights = len(log_weights), softmax(log_weights)
    ess, errors = 1 / np.sum(np.square(weights)), np.asarray(samples.solver_error, np.float64)
    spread = max(1 / ess - 1 / n, 0.0)
    found = Reweighted(
        log_weights=log_weights,
        log_z=float(logsumexp(log_weights) - math.log(n) + spread / 2),
        stderr=math.sqrt(spread * n / (n - 1)),
        bias=-spread / 2,
        solver_error=float(weights @ errors),
        ess=float(ess),
        pareto_k=pareto_k(log_weights),
        zeros=int(np.sum(np.isneginf(log_weights))),
        solver_errors=errors,
    )
    if not found.pareto_k <= (most := largest_trusted(n)):
        warn(
            f"Pareto k of {n} weights is {found.pareto_k:.2f}, above {most:.2f}: neither their"
            " mean nor its error can be trusted; draw more samples, or train a model nearer to the"
            " target"
        )
    elif found.pareto_k > LARGEST_OF_ERRORS:
        warn(
            f"Pareto k of {n} weights is {found.pareto_k:.2f}, above {LARGEST_OF_ERRORS}: their"
            " variance may be infinite, and the errors that are stated too small; train a model"
            " nearer to the target"
        )
    return found


def _checked(log_target: Any, n: int) -> Float[np.ndarray, " n"]:
    """Raises UserError for what is not a log-density of each of ``n`` samples."""
    found = as_reals(log_target, "what log_target gives")
    if found.shape != (n,):
        raise UserError(f"log_target must give {n} numbers for {n} samples, not {found.shape}")
    if (bad := np.isnan(found) | np.isposinf(found)).any():
        row = bad.argmax()
        raise UserError(
            f"log_target gives {found[row]} for sample {row}: it must be finite, or -inf"
        )
    if np.isneginf(found).all():
        raise UserError("log_target is -inf at each sample: the model does not reach the target")
    return found
