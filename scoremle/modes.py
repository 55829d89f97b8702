"""The modes of the command line, in a working directory; and a trained one for Python.

    workdir/config.json        the resolved config
            metrics.jsonl      a row of numbers for every logged step
            samples/           a grid of samples for every snapshot
            checkpoints/       snapshots, for evaluation
            checkpoints-meta/  where training goes on after pre-emption
            <eval_folder>/     results.json, per-image values, pictures
"""

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

import scoremle
from scoremle import evaluate, metrics, report, train
from scoremle.checkpoint import Checkpoints, tree_hash
from scoremle.errors import UserError
from scoremle.experiment import Experiment, build
from scoremle.files import read_json, write_json

__all__ = ["Trained", "load", "run"]

# Fields in which a run may differ from the one that it goes on with. Everything else would make it
# another experiment, or (below) another network.
FREE = {
    "training.n_iters", "training.log_freq", "training.eval_freq", "training.snapshot_freq",
    "training.snapshot_freq_for_preemption", "training.snapshot_sampling", "data.path",
}  # fmt: skip
FREE_SECTIONS = {"eval", "sampling", "deq"}
OF_THE_NETWORK = {"training.sde", "data.dataset", "data.image_size", "data.num_channels", "data.centered"}
NOT_OF_THE_NETWORK = {"model.dropout", "model.ema_rate", "model.dtype"}

PREEMPTION_KEEP = 2
SNAPSHOT_SAMPLES = 64
EVAL_DRAWS = 4
EXTREMES = 32


def run(mode: str, config: Any, workdir: str, eval_folder: str) -> int:
    """Runs a mode; gives the exit code."""
    if mode == "train_deq":
        raise UserError("train_deq is not available in this version: use train or eval")
    experiment, folder = build(config), Path(workdir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--workdir={folder} is a file, not a folder")
    if mode == "train":
        return run_train(experiment, folder)
    return run_eval(experiment, config.eval, folder, eval_folder)


# Training ------------------------------------------------------------------------------------------


def run_train(experiment: Experiment, workdir: Path) -> int:
    """Trains, or goes on training, in ``workdir``."""
    _check_same(experiment, workdir, _matters_to_training)
    write_json(workdir / "config.json", dict(experiment.config))
    step = train.make_step(
        experiment.loss, experiment.optimizer, experiment.ema_rate, seed=experiment.seed
    )
    outcome = train.run(
        experiment.init_state(),
        step,
        experiment.data.batch,
        experiment.schedule,
        snapshots=Checkpoints(workdir / "checkpoints", keep=None),
        preemption=Checkpoints(workdir / "checkpoints-meta", keep=PREEMPTION_KEEP),
        writer=_writer(experiment, workdir),
        on_eval=_on_eval(experiment),
        on_snapshot=_on_snapshot(experiment, workdir),
        note={"dataset": experiment.data.name, "seed": experiment.seed},
    )
    if outcome.finished:
        print(f"trained {int(outcome.state.step)} steps: {workdir}", flush=True)
    return 0


def _writer(experiment: Experiment, workdir: Path) -> metrics.Writer:
    writers = [metrics.JsonLines(workdir / "metrics.jsonl")]
    if importlib.util.find_spec("tensorboardX"):
        writers.append(metrics.TensorBoard(workdir / "tensorboard"))
    return metrics.FanOut(*writers, metrics.console(experiment.schedule.n_iters))


def _on_eval(experiment: Experiment) -> Callable[[train.TrainState, int], dict[str, float]]:
    """Loss, and a quick bound in bits/dim, of a batch of test images under the averaged weights."""

    @jax.jit
    def measure(params: Any, x: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        key_loss, key_u, key_bound = jax.random.split(key, 3)
        losses = experiment.losses(params, x, key_loss, train=False)
        y, log_q = experiment.encode(x, key_u)
        bound = experiment.bound(params, y, key_bound, draws=EVAL_DRAWS)
        bpd = evaluate.bits_per_dim(bound.log_prob - log_q, experiment.pixels, experiment.dims)
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
    experiment: Experiment, workdir: Path
) -> Callable[[train.TrainState, int], None]:
    if not experiment.snapshot_sampling:
        return lambda state, step: None

    @jax.jit
    def draw(params: Any, key: jax.Array) -> jax.Array:
        return experiment.pixels.decode(
            experiment.sampler(experiment.noise(params), key, SNAPSHOT_SAMPLES)
        )

    def on_snapshot(state: train.TrainState, step: int) -> None:
        # The same key each time: one sees the same images become sharp.
        samples = np.asarray(draw(state.ema, jax.random.key(experiment.seed)))
        path = workdir / "samples" / f"step_{step}.png"
        report.write_grid(path, samples, experiment.pixels.levels)

    return on_snapshot


# The config of a workdir -------------------------------------------------------------------------


def _matters_to_training(name: str) -> bool:
    return name not in FREE and name.split(".")[0] not in FREE_SECTIONS


def _matters_to_evaluation(name: str) -> bool:
    return name in OF_THE_NETWORK or (
        name.startswith("model.") and name not in NOT_OF_THE_NETWORK
    )


def _flat(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, fields in config.items():
        if isinstance(fields, dict):
            yield from ((f"{section}.{name}", value) for name, value in fields.items())
        else:
            yield section, fields


def _check_same(
    experiment: Experiment, workdir: Path, matters: Callable[[str], bool]
) -> None:
    """Raises UserError if the workdir was begun with a config that differs where it matters."""
    path = workdir / "config.json"
    if not path.exists():
        return
    old, new = dict(_flat(read_json(path))), dict(_flat(dict(experiment.config)))
    different = sorted(name for name in new if matters(name) and old.get(name) != new[name])
    if different:
        shown = ", ".join(
            f"{name} was {old.get(name)!r} and is now {new[name]!r}" for name in different[:4]
        )
        more = f" and {len(different) - 4} more" if len(different) > 4 else ""
        raise UserError(
            f"{workdir} holds another experiment: {shown}{more}; "
            "use another --workdir, or the config it was begun with"
        )


# Evaluation --------------------------------------------------------------------------------------


def run_eval(experiment: Experiment, options: Any, workdir: Path, eval_folder: str) -> int:
    """Evaluates every checkpoint that ``eval.begin_ckpt`` to ``eval.end_ckpt`` name."""
    _check_same(experiment, workdir, _matters_to_evaluation)
    store = Checkpoints(workdir / "checkpoints", keep=None)
    numbers = [n for n in store.numbers() if options.begin_ckpt <= n <= options.end_ckpt]
    if not numbers:
        there = ", ".join(map(str, store.numbers())) or "none"
        raise UserError(
            f"no checkpoint {options.begin_ckpt} to {options.end_ckpt} in {store.folder}"
            f" (there: {there}); train first, or set --config.eval.begin_ckpt and end_ckpt"
        )
    images = _split(experiment, options)
    for number in numbers:
        state, meta, _ = store.restore(experiment.template(), number)
        facts = {
            "checkpoint": number,
            "step": int(meta["step"]),
            "ema_hash": tree_hash(state.ema)[:16],
        }
        _evaluate_checkpoint(experiment, options, state.ema, images, facts, workdir / eval_folder)
    return 0


def _split(experiment: Experiment, options: Any) -> np.ndarray:
    if options.dataset not in ("train", "test"):
        raise UserError(f"eval.dataset must be train or test, not {options.dataset!r}")
    images = experiment.data.train if options.dataset == "train" else experiment.data.test
    return images[: options.num_images] if options.num_images else images


@dataclass(frozen=True)
class Task:
    """One thing to evaluate: its name, its column of interest, its metric, and what it is."""

    name: str
    column: str
    metric: evaluate.Metric
    facts: dict[str, Any]


def _tasks(experiment: Experiment, options: Any, params: Any) -> Iterator[Task]:
    """The metrics that the flags ask for, with the facts that belong to each number."""
    if options.enable_bpd and options.bound:
        yield Task("bound", "bpd", bound_metric(experiment, params), bound_facts(experiment))
    if options.enable_bpd and not options.bound:
        yield Task("exact", "bpd", exact_metric(experiment, params), exact_facts(experiment))
    if options.enable_loss:
        loss = lambda x, key: {"loss": experiment.losses(params, x, key, train=False)}  # noqa: E731
        yield Task("loss", "loss", loss, {"estimator": "training loss, published scaling"})


def exact_metric(experiment: Experiment, params: Any) -> evaluate.Metric:
    """Bits/dim by the probability-flow ODE."""
    return evaluate.exact_bpd(
        experiment.encode,
        lambda y, key: experiment.log_likelihood(params, y, key),
        experiment.pixels,
    )


def bound_metric(experiment: Experiment, params: Any) -> evaluate.Metric:
    """Bits/dim by the variational bound."""
    return evaluate.bound_bpd(
        experiment.encode,
        lambda y, key: experiment.bound(
            params, y, key, draws=experiment.bound_draws, matching=experiment.matching
        ),
        experiment.pixels,
    )


def exact_facts(experiment: Experiment) -> dict[str, Any]:
    return {
        "estimator": "exact for p_eps (probability-flow ODE, unbiased up to the trace estimate)",
        "model": "ODE",
        "solver": repr(experiment.solver),
        "divergence": repr(experiment.divergence),
    }


def bound_facts(experiment: Experiment) -> dict[str, Any]:
    return {
        "estimator": "variational bound (SDE)",
        "model": "SDE",
        "matching": experiment.matching,
        "offset": experiment.offset,
        "draws": experiment.bound_draws,
    }


def _evaluate_checkpoint(
    experiment: Experiment,
    options: Any,
    params: Any,
    images: np.ndarray,
    checkpoint: dict[str, Any],
    folder: Path,
) -> None:
    whole = options.num_images == 0
    common = {
        "dataset": experiment.data.name,
        "split": options.dataset,
        "images": len(images),
        "full_pass": whole,
        "dequantizer": type(experiment.dequantizer).__name__.lower(),
        "importance_samples": 1,
        "augmentation": "horizontal flip" if experiment.data.random_flip else "none",
        "sde": repr(experiment.sde),
        "eps": experiment.eps,
        "precision": experiment.config["model"]["dtype"],
        "passes": options.num_repeats,
        "seed": experiment.seed,
        "version": scoremle.__version__,
        **checkpoint,
    }
    for task in _tasks(experiment, options, params):
        facts = {**common, **task.facts}
        settings = {**facts, "batch_size": options.batch_size, "name": task.name}
        name = f"{task.name}_{options.dataset}_ckpt_{checkpoint['checkpoint']}"
        values, seconds = evaluate.evaluate(
            task.metric,
            images,
            batch_size=options.batch_size,
            repeats=options.num_repeats,
            seed=experiment.seed,
            parts=folder / "parts" / f"{name}_{evaluate.fingerprint(settings)}",
            label=name,
        )
        _write_results(folder, name, task, values, {**facts, "seconds_per_image": seconds})
        _write_extremes(folder, name, task, values, images, experiment.pixels.levels)
    if options.enable_sampling:
        _write_samples(experiment, options, params, folder, checkpoint["checkpoint"])
    _print_results(folder)


def _write_results(
    folder: Path, name: str, task: Task, values: evaluate.Values, facts: dict[str, Any]
) -> None:
    with evaluate.write_atomically(folder / f"{name}.npz") as path, path.open("wb") as file:
        np.savez(file, **values)
    bad = int((~np.isfinite(values[task.column])).any(axis=0).sum())
    if bad:
        first = int(np.argmax((~np.isfinite(values[task.column])).any(axis=0)))
        raise UserError(
            f"{task.column} is not finite for {bad} images (the first is number {first}); their "
            f"values are in {folder / name}.npz; try --config.eval.solver=adaptive"
        )
    result = {
        "metric": task.column,
        "unit": "bits/dim" if task.column == "bpd" else "loss",
        **evaluate.summary(values, task.column),
        **evaluate.parts(values),
        **facts,
    }
    path = folder / "results.json"
    results = read_json(path) if path.exists() else {}
    write_json(path, {**results, name: result})


def _write_extremes(
    folder: Path, name: str, task: Task, values: evaluate.Values, images: np.ndarray, levels: int
) -> None:
    """The likeliest and the unlikeliest images, side by side in one picture."""
    order = np.argsort(values[task.column].mean(axis=0))
    rows = min(EXTREMES, len(order) // 2)
    if rows:
        chosen = np.concatenate([images[order[:rows]], images[order[-rows:]]])
        report.write_grid(folder / f"{name}_likeliest_then_unlikeliest.png", chosen, levels, 8)


def _write_samples(
    experiment: Experiment, options: Any, params: Any, folder: Path, number: int
) -> None:
    size = min(options.batch_size, options.num_samples)
    noise = experiment.noise(params)
    draw = jax.jit(lambda key: experiment.pixels.decode(experiment.sampler(noise, key, size)))
    rounds = -(-options.num_samples // size)
    began = time.monotonic()
    drawn = []
    for i in range(rounds):
        drawn.append(np.asarray(draw(jax.random.fold_in(jax.random.key(experiment.seed), i))))
        left = (time.monotonic() - began) / (i + 1) * (rounds - i - 1)
        print(f"samples  round {i + 1}/{rounds}  ETA {left:.0f}s", flush=True)
    samples = np.concatenate(drawn)[: options.num_samples]
    with evaluate.write_atomically(folder / f"samples_ckpt_{number}.npz") as path:
        with path.open("wb") as file:
            np.savez_compressed(file, samples=samples)
    grid = folder / f"samples_ckpt_{number}.png"
    report.write_grid(grid, samples[:SNAPSHOT_SAMPLES], experiment.pixels.levels)
    print(f"{len(samples)} samples: {grid}", flush=True)


def _print_results(folder: Path) -> None:
    results = read_json(folder / "results.json") if (folder / "results.json").exists() else {}
    if results:
        print(report.results_table(results))
        print(f"written to {folder}", flush=True)


# Python --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """Per image: log P(x) of the integers in nats, bits/dim, and the errors in bits/dim."""

    log_prob: Float[np.ndarray, " n"]
    bpd: Float[np.ndarray, " n"]
    probe_stderr: Float[np.ndarray, " n"]
    solver_error: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Trained:
    """A trained model of integer images."""

    experiment: Experiment
    params: Any
    step: int

    def score(self, images: UInt8[np.ndarray, "n h w c"], *, seed: int = 0) -> Scores:
        """Exact likelihoods of images under the probability-flow ODE, uniformly dequantized.

        Raises UserError for images of another shape, type or range than the model was trained on.
        """
        shape, levels = self.experiment.data.shape, self.experiment.pixels.levels
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise UserError(
                f"images must be uint8 of shape (n, {', '.join(map(str, shape))}), "
                f"not {images.dtype} of shape {images.shape}"
            )
        if images.size and images.max() >= levels:
            raise UserError(f"pixels must lie in 0..{levels - 1}, but one is {images.max()}")
        metric = jax.jit(exact_metric(self.experiment, self.params))
        found = jax.device_get(metric(jnp.asarray(images), jax.random.key(seed)))
        bits = self.experiment.dims * np.log(2)
        return Scores(
            log_prob=-found["bpd"] * bits,
            bpd=found["bpd"],
            probe_stderr=found["probe_stderr"],
            solver_error=found["solver_error"],
        )


def load(workdir: str | Path, checkpoint: int | None = None) -> Trained:
    """The model in a working directory: this checkpoint, or the newest (averaged parameters)."""
    from ml_collections import ConfigDict

    workdir = Path(workdir)
    if not (workdir / "config.json").exists():
        raise UserError(f"{workdir} is no working directory of a training: it has no config.json")
    experiment = build(ConfigDict(read_json(workdir / "config.json")))
    store = Checkpoints(workdir / "checkpoints", keep=None)
    state, meta, _ = store.restore(experiment.template(), checkpoint)
    return Trained(experiment, state.ema, int(meta["step"]))
