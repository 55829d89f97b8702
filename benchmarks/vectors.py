"""Does log p of vectors state its error, of data of all shapes and by each SDE?

    python benchmarks/vectors.py [--rows=256]     # two minutes

Data are Gaussian: of ordinary width, correlated, of low rank, or a single point; and far from the
prior, where the noise at t = 1 does not hide their mean. Networks are exact, and so is the truth:
rows are draws of the density at the smallest time, and a linear ODE takes them to the prior.

Columns: the call; root mean square and mean of the true errors, in nats, estimate minus truth; the
median of the stated error; how many rows it covers, and how many twice of it; network evaluations
of a row.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import KEY, answer, parser_of
from scipy.stats import norm

import scoremle
from scoremle.core.sde import SDE

CALLS: dict[str, dict[str, Any]] = {
    "default": {}, "tolerance=0.05": {"tolerance": 0.05}, "tolerance=0.01": {"tolerance": 0.01}
}
# The least and the greatest SNR of a variational diffusion model, whose prior has the spread 1.
FAR = SDE("vp", scoremle.LinearLogSNR(), 1.0)


def cases() -> dict[str, tuple[SDE, float, np.ndarray, np.ndarray]]:
    """SDE, smallest time, mean and covariance of the data."""
    vp, subvp, ve = scoremle.VP(), scoremle.SubVP(), scoremle.VE()
    mean, line = np.array([1.0, -2.0, 0.5]), np.array([1.0, 0.5, -0.3])
    mixed = np.random.default_rng(3).normal(size=(3, 3))
    shapes = {
        "ordinary": mixed @ mixed.T / 3, "of rank 1": np.outer(line, line),
        "nearly equal columns": 1e-6 * np.eye(3) + np.ones((3, 3)), "a point": np.zeros((3, 3)),
    }  # fmt: skip
    found = {
        f"{shape}, {name}": (sde, 1e-3, mean, covariance)
        for shape, covariance in shapes.items()
        for name, sde in {"VP": vp, "sub-VP": subvp, "VE": ve}.items()
    }
    for distance in (5, 20, 100):
        found[f"mean {distance}, prior 1"] = FAR, 0.0, distance * np.array([1.0, -1]), np.eye(2)
    return found


def subject(
    sde: SDE, eps: float, mean: np.ndarray, covariance: np.ndarray, rows: int
) -> tuple[scoremle.ScoreModel, np.ndarray, np.ndarray]:
    """The model, rows of data as it has them at the smallest time, and their log p."""
    variances, axes = np.linalg.eigh(covariance)
    variances = np.maximum(variances, 0)

    def noise(x: jax.Array, t: jax.Array) -> jax.Array:
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        along = (x - alpha * mean) @ axes
        return (sigma * along / (alpha**2 * variances + sigma**2)) @ axes.T

    ends = jnp.asarray([eps, 1.0])
    (alpha, last), (sigma, noisy) = (np.asarray(f(ends), float) for f in (sde.alpha, sde.sigma))
    first, spread = alpha**2 * variances + sigma**2, last**2 * variances + noisy**2
    draws = np.random.default_rng(0).normal(size=(rows, len(mean))) * np.sqrt(first)
    x = ((draws @ axes.T + alpha * mean) / alpha).astype(np.float32)
    grown = np.sqrt(spread / first)
    latent = ((alpha * (x - mean)) @ axes * grown) @ axes.T + last * mean
    prior = float(sde.prior_std)
    log_prior = norm.logpdf(latent, scale=prior).sum(1)
    truth = log_prior + np.log(grown).sum() + len(mean) * np.log(alpha)
    return scoremle.ScoreModel(noise, sde, eps=eps, shape=mean.shape), x, truth


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=256)
    options = parser.parse_args()
    lines, results = [], {}
    for name, case in cases().items():
        model, x, truth = subject(*case, options.rows)
        for call, how in CALLS.items():
            found = model.log_prob(x, KEY, **how)
            error, stated = np.asarray(found.log_prob) - truth, np.asarray(found.solver_error)
            size, typical = np.sqrt(np.mean(error**2)), np.median(stated)
            once, twice = (float(np.mean(np.abs(error) <= k * stated)) for k in (1, 2))
            lines.append((name, call, f"{size:.1e}", f"{error.mean():+.1e}", f"{typical:.1e}",
                          f"{once:.0%}", f"{twice:.0%}", f"{np.mean(found.evaluations):.0f}"))
            print(*lines[-1], flush=True)
            results[f"{name}, {call}"] = {"covered": (once, twice), "error": float(size)}
    header = "data", "call", "error", "of the mean", "stated", "covers", "twice covers", "NFE"
    answer(header, lines, results)


if __name__ == "__main__":
    main()
