"""Modes train and train_deq: begin or resume a training.

That of a score model, or of a flow dequantizer for one. Both are the loop of `training/loop.py`
with a loss of their own.
"""

import importlib.util
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import jax
import numpy as np
from jax.tree_util import Partial

from scoremle import data, devices, xla
from scoremle.core.keys import example_keys, key_of
from scoremle.core.learned_schedules import POLYNOMIAL
from scoremle.errors import UserError, by
from scoremle.evaluation import pictures, tables
from scoremle.experiment.build import Experiment, logged_by
from scoremle.experiment.config import as_fields
from scoremle.experiment.folders import LOG_FILE, SAMPLES_FOLDER
from scoremle.experiment.networks import Params
from scoremle.experiment.record import CONFIG, record_of
from scoremle.experiment.training import Training
from scoremle.experiment.workdir import Workdir
from scoremle.files import is_writer, read_sealed, write_sealed
from scoremle.records import check_record
from scoremle.terminal import say
from scoremle.training.checksums import tree_hash
from scoremle.training.loop import Loop, OnEval, OnSnapshot
from scoremle.training.program import checked, make_program
from scoremle.training.step import TrainState
from scoremle.training.writers import TRACKERS, Console, JsonLines, Run, Writer
from scoremle.types import IntImages, Keys

SNAPSHOT_SAMPLES = 64
# Of a flow dequantizer: the checkpoint of the score model that it is for.
SCORE_MODEL = "score_model.json"


def run_train(experiment: Experiment, workdir: Workdir) -> None:
    """Trains, or goes on training, in ``workdir``."""
    with workdir.locked():
        workdir.check_seen_alike(experiment)
        workdir.check(experiment, "training")
        note = record_of(experiment, "training")
        writers = _writers(experiment.training, workdir, note)
        state = _first_state(experiment, experiment.training, workdir)
        workdir.describe(experiment)
        with as_fields("training"):
            draw = _on_snapshot(experiment, workdir)
            _run(experiment.training, workdir, state, writers, note, on_snapshot=draw)
    say(f"next: scoremle {shlex.join(['eval', str(workdir.folder)])}")


def run_train_deq(experiment: Experiment, workdir: Workdir, deq_folder: str) -> None:
    """Trains, or goes on training, a flow dequantizer for a checkpoint of the score model."""
    training = experiment.flow_training
    with as_fields("deq"):
        _ = training.template  # the flow checks its fields and the size of the images
    if experiment.config["model"]["schedule"] == POLYNOMIAL:
        raise UserError(
            "a model with codes has a bound on integers alone, without noise: a flow dequantizer"
            " has nothing to learn from it"
        )
    workdir.check_seen_alike(experiment)
    workdir.check(experiment, "evaluation")
    restored = workdir.restore(experiment.training.template, experiment.evaluation.ckpt_id)
    score, flow_dir = restored.tree.ema, Workdir(workdir.inside(deq_folder, writing=True))
    of_score = {
        "score_checkpoint": restored.number,
        "score_step": int(restored.meta["step"]),
        "score_hash": tree_hash(score),
    }
    with flow_dir.locked():
        flow_dir.check_seen_alike(experiment)
        flow_dir.check(experiment, "flow")
        _check_score_model(flow_dir, of_score)
        note = {**of_score, **record_of(experiment, "flow")}
        writers = _writers(training, flow_dir, note)
        state = _first_state(experiment, training, flow_dir)
        flow_dir.describe(experiment)
        write_sealed(flow_dir.inside(SCORE_MODEL), of_score)
        with as_fields("training"):
            _run(training, flow_dir, state, writers, note, (score,))
    words = ["eval", str(workdir.folder), f"--deq-folder={deq_folder}"]
    say(f"next: scoremle {shlex.join(words)} --config.eval.dequantizer")


def _first_state(experiment: Experiment, training: Training, workdir: Workdir) -> TrainState:
    """The state to begin with, or its shapes where a checkpoint has it.

    Says what is trained on what, before a program is compiled.
    """
    images, template, kind = training.data, training.template, jax.devices()[0].device_kind
    parameters = sum(leaf.size for leaf in jax.tree.leaves(template.params))
    say(*tables.wrapped(
        f"{images.name}: {len(images.train):,} training images of {by(images.shape)};"
        f" {parameters:,} parameters; {experiment.model.sde}; {jax.device_count()} {kind}"
    ))  # fmt: skip
    found = workdir.snapshot_state(template)
    if found or workdir.preemption.numbers():
        return found or template
    say("making the first parameters")
    return training.init_state()


class _ScoreModel(TypedDict):
    score_checkpoint: int
    score_step: int
    score_hash: str


def _check_score_model(workdir: Workdir, note: dict[str, Any]) -> None:
    """Raises UserError if the flow that is there was begun for other parameters."""
    path = workdir.inside(SCORE_MODEL)
    if not workdir.begun or not path.exists():
        return
    old = read_sealed(path, "put its copy back, or move it away")
    check_record(old, _ScoreModel, path)
    if old != note:
        known, given = old["score_checkpoint"], note["score_checkpoint"]
        back = f"set --config.eval.ckpt_id={known}, or " * (known != given)
        raise UserError(
            f"{workdir.folder} is for checkpoint {known} of the score model (step"
            f" {old['score_step']}), and this is checkpoint {given} (step {note['score_step']}):"
            f" {back}name another --deq-folder"
        )


def _run(
    training: Training,
    workdir: Workdir,
    state: TrainState,
    writers: Sequence[Writer],
    note: Mapping[str, Any],
    held: tuple[Params, ...] = (),
    on_snapshot: OnSnapshot | None = None,
) -> None:
    """The loop; ``held``: parameters that are not trained."""
    config, places = training.config, training.places
    feed = data.feed(training.data, config.data.on_device)
    step = make_program(
        Partial(training.objective.loss, *held), training.optimizer, training.ema_rate,
        seed=config.seed, resident=feed.resident, gather=feed.gather,
        accumulate=config.training.accumulate, places=places,
    )  # fmt: skip
    remat = held or config.model.remat  # a flow has no such field
    training_loop = Loop(
        checked(step, None if remat else "model.remat=True"),
        lambda k: feed.batch_of(training.data.reordered(k)),
        training.schedule,
        snapshots=workdir.snapshots,
        preemption=workdir.preemption,
        writers=writers,
        on_eval=_on_eval(training, held),
        on_snapshot=on_snapshot,
        note={"dataset": training.data.name, "seed": config.seed, **note},
        limit=config.training.rollbacks if config.training.on_nan == "rollback" else 0,
    )
    trained = training_loop.run(state, places)
    pictures_too = ", pictures in samples/" * (on_snapshot is not None)
    say(
        f"trained {int(trained.step)} steps: {workdir.folder}, numbers in metrics.jsonl"
        f"{pictures_too}"
    )


def _writers(training: Training, workdir: Workdir, note: Mapping[str, Any]) -> list[Writer]:
    """Raises UserError if a library is missing that the config names."""
    if not is_writer():
        return []
    names = {*logged_by(training.config)}
    if importlib.util.find_spec("tensorboardX"):
        names.add("tensorboard")
    run = Run(workdir.folder, training.data.name, note[CONFIG])
    return [
        JsonLines(workdir.inside(LOG_FILE)),
        *(TRACKERS[name](run) for name in sorted(names)),
        Console(training.schedule.n_iters, math.log2(training.data.levels)),
    ]


def _on_eval(training: Training, held: tuple[Params, ...]) -> OnEval:
    """Makes the function that measures averaged parameters on a window of test images.

    It also gives how many such windows the test images fill: after so many, they come again.
    """
    test, measure = training.data.test, xla.compiled(training.objective.measure)
    size = min(training.data.batch_size, len(test))

    def on_eval(state: TrainState, step: int) -> dict[str, float]:
        # A key of its own stream, and the window next to that before: pure in the step.
        key = jax.random.fold_in(key_of(training.config.seed + 1), step)
        first = step // training.schedule.eval_freq * size
        x = test[(first + np.arange(size)) % len(test)]
        ema = devices.replicate(state.ema)
        found = devices.to_numpy(measure(*held, ema, devices.shared(x), key))
        numbers = {name: float(value) for name, value in found.items()}
        return numbers | {"windows": len(test) / size}

    return on_eval


def _on_snapshot(experiment: Experiment, workdir: Workdir) -> OnSnapshot | None:
    """Makes the function that draws the samples of a snapshot; None where none are drawn."""
    training, sampler = experiment.training, experiment.sampler
    if not training.config.training.snapshot_sampling:
        return None

    @xla.compiled
    def draw(params: Params, keys: Keys) -> IntImages:
        return sampler.images(training.objective.model.model(params), keys)[0]

    def on_snapshot(state: TrainState, step: int) -> None:
        # The same key each time: one sees the same images become sharp.
        keys = example_keys(key_of(training.config.seed), SNAPSHOT_SAMPLES)
        samples = devices.to_numpy(draw(devices.replicate(state.ema), devices.shared(keys)))
        path = workdir.inside(SAMPLES_FOLDER, writing=True) / f"step_{step}.png"
        caption = f"samples of {training.data.name} at step {step:,}, averaged parameters"
        pictures.write_grid(path, samples, training.data.levels, caption=caption)

    return on_snapshot
