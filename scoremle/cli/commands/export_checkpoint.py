"""``scoremle export WORKDIR PATH``: a checkpoint in the published format, or as safetensors.

A name that ends in .safetensors gets the averaged parameters alone, those that evaluation uses,
and in its notes what they are: ``scoremle score`` and ``scoremle.load`` take it. Any other gets
the whole training state as score_flow saved it, which Flax 0.3.3 reads. That format has no room
for what it is: PATH.json says it, and ``scoremle import`` reads it.
"""

from typing import Any

import jax
import numpy as np

from scoremle import published
from scoremle.experiment.build import Experiment, build
from scoremle.experiment.card import card
from scoremle.experiment.exported import notes, write_record
from scoremle.experiment.results import measured
from scoremle.experiment.workdir import Workdir
from scoremle.files import is_stream, write_atomically
from scoremle.numerics import check_finite
from scoremle.published import safetensors, state_dict
from scoremle.terminal import say
from scoremle.training.checkpoints import Restored

__all__ = ["run"]


def run(options: Any) -> None:
    """Reads the checkpoint and writes the file."""
    place, path = Workdir(options.workdir), options.path
    experiment = build(place.config(), levels=place.levels())
    restored = place.restore(experiment.training.template(), options.checkpoint)
    number, step = restored.number, restored.meta["step"]
    state = restored.tree
    check_finite({"params": state.params, "ema": state.ema}, place.snapshots.path(number))
    if path.suffix == ".safetensors":
        arrays = {
            jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(array)
            for path, array in jax.tree_util.tree_leaves_with_path(state.ema)
        }
        safetensors.write(path, arrays, notes(place, step))
        say(f"checkpoint {number}, step {step}: written to {path}")
    else:
        state_dict.write(path, _as_published(experiment, restored))
        beside = "" if is_stream(path) else f"; what it is, to {write_record(place, path)}"
        say(f"checkpoint {number}, step {step}: written to {path}{beside}")
    if options.card:
        results = place.inside("eval", "results.json")
        text = card(place, experiment, restored, measured(results), path)
        beside = path.with_name(f"{path.name}.md")
        with write_atomically(beside) as temporary:
            temporary.write_text(text, encoding="utf-8")
        say(f"its card: {beside}")


def _as_published(experiment: Experiment, restored: Restored) -> state_dict.Tree:
    rng = restored.meta.get("rng") or [0, experiment.seed]
    lr, ema_rate = experiment.config["optim"]["lr"], experiment.training.ema_rate
    return published.published_tree(restored.tree, lr=lr, ema_rate=ema_rate, rng=rng)
