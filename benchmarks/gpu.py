"""What does the published DDPM++ take on this device: training, exact likelihood, bound?

    python benchmarks/gpu.py              # minutes on a data-centre GPU
    python benchmarks/gpu.py --quick      # a tiny network, to see on any machine that it runs

Images are noise and the network is not trained, so bits/dim say only that it ran. All else is as
in the published config. The likelihood takes 40 steps of the solver and one probe; the bound takes
1000 draws. Columns:

    compile        seconds that the first call takes more than the second, which is timed
    images/s       for a likelihood or a bound, of one pass
    s for 10,000   seconds of 10,000 images at that pace
    bits/dim       the mean over these images, with the standard error that 10,000 would leave
    TFLOP/s        of the model: for a training step thrice those of the forward pass, as XLA
                   counts them before it optimises
    utilisation    the same as a share of what the card's maker states for dense products, where
                   that is known here: of TF32 in float32

A part does not begin when ``--minutes`` have passed, and has an empty row. The last line is JSON.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import answer, parser_of, timed

from scoremle.devices import replicate
from scoremle.experiment.build import build
from scoremle.experiment.config import published_config
from scoremle.training.program import make_program
from scoremle.training.step import init_state
from scoremle.xla import compiled

CONFIG = "vp/cifar10_ddpmpp_continuous"
QUICK = {
    "model.nf": 8, "model.ch_mult": (1,), "model.num_res_blocks": 1, "model.attn_resolutions": (),
    "data.image_size": 8, "training.batch_size": 4, "eval.bound_draws": 20,
    "eval.solver": "multistep", "eval.nodes": 4,
}  # fmt: skip
STEPS, IMAGES, OF_BOUND, WHOLE = 20, 512, 64, 10_000
# FLOPs a second of dense products, in float32 (TF32) and bfloat16.
HOPPER = {"float32": 494.7e12, "bfloat16": 989.4e12}
PEAKS = {"H100": HOPPER, "H200": HOPPER, "A100": {"float32": 156e12, "bfloat16": 312e12}}
COLUMNS = (
    "compile", "images/s", f"s for {WHOLE:,}", "bits/dim", "error", "TFLOP/s", "utilisation",
)  # fmt: skip

Row = dict[str, float]


class Subject:
    """The published experiment in one precision, with images of noise."""

    def __init__(self, fields: dict[str, Any], dtype: str = "float32") -> None:
        config = published_config(CONFIG, fields | {"model.dtype": dtype, "eval.dtype": dtype})
        self.experiment = build(config, levels=256)
        self.dtype, self.batch = dtype, config.training.batch_size
        initialiser = self.experiment.training.objective.initialiser
        self.params = initialiser.init(jax.random.key(0), self.images(2))

    def images(self, *count: int) -> np.ndarray:
        shape = (*count, *self.experiment.model.shape)
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def training(self) -> Row:
        """Optimisation steps, one after the other."""
        training = self.experiment.training
        program = make_program(training.objective.loss, training.optimizer, training.ema_rate)
        state = replicate(init_state(jax.tree.map(jnp.copy, self.params), training.optimizer))
        batches = jnp.asarray(self.images(STEPS, self.batch))

        def call() -> Any:
            nonlocal state
            state, row = program(state, batches)
            return row

        compiling, seconds, _ = _measured(call)
        pace = STEPS * self.batch / seconds
        rate = 3 * self._flops() * pace
        row = {"compile": compiling, "images/s": pace, "TFLOP/s": rate / 1e12}
        kind = jax.devices()[0].device_kind
        peak = next((peak[self.dtype] for name, peak in PEAKS.items() if name in kind), None)
        return row | ({"utilisation": rate / peak} if peak else {})

    def _flops(self) -> float:
        """FLOPs of the network for one image."""
        x = jnp.zeros((1, *self.experiment.model.shape))
        program = compiled(lambda params, x, t: self.experiment.model.noise(params)(x, t))
        cost = program.lower(self.params, x, jnp.full(1, 0.5)).cost_analysis()
        return (cost or {}).get("flops", np.nan)

    def likelihood(self, estimator: Any, count: int) -> Row:
        """Values of some images, in one batch where memory suffices."""
        model, images = self.experiment.model.model(self.params), self.images(count)
        compiling, seconds, scores = _measured(
            lambda: model.score(images, estimator=estimator, batch_size=count)
        )
        return {
            "compile": compiling, "images/s": count / seconds,
            f"s for {WHOLE:,}": seconds * WHOLE / count,
            "bits/dim": scores.bpd.mean(), "error": scores.bpd.std(ddof=1) / WHOLE**0.5,
        }  # fmt: skip


def _measured(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds that the first of two calls took more, those of the second, and its result."""
    _, first = timed(call)
    result, second = timed(call)
    return first.passed - second.passed, second.passed, result


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny network, a few images")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no part begins")
    options = parser.parse_args(arguments)
    fields = QUICK if options.quick else {}
    images, of_bound = (8, 4) if options.quick else (IMAGES, OF_BOUND)
    began, whole = time.monotonic(), Subject(fields)
    by_ode, by_elbo = whole.experiment.by_ode, whole.experiment.by_elbo
    parts: dict[str, Callable[[], Row]] = {
        "training, float32": whole.training,
        "training, bfloat16": lambda: Subject(fields, "bfloat16").training(),
        f"exact likelihood, {images} images": lambda: whole.likelihood(by_ode, images),
        f"bound, {of_bound} images": lambda: whole.likelihood(by_elbo, of_bound),
    }
    print(f"{CONFIG} on {jax.devices()[0].device_kind}, jax {jax.__version__}", flush=True)
    found = {}
    for name, part in parts.items():
        in_time = time.monotonic() - began < 60 * options.minutes
        found[name] = part() if in_time else {}
        print(f"{name}: {time.monotonic() - began:.0f} s after the start", flush=True)
    rows = [(name, *(_cell(row.get(column)) for column in COLUMNS)) for name, row in found.items()]
    answer(("part", *COLUMNS), rows, found)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    main()
