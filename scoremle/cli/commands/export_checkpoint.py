"""``scoremle export WORKDIR PATH``: a checkpoint in the published format, or as safetensors.

A name that ends in .safetensors gets the averaged parameters alone, those that evaluation uses.
Any other gets the whole training state as score_flow saved it, which Flax 0.3.3 reads.
"""

from typing import Any

import jax
import numpy as np

from scoremle import published
from scoremle.experiment.build import build
from scoremle.experiment.workdir import Workdir
from scoremle.numerics import check_finite
from scoremle.published import safetensors, state_dict
from scoremle.terminal import say

__all__ = ["run"]


def run(options: Any) -> None:
    """Reads the checkpoint and writes the file."""
    place = Workdir(options.workdir)
    experiment = build(place.config(), levels=place.levels())
    state, meta, number = place.restore(experiment.training.template(), options.checkpoint)
    check_finite({"params": state.params, "ema": state.ema}, place.snapshots.path(number))
    if options.path.suffix == ".safetensors":
        arrays = {
            jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(array)
            for path, array in jax.tree_util.tree_leaves_with_path(state.ema)
        }
        safetensors.write(options.path, arrays, {"step": str(meta["step"])})
    else:
        rng = meta.get("rng") or [0, experiment.seed]
        lr, ema_rate = experiment.config["optim"]["lr"], experiment.training.ema_rate
        tree = published.published_tree(state, lr=lr, ema_rate=ema_rate, rng=rng)
        state_dict.write(options.path, tree)
    say(f"checkpoint {number}, step {meta['step']}: written to {options.path}")
