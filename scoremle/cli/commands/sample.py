"""``scoremle sample MODEL``: samples of any model, as a picture or an array.

Sample j of a seed is the same whatever number is drawn.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Integer

from scoremle.errors import UserError
from scoremle.evaluation import pictures, tables
from scoremle.experiment import defaults
from scoremle.experiment.build import sampler_of
from scoremle.experiment.labels import ALL, check_label
from scoremle.experiment.models import load
from scoremle.experiment.samplers import Sampler
from scoremle.files import write_atomically, write_npz
from scoremle.likelihood.image_model import pixels_of
from scoremle.model import ScoreModel
from scoremle.terminal import in_a_line, say

__all__ = ["SMALLEST_TIME", "run"]

# Where sampling ends, unless the model begins later: as published for the VP SDE.
SMALLEST_TIME = 1e-3


def run(options: Any) -> None:
    """Draws the samples and writes the file."""
    model = load(options.model, options.checkpoint)
    _check(options.out, model)
    sampler, steps = _sampler(options.sampler, options.steps, model)
    say(*tables.wrapped(f"{model}, by {options.sampler} in {steps} steps"))
    key = jax.random.key(options.seed)
    labels = _labels(model, options.label, options.n, options.seed)
    samples = replace(model, eps=sampler.eps).sample(
        options.n, key,
        condition=labels, sampler=sampler.draw, devices=jax.devices(), label="samples",
    )  # fmt: skip
    _write(options.out, samples, model, caption=f"{options.n} samples of {options.model}, "
           f"{options.sampler}, {steps} steps, seed {options.seed}")  # fmt: skip
    say(f"{options.n} samples of seed {options.seed}: {options.out}")


def _check(path: Path, model: ScoreModel) -> None:
    """Raises UserError, before anything is drawn, if the file can't hold the samples."""
    if path.suffix == ".png" and (model.pixels is None or model.shape[-1] not in (1, 3)):
        raise UserError(f"samples of shape {model.shape} are no pictures: name a .npy or .npz")


def _labels(
    model: ScoreModel, label: str, n: int, seed: int
) -> Integer[np.ndarray, " n"] | None:
    """The class of each sample; None for a model without classes. UserError for another label."""
    classes = check_label(model, label)
    if not classes:
        return None
    if label == ALL:  # what is drawn so has the mean over labels for its density
        return np.random.default_rng(seed).integers(classes, size=n)
    return np.full(n, int(label))


def _sampler(name: str, steps: int | None, model: ScoreModel) -> tuple[Sampler, int]:
    """The sampler that a config would name so, and its steps."""
    config = defaults.get_config()
    config.sampling.method, config.sampling.steps = name, steps
    config.sampling.smallest_time = max(model.eps, SMALLEST_TIME)
    defaults.resolve(config)
    return sampler_of(config, model.sde), config.sampling.steps


def _write(path: Path, samples: np.ndarray, model: ScoreModel, *, caption: str) -> None:
    if path.suffix == ".png":
        levels = pixels_of(model).levels
        pictures.write_grid(path, samples, levels, caption=in_a_line(caption))
    elif path.suffix == ".npz":
        write_npz(path, {"samples": samples})
    else:
        with write_atomically(path) as temporary, temporary.open("wb") as file:
            np.save(file, samples)
