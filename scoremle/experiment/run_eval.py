"""Mode eval: checkpoints measured on a whole split; numbers, per-image values and pictures."""

import hashlib
import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

import scoremle
from scoremle.errors import UserError
from scoremle.evaluation import metrics, pictures, statistics, tables
from scoremle.experiment.build import Experiment, Weights
from scoremle.experiment.consistency import suite_tasks, verdicts
from scoremle.experiment.estimators import HASH_LENGTH, Facts, Task, tasks
from scoremle.experiment.run_sampling import Sampling, judge
from scoremle.experiment.workdir import Workdir
from scoremle.files import read_json, write_json, write_npz
from scoremle.likelihood.nodes import PILOT_IMAGES, Choice
from scoremle.resumable import fingerprint
from scoremle.training.checkpoints import Checkpoints, Restored, tree_hash

__all__ = ["restore_flow", "run_eval"]

logger = logging.getLogger(__name__)

EXTREMES = 32
# Seconds between looks for a checkpoint.
WAIT_SECONDS = 10.0
# The optimism that passes without a warning: in bits/dim, and as a share of the standard error.
MAX_BIAS = 0.005
MAX_BIAS_SHARE = 0.2


def run_eval(
    experiment: Experiment, options: Any, workdir: Workdir, eval_folder: str, deq_folder: str
) -> None:
    """Evaluates every checkpoint that ``eval.begin_ckpt`` to ``eval.end_ckpt`` name."""
    trained = bool(Workdir(workdir.folder / deq_folder).snapshots.numbers())
    todo = list(_tasks(experiment, options, trained))
    if not todo and not options.enable_sampling:
        raise UserError(
            "nothing to evaluate: set eval.enable_bpd, eval.enable_loss or eval.enable_sampling"
        )
    judged_by = judge(experiment, options) if options.enable_sampling else None
    workdir.check_evaluation(experiment)
    numbers = chosen_checkpoints(
        workdir.snapshots, options.begin_ckpt, options.end_ckpt, wait=options.wait
    )
    flow = None
    if any(_needs_flow(task) for task in todo):
        flow = restore_flow(experiment, workdir.folder / deq_folder, options.deq_ckpt)
    evaluation = Evaluation(experiment, options, workdir.folder / eval_folder, flow)
    sampling = Sampling(experiment, options, evaluation.folder, judged_by)
    evaluation.results()  # of an earlier run: better unreadable now than after hours
    names: list[str] = []
    quality: dict[str, Facts] = {}
    for number in numbers:
        restored = workdir.snapshots.restore(experiment.template(), number)
        measured = [evaluation.measure(task, restored) for task in evaluation.tasks(restored)]
        names += measured
        if options.suite:
            evaluation.judge(measured)
        if options.enable_sampling:
            found = sampling.run(restored.tree.ema, _checkpoint_facts(restored))
            evaluation.write(found)
            quality |= found
    if names:
        results = evaluation.results()
        print(tables.results_table({name: results[name] for name in names}))
    if quality:
        print(tables.quality_table(quality))
    if names or quality:
        print(f"written to {evaluation.folder}", flush=True)


def _tasks(
    experiment: Experiment, options: Any, variational: bool, choice: Choice | None = None
) -> Iterable[Task]:
    if options.suite:
        return suite_tasks(experiment, variational=variational, choice=choice)
    return tasks(experiment, options, choice)


def restore_flow(experiment: Experiment, folder: Path, number: int | None) -> Restored:
    """The flow dequantizer that was trained in this folder: this checkpoint, or the newest."""
    place = Workdir(folder)
    store = place.snapshots
    if not store.numbers():
        raise UserError(f"no dequantizer in {store.folder}: train it with --mode=train_deq")
    place.check_flow_evaluation(experiment)
    return store.restore(experiment.flow_template(), number)


def _needs_flow(task: Task) -> bool:
    return task.facts.get("dequantizer") == "variational"


def chosen_checkpoints(
    store: Checkpoints, begin: int | None, end: int | None, *, wait: bool = False
) -> Iterable[int] | list[None]:
    """The numbers from ``begin`` to ``end`` that are there; None stands for the newest.

    Without an end it is the newest; without a beginning, the end alone is meant. With ``wait``
    they are all the numbers, each given when it is there.
    """
    if wait and end is not None:
        first = end if begin is None else begin
        return (_await(store, number) for number in range(first, end + 1))
    there = store.numbers()
    if not there:
        raise UserError(f"no checkpoint in {store.folder}: train first")
    if begin is None and end is None:
        return [None]
    last = there[-1] if end is None else end
    first = last if begin is None else begin
    if chosen := [number for number in there if first <= number <= last]:
        return chosen
    wanted = first if None in (begin, end) else f"{first} to {last}"
    raise UserError(
        f"no checkpoint {wanted} in {store.folder}, only {', '.join(map(str, there))}; "
        "set --config.eval.begin_ckpt and end_ckpt, or neither for the newest"
    )


def _await(store: Checkpoints, number: int) -> int:
    if number not in store.numbers():
        print(f"waiting for {store.path(number)}", flush=True)
    while number not in store.numbers():
        time.sleep(WAIT_SECONDS)
    return number


@dataclass(frozen=True)
class Evaluation:
    """What is the same for all checkpoints; ``options`` are the fields ``eval.*``.

    ``flow`` is the flow dequantizer, if a task needs it.
    """

    experiment: Experiment
    options: Any
    folder: Path
    flow: Restored | None = None

    @cached_property
    def images(self) -> np.ndarray:
        return self._split[: self.options.num_images or None]

    @property
    def _split(self) -> np.ndarray:
        data = self.experiment.data
        return data.train if self.options.dataset == "train" else data.test

    @property
    def _bytes(self) -> memoryview:
        return np.ascontiguousarray(self.images).data

    def results(self) -> dict[str, Any]:
        """What lies in results.json."""
        path = self.folder / "results.json"
        return read_json(path) if path.exists() else {}

    def tasks(self, restored: Restored) -> list[Task]:
        """What is to be measured of a checkpoint, after a pilot chose what is left to choose."""
        experiment, choice = self.experiment, None
        exact = self.options.suite or (self.options.enable_bpd and not self.options.bound)
        if exact and experiment.pilot:
            print("choosing the solver's nodes on a few images", flush=True)
            images = self.images[:PILOT_IMAGES]
            experiment, choice = experiment.calibrated(restored.tree.ema, images)
            print(choice, flush=True)
        return list(_tasks(experiment, self.options, self.flow is not None, choice))

    def judge(self, names: list[str]) -> None:
        """Says whether what must hold between the estimators of one checkpoint does."""
        bpd, end = {}, f"_{self.options.dataset}_ckpt_"
        for name in names:
            with np.load(self.folder / f"{name}.npz") as saved:
                bpd[name.partition(end)[0]] = saved["bpd"].mean(axis=0)
        found = verdicts(bpd)
        print("\n".join(map(str, found)), flush=True)
        checkpoint = names[0].partition(end)[2]
        self.write({f"checks{end}{checkpoint}": [asdict(verdict) for verdict in found]})

    def write(self, results: dict[str, Any]) -> None:
        """Adds to results.json."""
        if results:
            write_json(self.folder / "results.json", {**self.results(), **results})

    def measure(self, task: Task, restored: Restored) -> str:
        """Evaluates one task on one checkpoint, writes all about it, and gives its name."""
        name = f"{task.name}_{self.options.dataset}_ckpt_{restored.number}"
        facts = {"kind": task.name, **self._facts, **task.facts, **_checkpoint_facts(restored)}
        flow = self.flow if _needs_flow(task) else None
        if flow:
            facts |= {f"dequantizer_{k}": v for k, v in _checkpoint_facts(flow).items()}
        if task.on_host:  # the published solver's norm mixes the images of a batch
            facts["batch_size"] = self.options.batch_size
        # Each fact may change a value. The number of passes is not among them, and so another pass
        # is added to those there are.
        parts = self.folder / "parts" / f"{name}_{fingerprint(facts)}"
        values, seconds = metrics.evaluate(
            task.metric if task.on_host else jax.jit(task.metric),
            task.prepare(Weights(restored.tree.ema, flow and flow.tree.ema), parts),
            self.images,
            batch_size=min(self.options.batch_size, len(self.images)),
            repeats=self.options.num_repeats,
            seed=self.experiment.seed,
            parts=parts,
            label=name,
        )
        write_npz(self.folder / f"{name}.npz", values)
        self._check_finite(task, values, name)
        result = {
            "metric": task.column,
            "unit": "bits/dim" if task.column == "bpd" else "loss",
            **statistics.summary(values, task.column),
            **statistics.means(values),
            **facts,
            **task.notes,
            "seconds_per_image": seconds,
        }
        if task.log_snr_edges is not None:
            result["profile"] = statistics.profile(values, task.log_snr_edges)
            pictures.write_profile(self.folder / f"{name}_profile.png", result["profile"], name)
        self.write({name: result})
        if "probe_bias" in values:
            _warn_of_optimism(name, result)
        self._write_extremes(name, result["unit"], values[task.column].mean(axis=0))
        return name

    @cached_property
    def _facts(self) -> Facts:
        experiment, data = self.experiment, self.experiment.data
        return {
            "dataset": data.name,
            "levels": data.levels,
            **data.facts,
            "split": self.options.dataset,
            "data_hash": hashlib.sha256(self._bytes).hexdigest()[:HASH_LENGTH],
            "full_pass": len(self.images) == len(self._split),
            "augmentation": "horizontal flip" if data.random_flip else "none",
            "sde": experiment.sde.describe(),
            "eps": experiment.eps,
            "precision": experiment.config["model"]["dtype"],
            "seed": experiment.seed,
            "version": scoremle.__version__,
        }

    def _check_finite(self, task: Task, values: statistics.Values, name: str) -> None:
        bad = np.flatnonzero(~np.isfinite(values[task.column]).all(axis=0))
        if len(bad):
            hint = "; try --config.eval.solver=doubling" if task.name.startswith("exact") else ""
            raise UserError(
                f"{task.column} is not finite for {len(bad)} images (first: number {bad[0]});"
                f" their values are in {self.folder / name}.npz{hint}"
            )

    def _write_extremes(self, name: str, unit: str, scores: np.ndarray) -> None:
        """The likeliest and the unlikeliest images, one below the other in one picture."""
        order = np.argsort(scores)
        count = min(EXTREMES, len(order) // 2)
        if count:
            ends = {"lowest": order[:count], "highest": order[-count:]}
            parts = {
                f"{end} {unit}: {scores[chosen[0]]:.3f} to {scores[chosen[-1]]:.3f}":
                    self.images[chosen]
                for end, chosen in ends.items()
            }  # fmt: skip
            path = self.folder / f"{name}_likeliest_then_unlikeliest.png"
            pictures.write_captioned(path, parts, self.experiment.pixels.levels, 8)


def _warn_of_optimism(name: str, result: dict[str, Any]) -> None:
    bias, stderr = result["mean_probe_bias"], result["stderr"] or 0.0
    if bias is None:
        logger.warning(
            "%s: one random probe can't tell by how much its noise makes the bound too low; "
            "set --config.eval.probes=2 or more",
            name,
        )
    elif bias > min(MAX_BIAS, MAX_BIAS_SHARE * stderr):
        logger.warning(
            "%s: the noise of the probes makes the bound too low by about %.4f bits/dim "
            "(standard error %.4f); raise --config.eval.probes",
            name, bias, stderr,
        )  # fmt: skip


def _checkpoint_facts(restored: Restored) -> Facts:
    return {
        "checkpoint": restored.number,
        "step": int(restored.meta["step"]),
        "ema_hash": tree_hash(restored.tree.ema)[:HASH_LENGTH],
    }
