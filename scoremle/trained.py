"""A trained model, for use from Python."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from scoremle import evaluate
from scoremle.data import padded_batches
from scoremle.errors import UserError
from scoremle.experiment import Experiment, Weights, build
from scoremle.nodes import PILOT_IMAGES, Auto
from scoremle.reference import PublishedRK45
from scoremle.tasks import exact_metric
from scoremle.workdir import Workdir

__all__ = ["Scores", "Trained", "load"]

BATCH_SIZE = 256


@dataclass(frozen=True)
class Scores:
    """Of each image: log P(x) of its integers in nats, bits/dim, and the errors in bits/dim.

    ``probe_stderr`` is NaN for a single probe (``eval.probes``), which cannot tell its own error.
    """

    log_prob: Float[np.ndarray, " n"]
    bpd: Float[np.ndarray, " n"]
    probe_stderr: Float[np.ndarray, " n"]
    solver_error: Float[np.ndarray, " n"]


@dataclass
class Trained:
    """A trained model of integer images.

    With ``eval.solver=auto`` the first images that are scored choose the solver's nodes, for all.
    """

    experiment: Experiment
    params: Any
    step: int
    _measure: Any = field(default=None, init=False, repr=False)

    def score(self, images: UInt8[np.ndarray, "n h w c"], *, seed: int = 0) -> Scores:
        """Exact likelihoods of images under the probability-flow ODE, uniformly dequantized.

        Raises UserError for images of another shape, type or range than the model was trained on.
        """
        images = np.asarray(images)
        self._check(images)
        if self._measure is None and len(images):
            self._measure = self._compiled(images[:PILOT_IMAGES])
        size = max(1, min(BATCH_SIZE, len(images)))
        found: dict[str, list[np.ndarray]] = {"bpd": [], "probe_stderr": [], "solver_error": []}
        for i, (batch, mask) in enumerate(padded_batches(images, size)):
            key = jax.random.fold_in(jax.random.key(seed), i)
            values = jax.device_get(self._measure(Weights(self.params), jnp.asarray(batch), key))
            for name, column in found.items():
                column.append(values[name][mask])
        columns = {name: np.concatenate([*c, np.zeros(0)]) for name, c in found.items()}
        bits = self.experiment.dims * np.log(2)
        return Scores(log_prob=-columns["bpd"] * bits, **columns)

    def _compiled(self, pilot: UInt8[np.ndarray, "n h w c"]) -> evaluate.Metric:
        experiment = self.experiment
        if isinstance(experiment.solver, Auto):
            experiment, _ = experiment.choose_nodes(self.params, jnp.asarray(pilot))
        metric = exact_metric(experiment)
        on_host = isinstance(experiment.solver, PublishedRK45)
        return metric if on_host else jax.jit(metric)

    def _check(self, images: np.ndarray) -> None:
        shape, levels = self.experiment.data.shape, self.experiment.pixels.levels
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise UserError(
                f"images must be uint8 of shape (n, {', '.join(map(str, shape))}), "
                f"not {images.dtype} of shape {images.shape}"
            )
        if images.size and images.max() >= levels:
            raise UserError(f"pixels must lie in 0..{levels - 1}, but one is {images.max()}")


def load(workdir: str | Path, checkpoint: int | None = None) -> Trained:
    """The model in a working directory: this checkpoint, or the newest (averaged parameters)."""
    place = Workdir(Path(workdir))
    # The number of levels stands for the data set, which need not be here.
    experiment = build(place.config(), levels=place.levels())
    state, meta, _ = place.snapshots.restore(experiment.template(), checkpoint)
    return Trained(experiment, state.ema, int(meta["step"]))
