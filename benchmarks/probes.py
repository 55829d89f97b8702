"""What random probes leave of an exact log p, of probes that cost the same.

    python benchmarks/probes.py                             # the model that ships, and Gaussians
    python benchmarks/probes.py --model=WORKDIR --images=4 --keys=8

Subjects: dequantized test images of a model of images; a Gaussian field of 10x10, whose
correlation falls by e over three places; a Gaussian of 100 dimensions without an order; and the
integers of the same images, of which each pass has other dequantization noise.

Repeats log p of the same data by other keys. Columns, in bits/dim of an example: the root mean
square of the deviation from the mean over keys; what is stated, likewise; and how often the
deviation is at most twice what is stated (95 % is right). Of integers, what is stated is of the
probes alone. The last line, JSON, has the ratios of the deviations to those of independent probes.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from common import KEY, SDE, answer, parser_of, reals

from helpers.oracles import Gaussian  # isort: skip

import scoremle
from scoremle.core.divergence import DivergenceEstimator
from scoremle.likelihood.image_model import pixels_of
from scoremle.likelihood.ode import ode_log_likelihood

PROBES: dict[str, DivergenceEstimator] = {
    "independent": scoremle.Hutchinson(),
    "hierarchical": scoremle.Hierarchical(),
}
STEPS = 16, 24, 40, 64
SIDE, LENGTH, EXAMPLES = 10, 3.0, 50

# Probes, steps and keys give values and their stated errors [keys n].
Measure = Callable[[DivergenceEstimator, int, jax.Array], tuple[np.ndarray, np.ndarray]]


def of_reals(noise: Any, sde: scoremle.SDE, x: Any, eps: float) -> Measure:
    def measure(
        probes: DivergenceEstimator, steps: int, keys: jax.Array
    ) -> tuple[np.ndarray, np.ndarray]:
        log_p = jax.jit(partial(
            ode_log_likelihood, noise, sde, eps=eps, divergence=probes,
            solver=scoremle.Multistep(steps),
        ))  # fmt: skip
        found = [log_p(x, key) for key in keys]
        bits = x[0].size * np.log(2)
        values, stated = (
            np.stack([getattr(each, field) for each in found]).astype(float) / bits
            for field in ("log_prob", "probe_stderr")
        )
        return values, stated

    return measure


def of_integers(model: scoremle.ScoreModel, images: np.ndarray) -> Measure:
    def measure(
        probes: DivergenceEstimator, steps: int, keys: jax.Array
    ) -> tuple[np.ndarray, np.ndarray]:
        estimator = scoremle.ByOde(probes, scoremle.Multistep(steps))
        found = [model.score(images, estimator=estimator, seed=i) for i in range(len(keys))]
        return np.stack([s.bpd for s in found]), np.stack([s.probe_stderr for s in found])

    return measure


def subjects(name: str, count: int) -> Iterator[tuple[str, Measure]]:
    model = scoremle.load(name)
    images = scoremle.data.load(model.origin.dataset).test[:count]
    y = reals(pixels_of(model), images)
    yield f"images of {name}", of_reals(model.noise, model.sde, y, model.eps)
    places = np.moveaxis(np.indices((SIDE, SIDE)), 0, -1).reshape(-1, 2)
    apart = np.linalg.norm(places[:, None] - places, axis=-1)
    field = Gaussian(np.full(len(places), 0.3), *np.linalg.eigh(np.exp(-apart / LENGTH)))
    for title, data, shape in (
        ("a field", field, (SIDE, SIDE)), ("no order", Gaussian.random(6, SIDE**2), (SIDE**2,)),
    ):  # fmt: skip
        flat = data.noise(SDE)

        def noise(x: jax.Array, t: jax.Array, flat: Any = flat) -> jax.Array:
            return flat(x.reshape(len(x), -1), t).reshape(x.shape)

        x = data.draw(7, EXAMPLES).astype(np.float32).reshape(-1, *shape)
        yield title, of_reals(noise, SDE, x, 1e-4)
    yield f"integers of {name}", of_integers(model, images)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="digits", help="what scoremle.load takes")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--keys", type=int, default=16)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    options = parser.parse_args()
    keys = jax.random.split(KEY, options.keys)
    rows, ratios = [], {}
    for subject, measure in subjects(options.model, options.images):
        for steps in options.steps:
            sizes = {}
            for name, probes in PROBES.items():
                values, stated = measure(probes, steps, keys)
                # The mean over keys has an error, too, and goes with each of its values.
                error = (values - values.mean(0)) / np.sqrt(1 - 1 / len(keys))
                sizes[name] = float(np.sqrt(np.mean(error**2)))
                rows.append((
                    subject, str(steps), name, f"{sizes[name]:.4f}",
                    f"{np.sqrt(np.mean(stated**2)):.4f}",
                    f"{np.mean(np.abs(error) <= 2 * stated):.0%}",
                ))  # fmt: skip
            ratios[f"{subject}, {steps}"] = sizes["hierarchical"] / sizes["independent"]
    answer(("subject", "steps", "probes", "sd", "stated", "covered"), rows, ratios)


if __name__ == "__main__":
    main()
