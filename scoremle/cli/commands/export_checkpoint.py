"""``scoremle export WORKDIR PATH``: a checkpoint in the published format, or as safetensors.

A name that ends in .safetensors gets the averaged parameters alone, those that evaluation uses.
Any other gets the whole training state as score_flow saved it, which Flax 0.3.3 reads.
"""

from pathlib import Path

import jax
import numpy as np

from scoremle import published
from scoremle.cli.commands import Parser
from scoremle.experiment.build import build
from scoremle.experiment.workdir import Workdir
from scoremle.published import safetensors, state_dict

__all__ = ["main"]

ABOUT = "Writes a checkpoint in the published format, or as safetensors."


def main(arguments: list[str]) -> None:
    parser = Parser(prog="scoremle export", description=ABOUT)
    parser.add_argument("workdir", type=Path, help="where the checkpoint is")
    parser.add_argument("path", type=Path, help="file to write")
    parser.add_argument("--checkpoint", type=int, help="its number; the newest if left out")
    options = parser.parse_args(arguments)
    place = Workdir(options.workdir)
    experiment = build(place.config(), levels=place.levels())
    template = experiment.training.template()
    state, meta, number = place.snapshots.restore(template, options.checkpoint)
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
    print(f"checkpoint {number}, step {meta['step']}: written to {options.path}", flush=True)
