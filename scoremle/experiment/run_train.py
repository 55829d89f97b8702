"""Modes train and train_deq: a score model, or a flow dequantizer for one, trained or trained on.

Both are the loop of `training/loop.py` with a loss of their own.
"""

import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from scoremle import data
from scoremle.core.dequantize import Dequantizer, Uniform
from scoremle.core.keys import example_keys
from scoremle.errors import UserError
from scoremle.evaluation import pictures
from scoremle.experiment.build import Experiment
from scoremle.experiment.workdir import Workdir
from scoremle.files import read_json, write_json
from scoremle.likelihood.images import ByBound, ImageModel
from scoremle.training import loop, writers
from scoremle.training.checkpoints import tree_hash
from scoremle.training.step import Loss, TrainState, make_step
from scoremle.types import PRNGKey

__all__ = ["run_train", "run_train_deq"]

SNAPSHOT_SAMPLES = 64
EVAL_DRAWS = 4

# Averaged parameters, images and a key to numbers to be logged.
Measure = Callable[..., dict[str, jax.Array]]


def run_train(experiment: Experiment, workdir: Workdir) -> None:
    """Trains, or goes on training, in ``workdir``."""
    workdir.check_training(experiment)
    print(_begun(experiment, experiment.template()), flush=True)
    state = workdir.snapshot_state(experiment.template()) or experiment.init_state()
    workdir.describe(experiment)
    _run(
        experiment, workdir, state, experiment.loss, experiment.ema_rate, experiment.schedule,
        measure=_score_measure(experiment),
        on_snapshot=_on_snapshot(experiment, workdir),
        note={},
    )  # fmt: skip


def run_train_deq(
    experiment: Experiment, workdir: Workdir, deq_folder: str, ckpt_id: int | None
) -> None:
    """Trains, or goes on training, a flow dequantizer for a checkpoint of the score model."""
    experiment.flow_template()  # the flow checks its fields and the size of the images
    workdir.check_evaluation(experiment)
    restored = workdir.snapshots.restore(experiment.template(), ckpt_id)
    score, place = restored.tree.ema, Workdir(workdir.folder / deq_folder)
    note = {
        "score_checkpoint": restored.number,
        "score_step": int(restored.meta["step"]),
        "score_hash": tree_hash(score),
    }
    place.check_flow(experiment)
    _check_score_model(place, note)
    print(_begun(experiment, experiment.flow_template()), flush=True)
    state = place.snapshot_state(experiment.flow_template()) or experiment.init_flow_state()
    place.describe(experiment)
    write_json(_score_model_path(place), note)
    _run(
        experiment, place, state, experiment.flow_loss(score), experiment.flow_ema_rate,
        experiment.flow_schedule,
        measure=functools.partial(_flow_measure(experiment), score),
        on_snapshot=lambda state, step: None,
        note=note,
    )  # fmt: skip


def _begun(experiment: Experiment, template: TrainState) -> str:
    """What is trained on what, before the first program is compiled."""
    images, devices = experiment.data, jax.devices()
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(template.params))
    shape = "x".join(map(str, images.shape))
    return (
        f"{images.name}: {len(images.train):,} training images of {shape}; {parameters:,}"
        f" parameters; {experiment.sde}; {len(devices)} {devices[0].device_kind}; compiling"
    )


def _score_model_path(place: Workdir) -> Any:
    return place.folder / "score_model.json"


def _check_score_model(place: Workdir, note: dict[str, Any]) -> None:
    """Raises UserError if the flow that is there was begun for other parameters."""
    path = _score_model_path(place)
    if not place.begun or not path.exists():
        return
    old = read_json(path)
    if old != note:
        raise UserError(
            f"{place.folder} is for checkpoint {old['score_checkpoint']} of the score model (step "
            f"{old['score_step']}), and this is checkpoint {note['score_checkpoint']}: set "
            f"--config.eval.ckpt_id={old['score_checkpoint']}, or another --deq_folder"
        )


def _run(
    experiment: Experiment,
    place: Workdir,
    state: TrainState,
    loss: Loss,
    ema_rate: float,
    schedule: loop.Schedule,
    *,
    measure: Measure,
    on_snapshot: Callable[[TrainState, int], None],
    note: dict[str, Any],
) -> None:
    feed = data.feed(experiment.data, experiment.on_device)
    step = make_step(
        loss, experiment.optimizer, ema_rate,
        seed=experiment.seed, resident=feed.resident, gather=feed.gather,
    )  # fmt: skip
    outcome = loop.run(
        state,
        step,
        feed.batch,
        schedule,
        snapshots=place.snapshots,
        preemption=place.preemption,
        writer=_writer(schedule, place),
        on_eval=_on_eval(experiment, measure),
        on_snapshot=on_snapshot,
        note={"dataset": experiment.data.name, "seed": experiment.seed, **note},
    )
    if outcome.finished:
        print(f"trained {int(outcome.state.step)} steps: {place.folder}", flush=True)


def _writer(schedule: loop.Schedule, place: Workdir) -> writers.Writer:
    targets: list[writers.Writer] = [writers.JsonLines(place.folder / "metrics.jsonl")]
    if importlib.util.find_spec("tensorboardX"):
        targets.append(writers.TensorBoard(place.folder / "tensorboard"))
    return writers.FanOut(*targets, writers.Console(schedule.n_iters))


def _score_measure(experiment: Experiment) -> Measure:
    """Loss, and a quick bound in bits/dim, of a batch of images."""

    @jax.jit
    def measure(params: Any, x: jax.Array, key: PRNGKey) -> dict[str, jax.Array]:
        key_loss, key_bound = jax.random.split(key)
        losses = experiment.losses(params, x, key_loss, train=False)
        bound = _quick_bound(experiment, params, Uniform(), x, key_bound)
        return {"loss": jnp.mean(losses), **bound}

    return measure


def _flow_measure(experiment: Experiment) -> Measure:
    """The same bound of images dequantized by the flow; the score model comes first."""

    @jax.jit
    def measure(score: Any, params: Any, x: jax.Array, key: PRNGKey) -> dict[str, jax.Array]:
        dequantizer = experiment.dequantizer("variational", params)
        return _quick_bound(experiment, score, dequantizer, x, key)

    return measure


def _quick_bound(
    experiment: Experiment,
    score: Any,
    dequantizer: Dequantizer,
    x: jax.Array,
    key: PRNGKey,
) -> dict[str, jax.Array]:
    model = cast(ImageModel, experiment.model(score))  # it has pixels
    bpd = ByBound(EVAL_DRAWS)(model, dequantizer, x, example_keys(key, len(x)))["bpd"]
    return {"bpd": jnp.mean(bpd), "bpd_stderr": jnp.std(bpd, ddof=1) / jnp.sqrt(len(x))}


def _on_eval(
    experiment: Experiment, measure: Measure
) -> Callable[[TrainState, int], dict[str, float]]:
    """What ``measure`` gives for test images and averaged parameters."""
    test = experiment.data.test
    size = min(experiment.data.batch_size, len(test))

    def on_eval(state: TrainState, step: int) -> dict[str, float]:
        # A key of its own stream, and a window that moves over the split: pure in the step.
        key = jax.random.fold_in(jax.random.key(experiment.seed + 1), step)
        x = test[(step * size + np.arange(size)) % len(test)]
        return {k: float(v) for k, v in jax.device_get(measure(state.ema, x, key)).items()}

    return on_eval


def _on_snapshot(
    experiment: Experiment, workdir: Workdir
) -> Callable[[TrainState, int], None]:
    if not experiment.snapshot_sampling:
        return lambda state, step: None

    @jax.jit
    def draw(params: Any, key: jax.Array) -> jax.Array:
        return experiment.draw(params, key, SNAPSHOT_SAMPLES)

    def on_snapshot(state: TrainState, step: int) -> None:
        # The same key each time: one sees the same images become sharp.
        samples = np.asarray(draw(state.ema, jax.random.key(experiment.seed)))
        path = workdir.folder / "samples" / f"step_{step}.png"
        pictures.write_grid(path, samples, experiment.pixels.levels)

    return on_snapshot
