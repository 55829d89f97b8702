"""Do samples look as likely as test images? By sampler and its steps, on a model of digits.

    python benchmarks/likely_samples.py                                # the model that ships
    python benchmarks/likely_samples.py runs/digits --checkpoint=1     # of a training

Each sampler draws as `scoremle sample` does, from the same keys. Columns: how many of the samples
have more bits/dim than each of the 360 test images, and the mean over samples with its standard
error; all by the ODE, in two passes. The first line has the mean over test images, and the most.
"""

from dataclasses import replace

import jax
import numpy as np
from common import answer, parser_of

import scoremle
from scoremle.cli.commands.sample import SMALLEST_TIME
from scoremle.experiment import defaults
from scoremle.experiment.build import sampler_of
from scoremle.experiment.samplers import ConfiguredSampler
from scoremle.model import ScoreModel

TRIED = (
    ("ode", 32), ("ode", 128), ("dpm_solver", 32), ("ddim", 100), ("euler", 100), ("euler", 300),
    ("pc", 100), ("pc", 300),
)  # fmt: skip


def sampler(model: ScoreModel, name: str, steps: int) -> ConfiguredSampler:
    config = defaults.get_config()
    config.sampling.method, config.sampling.steps = name, steps
    config.sampling.smallest_time = max(model.eps, SMALLEST_TIME)
    defaults.resolve(config)
    return sampler_of(config, model.sde)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("model", nargs="?", default="digits")
    parser.add_argument("--checkpoint", type=int, help="of a working directory; unset: the newest")
    parser.add_argument("--count", type=int, default=64, help="samples")
    parser.add_argument("--samplers", nargs="+", default=[name for name, _ in TRIED])
    options = parser.parse_args()
    model = scoremle.load(options.model, options.checkpoint)

    def bpd(images: np.ndarray) -> np.ndarray:
        return np.asarray(model.score(images, passes=2, seed=1).bpd)

    test, rows, results = bpd(scoremle.data.load("digits").test), [], {}
    print(f"test images: {test.mean():.3f} bits/dim in the mean, {test.max():.3f} at most")
    for name, steps in TRIED:
        if name not in options.samplers:
            continue
        drawn = sampler(model, name, steps)
        x = replace(model, eps=drawn.eps).sample(
            options.count, jax.random.key(0), sampler=drawn.draw
        )
        found = bpd(x)
        beyond, error = int((found > test.max()).sum()), found.std(ddof=1) / len(found) ** 0.5
        rows.append((
            name, str(steps), f"{beyond} of {len(found)}", f"{found.mean():.3f} ± {error:.3f}"
        ))  # fmt: skip
        results[f"{name}_{steps}"] = {"beyond": beyond, "mean": float(found.mean())}
        print(" ".join(rows[-1]), flush=True)
    answer(("sampler", "steps", "unlikelier than all test images", "bits/dim"), rows, results)


if __name__ == "__main__":
    main()
