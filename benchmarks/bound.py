"""The bound's error at equal network evaluations: the published estimator and ours, side by side.

    python benchmarks/bound.py --quick
    python benchmarks/bound.py --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist

Takes the model of a workdir (and trains it first, where there is none; ``--quick`` is a
short training on digits), and repeats each estimator on the same dequantized test images. Columns,
in bits/dim: the mean, which must agree; the standard deviation of one estimate of one image; the
standard error that the estimator states; how often the estimate lies within twice that of the mean
over the repeats, of which it is one (96 % is right of 12); seconds for one estimate of one image.

The published estimator draws the noise of its prior and of its offset once, whatever the number of
draws. So the ratios of the last line, JSON, are two: ``sd_ratio`` is of the integrals over time
alone, ``sd_ratio_whole`` of the whole bounds.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import LW_IS, answer, parser_of, reals, timed, train

from scoremle.cli import commands
from scoremle.core.loss import denoising_residual
from scoremle.core.sde import SDE
from scoremle.core.times import BinnedLogSNR, UniformLogSNR, log_snr_range
from scoremle.experiment.build import Experiment, build
from scoremle.experiment.control_variate import ControlRun
from scoremle.experiment.workdir import Workdir
from scoremle.likelihood.elbo import LAST_SHARE, MIN_LAST_DRAWS, elbo
from scoremle.numerics import sum_data
from scoremle.types import Data, NoiseFn, PerExample, PRNGKey

QUICK = (*LW_IS, "--config.training.n_iters=600", "--config.training.snapshot_freq=600")

Estimate = dict[str, PerExample]
Estimator = Callable[[Data, PRNGKey], Estimate]


def published(
    noise: NoiseFn, sde: SDE, x: Data, key: PRNGKey, *, eps: float, evaluations: int
) -> Estimate:
    """The bound's terms as Song, Durkan et al. draw them; one evaluation goes to the offset.

    (Their probe for the divergence of the drift has entries +-1, and so gives it exactly.)
    """
    batch, dims = len(x), x[0].size
    key_t, key_z, key_prior, key_offset = jax.random.split(key, 4)
    low, high = log_snr_range(sde, eps)
    draws = evaluations - 1
    t = UniformLogSNR(sde, eps)(key_t, draws * batch)[0].reshape(draws, batch)

    def integrand(inputs):
        t, key = inputs
        z = jax.random.normal(key, x.shape)
        residual = denoising_residual(noise, sde, x, t, z) - sum_data(z**2) / 2
        return (high - low) * (residual - dims * sde.f(t) / sde.likelihood_weight(t))

    samples = jax.lax.map(integrand, (t, jax.random.split(key_z, draws)))
    one, ends = jnp.ones(batch), jnp.full(batch, eps)
    prior = -sde.prior_log_prob(sde.perturb(x, one, jax.random.normal(key_prior, x.shape)))
    residual = denoising_residual(noise, sde, x, ends, jax.random.normal(key_offset, x.shape))
    # The decoder's cross-entropy less the kernel's entropy.
    offset = residual - dims * (0.5 + sde.log_alpha(ends))
    integral = jnp.mean(samples, axis=0)
    return {
        "bound": prior + integral + offset,
        "integral": integral,
        "stderr": jnp.std(samples, axis=0, ddof=1) / jnp.sqrt(draws),
    }


def ours(noise: NoiseFn, sde: SDE, x: Data, key: PRNGKey, *, draws: int, **options) -> Estimate:
    """The library's bound."""
    found = elbo(noise, sde, x, key, draws=draws, **options)
    return {"bound": -found.log_prob, "integral": found.diffusion, "stderr": found.stderr}


def repeated(estimate: Estimator, x: Data, repeats: int) -> tuple[Estimate, float]:
    """Every estimate [repeats n], and the seconds for one of them."""
    run = jax.jit(estimate)
    timed(run, x, jax.random.key(0))  # compiles
    found, seconds = timed(lambda: [run(x, jax.random.key(1 + i)) for i in range(repeats)])
    values = {name: np.stack([f[name] for f in found]).astype(float) for name in found[0]}
    return values, seconds.passed / (repeats * len(x))


def spread(values: np.ndarray) -> float:
    """The standard deviation over repeats, [repeats n], pooled over images."""
    return float(np.sqrt(values.var(axis=0, ddof=1).mean()))


def estimators(
    experiment: Experiment, params: Any, evaluations: int
) -> Iterator[tuple[str, Estimator]]:
    """The published one, then ours with one technique after another."""
    model = experiment.model
    noise, sde, eps = model.noise(params), model.sde, model.eps
    yield (
        "published",
        lambda x, key: published(noise, sde, x, key, eps=eps, evaluations=evaluations),
    )
    last = max(MIN_LAST_DRAWS, (evaluations - MIN_LAST_DRAWS) // (LAST_SHARE + 1))
    fitted = experiment.model_of(params), "denoising", experiment.data, experiment.seed
    control = ControlRun(*fitted).fit()
    learned = BinnedLogSNR(sde, eps, control.shares, stratified=True)
    for name, times, its_control in (
        ("closed form", UniformLogSNR(sde, eps), None),
        ("+ strata", UniformLogSNR(sde, eps, stratified=True), None),
        ("+ control", UniformLogSNR(sde, eps, stratified=True), control),
        ("+ learned times", learned, control),
    ):
        yield (
            name,
            lambda x, key, times=times, its_control=its_control: ours(
                noise, sde, x, key,
                draws=evaluations - last, eps=eps, times=times, control=its_control,
            ),
        )  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--quick", action="store_true", help="train on digits for 600 steps")
    parser.add_argument("--workdir", type=Path, default=Path("runs/bound"))
    parser.add_argument("--evaluations", type=int, default=128)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=12)
    options, flags = parser.parse_known_args()
    flags = [*(QUICK if options.quick else ()), *flags]
    workdir = Workdir(train(flags, options.workdir))
    flags_of_model = [*flags, f"--workdir={workdir.folder}", "--mode=eval"]
    experiment = build(commands.parser_of("").checked(flags_of_model).config)
    params = workdir.snapshots.restore(experiment.training.template, None)[0].ema
    model = experiment.model
    y = reals(model.pixels, experiment.data.test[: options.images], jax.random.key(7))
    bits, scale = model.dims * np.log(2), model.pixels.log_det_per_dim / np.log(2)

    rows, sd, sd_integral, found = [], {}, {}, {}
    for name, estimate in estimators(experiment, params, options.evaluations):
        values, seconds = repeated(estimate, y, options.repeats)
        bound, stated = values["bound"] / bits - scale, values["stderr"] / bits
        sd[name], sd_integral[name] = spread(bound), spread(values["integral"] / bits)
        error = sd[name] / np.sqrt(bound.size)
        covered = float(np.mean(np.abs(bound - bound.mean(axis=0)) < 2 * stated))
        found[name] = {"mean": bound.mean(), "error": error, "coverage": covered}
        rows.append(
            (name, f"{bound.mean():.4f} +- {error:.4f}", f"{sd[name]:.4f}",
             f"{sd_integral[name]:.4f}", f"{np.sqrt(np.mean(stated**2)):.4f}",
             f"{covered:.1%}", f"{seconds:.4f}")
        )  # fmt: skip
    header = ("estimator", "mean", "sd", "of the integral", "stated", "coverage", "s")
    answer(header, rows)
    first, last = "published", rows[-1][0]
    difference = found[last]["mean"] - found[first]["mean"]
    print(json.dumps({
        "sd_ratio": sd_integral[last] / sd_integral[first],
        "sd_ratio_whole": sd[last] / sd[first],
        "coverage": found[last]["coverage"],
        "difference_of_means": difference,
        "its_error": float(np.hypot(found[last]["error"], found[first]["error"])),
        "evaluations": options.evaluations, "images": options.images, "repeats": options.repeats,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
