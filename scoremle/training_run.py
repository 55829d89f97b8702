"""Mode train: an experiment trained, or trained further, in its working directory."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scoremle import data, metrics, report, train
from scoremle.experiment import Experiment
from scoremle.pixels import bits_per_dim
from scoremle.workdir import Workdir

__all__ = ["run_train"]

SNAPSHOT_SAMPLES = 64
EVAL_DRAWS = 4


def run_train(experiment: Experiment, workdir: Workdir) -> None:
    """Trains, or goes on training, in ``workdir``."""
    workdir.check_training(experiment)
    workdir.describe(experiment)
    feed = data.feed(experiment.data, experiment.on_device)
    step = train.make_step(
        experiment.loss,
        experiment.optimizer,
        experiment.ema_rate,
        seed=experiment.seed,
        resident=feed.resident,
        gather=feed.gather,
    )
    outcome = train.run(
        workdir.snapshot_state(experiment.template()) or experiment.init_state(),
        step,
        feed.batch,
        experiment.schedule,
        snapshots=workdir.snapshots,
        preemption=workdir.preemption,
        writer=_writer(experiment, workdir),
        on_eval=_on_eval(experiment),
        on_snapshot=_on_snapshot(experiment, workdir),
        note={"dataset": experiment.data.name, "seed": experiment.seed},
    )
    if outcome.finished:
        print(f"trained {int(outcome.state.step)} steps: {workdir.folder}", flush=True)


def _writer(experiment: Experiment, workdir: Workdir) -> metrics.Writer:
    writers: list[metrics.Writer] = [metrics.JsonLines(workdir.folder / "metrics.jsonl")]
    if importlib.util.find_spec("tensorboardX"):
        writers.append(metrics.TensorBoard(workdir.folder / "tensorboard"))
    return metrics.FanOut(*writers, metrics.console(experiment.schedule.n_iters))


def _on_eval(experiment: Experiment) -> Callable[[train.TrainState, int], dict[str, float]]:
    """Loss, and a quick bound in bits/dim, of a batch of test images (averaged weights)."""

    @jax.jit
    def measure(params: Any, x: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        key_loss, key_u, key_bound = jax.random.split(key, 3)
        losses = experiment.losses(params, x, key_loss, train=False)
        y, log_q = experiment.encode(x, key_u)
        bound = experiment.bound(params, y, key_bound, draws=EVAL_DRAWS)
        bpd = bits_per_dim(bound.log_prob - log_q, experiment.pixels, experiment.dims)
        return {
            "loss": jnp.mean(losses),
            "bpd": jnp.mean(bpd),
            "bpd_stderr": jnp.std(bpd, ddof=1) / jnp.sqrt(len(x)),
        }

    test = experiment.data.test
    size = min(experiment.data.batch_size, len(test))

    def on_eval(state: train.TrainState, step: int) -> dict[str, float]:
        # A key of its own stream, and a window that moves over the split: pure in the step.
        key = jax.random.fold_in(jax.random.key(experiment.seed + 1), step)
        x = test[(step * size + np.arange(size)) % len(test)]
        return {k: float(v) for k, v in jax.device_get(measure(state.ema, x, key)).items()}

    return on_eval


def _on_snapshot(
    experiment: Experiment, workdir: Workdir
) -> Callable[[train.TrainState, int], None]:
    if not experiment.snapshot_sampling:
        return lambda state, step: None

    @jax.jit
    def draw(params: Any, key: jax.Array) -> jax.Array:
        return experiment.draw(params, key, SNAPSHOT_SAMPLES)

    def on_snapshot(state: train.TrainState, step: int) -> None:
        # The same key each time: one sees the same images become sharp.
        samples = np.asarray(draw(state.ema, jax.random.key(experiment.seed)))
        path = workdir.folder / "samples" / f"step_{step}.png"
        report.write_grid(path, samples, experiment.pixels.levels)

    return on_snapshot
