"""A trained model, for use from Python."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from scoremle.data.readers.arrays import as_uint8
from scoremle.errors import UserError
from scoremle.evaluation import metrics
from scoremle.experiment.build import Experiment, Weights, build
from scoremle.experiment.estimators import exact_metric
from scoremle.experiment.workdir import Workdir
from scoremle.likelihood.nodes import PILOT_IMAGES, Auto
from scoremle.likelihood.published_rk45 import PublishedRK45

__all__ = ["Scores", "Trained", "load"]

BATCH_SIZE = 256


@dataclass(frozen=True)
class Scores:
    """Of each image: log P(x) of its integers in nats, bits/dim, and the errors in bits/dim.

    ``log_prob`` and ``bpd`` are means over independent passes, each with its own dequantization
    noise and probes. ``stderr`` is the standard error of such a mean by their spread, and
    so has all that is random in it; NaN for one pass, which can't tell.

    The other two are told by each pass, and are parts. ``probe_stderr`` is what the random probes
    alone leave in the mean: the dequantization noise, often the larger part, is not in it. From a
    single probe (``eval.probes``) it is estimated along the path and may be far too large where
    nodes are few, and NaN where that probe stays the same (solvers "adaptive" and
    "rk45_reference"). ``solver_error`` is to cover the ODE solver's error, the mean over passes:
    that is not random, not in ``stderr``, and does not shrink with more passes.
    """

    log_prob: Float[np.ndarray, " n"]
    bpd: Float[np.ndarray, " n"]
    stderr: Float[np.ndarray, " n"]
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

    def __repr__(self) -> str:
        data, count = self.experiment.data, sum(np.size(p) for p in jax.tree.leaves(self.params))
        return (
            f"Trained({data.name} {'x'.join(map(str, data.shape))}, {data.levels} levels, "
            f"{self.experiment.sde}, {count:,} parameters, step {self.step})"
        )

    def score(
        self,
        images: UInt8[np.ndarray, "n h w c"],
        *,
        seed: int = 0,
        repeats: int = 1,
        label: str = "",
    ) -> Scores:
        """Exact likelihoods of images under the probability-flow ODE, uniformly dequantized.

        Means over ``repeats`` passes, with the error that their spread tells. What is random in an
        image's value depends on the seed and on the image's place in the array. Where the model
        has one channel, images may be [n h w]. Progress is told under ``label``, if there is one.
        Raises UserError for images of another shape, type or range than the model was trained on,
        a seed outside 0..2**32 - 1, and no passes.
        """
        if not 0 <= seed < 2**32:
            raise UserError(f"seed must be from 0 to 2**32 - 1, not {seed}")
        if repeats < 1:
            raise UserError(f"repeats must be at least 1, not {repeats}")
        images = self._checked(np.asarray(images))
        if not len(images):
            return Scores(*np.zeros((5, 0)))
        if self._measure is None:
            self._measure = self._compiled(images[:PILOT_IMAGES])
        values, _ = metrics.evaluate(
            self._measure, Weights(self.params), images,
            # A power of two: not every number of images is another program.
            batch_size=min(BATCH_SIZE, 1 << (len(images) - 1).bit_length()),
            repeats=repeats, seed=seed, label=label,
        )  # fmt: skip
        bpd = values["bpd"]
        mean = bpd.mean(axis=0)
        none = np.full(len(images), np.nan)
        return Scores(
            log_prob=-mean * self.experiment.dims * np.log(2),
            bpd=mean,
            stderr=bpd.std(axis=0, ddof=1) / np.sqrt(repeats) if repeats > 1 else none,
            probe_stderr=np.sqrt(np.square(values["probe_stderr"]).sum(axis=0)) / repeats,
            solver_error=values["solver_error"].mean(axis=0),
        )

    def _compiled(self, pilot: UInt8[np.ndarray, "n h w c"]) -> metrics.Metric:
        experiment = self.experiment
        if isinstance(experiment.solver, Auto):
            experiment, _ = experiment.choose_nodes(self.params, jnp.asarray(pilot))
        metric = exact_metric(experiment)
        on_host = isinstance(experiment.solver, PublishedRK45)
        return metric if on_host else jax.jit(metric)

    def _checked(self, images: np.ndarray) -> np.ndarray:
        """The images as [n h w c], or a UserError that says how to make them that."""
        shape, levels = self.experiment.data.shape, self.experiment.pixels.levels
        if images.ndim == 3 and images.shape[1:] == shape[:2] and shape[2] == 1:
            images = images[..., None]
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise UserError(
                f"images must be uint8 of shape (n, {', '.join(map(str, shape))}), "
                f"not {images.dtype} of shape {images.shape}{_remedy(images, shape, levels)}"
            )
        if images.size and images.max() >= levels:
            raise UserError(f"pixels must lie in 0..{levels - 1}, but one is {images.max()}")
        return images


def _remedy(images: np.ndarray, shape: tuple[int, int, int], levels: int) -> str:
    """What makes of these images what was asked for, as far as that can be told."""
    height, width, channels = shape
    steps = []
    if images.shape == shape or (channels == 1 and images.shape == (height, width)):
        steps.append("images[None]")
    elif images.shape[1:] == (channels, height, width) != shape:
        steps.append("images.transpose(0, 2, 3, 1)")
    if images.dtype != np.uint8 and images.dtype.kind in "iuf" and images.size:
        steps.append(as_uint8(images, "images", levels - 1))
    return "".join(f"; try {step}" for step in steps if step)


def load(workdir: str | Path, checkpoint: int | None = None) -> Trained:
    """The model in a working directory: this checkpoint, or the newest (averaged parameters)."""
    if not Path(workdir).exists():
        raise UserError(f"there is no folder {workdir}")
    place = Workdir(Path(workdir))
    # The number of levels stands for the data set, which need not be here.
    experiment = build(place.config(), levels=place.levels())
    state, meta, _ = place.snapshots.restore(experiment.template(), checkpoint)
    return Trained(experiment, state.ema, int(meta["step"]))
