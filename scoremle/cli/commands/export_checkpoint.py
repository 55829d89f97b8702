"""Writes a checkpoint in the published format, or as safetensors.

    scoremle export runs/digits digits.safetensors --card
    scoremle export runs/digits published/checkpoint_1 --checkpoint=1

A name that ends in .safetensors gets the averaged parameters alone, those that evaluation uses,
and in its notes what they are: ``scoremle score`` and ``scoremle.load`` take it. One without an
ending gets the whole training state as score_flow saved it, which Flax 0.3.3 reads. That format
has no room for what it is: PATH.json says it, and ``scoremle import`` reads it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import scoremle
from scoremle.cli import checks
from scoremle.cli.parser import Parser
from scoremle.cli.signals import writing_files
from scoremle.errors import UserError
from scoremle.terminal import is_stream, say

NEEDS = "scoremle.experiment.exported"


def arguments(parser: Parser) -> None:
    add = parser.add
    add("workdir", "folder of the training", type=Path)
    add("path", "file to write: NAME.safetensors gets the averaged parameters, which scoremle"
        " score takes; one without an ending, such as checkpoint_1, the whole training state,"
        " which scoremle import takes", type=Path)  # fmt: skip
    add("--checkpoint", "number of the checkpoint; unset: the newest", type=int)
    add("--force", "overwrite files that exist", action="store_true")
    add("--card", "also write a model card with the results: PATH.md", action="store_true")


def check(options: Any) -> None:
    checks.exists(options.workdir)
    path = options.path
    if path.suffix not in ("", ".safetensors"):
        raise UserError(
            f"{path}: no {path.suffix} is written here; name a .safetensors (the averaged"
            " parameters), or a file like checkpoint_1 (the whole training state, as score_flow"
            " saved it)"
        )
    # Its record is beside it, if not in it.
    record = path.suffix != ".safetensors" and not is_stream(path)
    places = [Path(f"{path}{end}") for end in ("", *[".json"] * record, *[".md"] * options.card)]
    checks.different((options.workdir / name for name in ("config.json", "data.json")), *places)
    for place in places:
        checks.writable("", place, force=options.force)


def run(options: Any) -> None:
    """Reads the checkpoint and writes the file."""
    import numpy as np
    from flax.traverse_util import flatten_dict

    from scoremle.experiment import build, card, exported, results
    from scoremle.experiment.workdir import Workdir
    from scoremle.published import safetensors, state_dict

    workdir, path = Workdir(options.workdir), options.path
    experiment = build.build(workdir.config(), levels=workdir.levels())
    if path.suffix != ".safetensors" and not _published(experiment.config):
        raise UserError(
            f"{path}: score_flow's format has no place for the network, the learned schedule or"
            f" the learned times of {workdir.folder}; name a .safetensors"
        )
    restored = workdir.restore(experiment.training.template, options.checkpoint)
    number, step, state = restored.number, restored.meta["step"], restored.tree
    trained = {"params": state.params, "ema": state.ema}
    scoremle.numerics.check_finite(trained, workdir.snapshots.path(number))
    with writing_files(path):
        beside = ""
        if path.suffix == ".safetensors":
            arrays = {name: np.asarray(a) for name, a in flatten_dict(state.ema, sep=".").items()}
            safetensors.write(path, arrays, exported.export_notes(workdir, step))
        else:
            rng = restored.meta.get("rng") or [0, experiment.seed]
            lr, ema_rate = experiment.config["optim"]["lr"], experiment.training.ema_rate
            tree = scoremle.published.published_tree(state, lr=lr, ema_rate=ema_rate, rng=rng)
            state_dict.write(path, tree)
            if not is_stream(path):
                beside = f"; what it is, to {exported.write_record(workdir, path)}"
        say(f"checkpoint {number}, step {step}: written to {path}{beside}")
        if options.card:
            found = results.measured(workdir.folder, "eval")
            text = card.card(workdir, experiment, restored, found, path)
            of_card = path.with_name(f"{path.name}.md")
            scoremle.files.write_bytes(of_card, text.encode())
            say(f"its card: {of_card}")


def _published(config: Mapping[str, Any]) -> bool:
    """Whether score_flow's format has a place for all that is trained."""
    model, density = config["model"], config["training"]["time_density"]
    fixed = model["schedule"] == "fixed" and density != "learned"
    return fixed and model["name"].lower() == "ncsnpp"
