"""Mode eval: checkpoints measured on a whole split; numbers, per-image values and pictures."""

import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import scoremle
from scoremle.data import permutation
from scoremle.errors import UserError
from scoremle.evaluation import metrics, pictures, statistics, tables
from scoremle.experiment.build import Experiment
from scoremle.experiment.consistency import suite_tasks, verdicts
from scoremle.experiment.correction import DIFFERENCES, Measure, correct
from scoremle.experiment.estimators import Facts, Task, Weights, tasks
from scoremle.experiment.evaluation import Estimators, Evaluation
from scoremle.experiment.run_sampling import SamplingRun, judge
from scoremle.experiment.workdir import Workdir
from scoremle.files import read_json, write_json, write_npz
from scoremle.likelihood.nodes import PILOT_IMAGES, Choice, choose_for_mean
from scoremle.model import ScoreModel
from scoremle.resumable import HASH_LENGTH, content_hash, fingerprint
from scoremle.training.checkpoints import Checkpoints, Restored, tree_hash

__all__ = ["restore_flow", "run_eval"]

logger = logging.getLogger(__name__)

EXTREMES = 32
# The pilot's seed differs from that of the evaluation in this.
PILOT = 2**32 - 3
# Seconds between looks for a checkpoint.
WAIT_SECONDS = 10.0
# The optimism that passes without a warning: in bits/dim, and as a share of the standard error.
MAX_BIAS = 0.005
MAX_BIAS_SHARE = 0.2


def run_eval(
    experiment: Experiment, workdir: Workdir, eval_folder: str, deq_folder: str
) -> None:
    """Evaluates every checkpoint that ``eval.begin_ckpt`` to ``eval.end_ckpt`` name."""
    evaluation, chosen = experiment.evaluation, experiment.evaluation.checkpoints
    trained = bool(Workdir(workdir.folder / deq_folder).snapshots.numbers())
    todo = list(_tasks(experiment, evaluation.estimators, trained))
    if not todo and not evaluation.samples:
        raise UserError(
            "nothing to evaluate: set eval.enable_bpd, eval.enable_loss or eval.enable_sampling"
        )
    judged_by = judge(experiment.sampling, experiment.data) if evaluation.samples else None
    workdir.check_evaluation(experiment)
    numbers = chosen_checkpoints(workdir.snapshots, chosen.begin, chosen.end, wait=chosen.wait)
    flow = None
    if any(task.flow for task in todo):
        flow = restore_flow(experiment, workdir.folder / deq_folder)
    run = EvaluationRun(experiment, workdir.folder / eval_folder, flow)
    sampling = SamplingRun(experiment, run.folder, judged_by)
    run.results()  # of an earlier run: better unreadable now than after hours
    names: list[str] = []
    quality: dict[str, Facts] = {}
    for number in numbers:
        restored = workdir.snapshots.restore(experiment.training.template(), number)
        measured = [run.measure(task, restored) for task in run.tasks(restored)]
        names += [found.name for found in measured]
        if evaluation.suite:
            run.judge(measured, restored.number)
        if evaluation.samples:
            found = sampling.run(restored.tree.ema, _checkpoint_facts(restored))
            run.write(found)
            quality |= found
    _report(run, names, quality)


def _report(run: "EvaluationRun", names: list[str], quality: dict[str, Facts]) -> None:
    if names:
        results = run.results()
        print(tables.results_table({name: results[name] for name in names}))
    if quality:
        print(tables.quality_table(quality))
    if names or quality:
        print(f"written to {run.folder}", flush=True)


def _tasks(
    experiment: Experiment, how: Estimators, variational: bool, choice: Choice | None = None
) -> Iterable[Task]:
    if experiment.evaluation.suite:
        return suite_tasks(experiment, how, variational=variational, choice=choice)
    return tasks(experiment, how, choice)


def restore_flow(experiment: Experiment, folder: Path) -> Restored:
    """The flow dequantizer that was trained in this folder."""
    place = Workdir(folder)
    store = place.snapshots
    if not store.numbers():
        raise UserError(f"no dequantizer in {store.folder}: train it with --mode=train_deq")
    place.check_flow_evaluation(experiment)
    template = experiment.flow_training.template()
    return store.restore(template, experiment.evaluation.checkpoints.flow)


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


class Measured(NamedTuple):
    """A result by its name, of which kind it is, and its values averaged over the passes."""

    name: str
    kind: str
    values: np.ndarray


@dataclass(frozen=True)
class EvaluationRun:
    """What is the same for all checkpoints; the ``flow`` dequantizer, if a task needs it."""

    experiment: Experiment
    folder: Path
    flow: Restored | None = None

    @property
    def _evaluation(self) -> Evaluation:
        return self.experiment.evaluation

    @cached_property
    def images(self) -> np.ndarray:
        return self._split[: self._evaluation.num_images or None]

    @property
    def _split(self) -> np.ndarray:
        data = self.experiment.data
        return data.train if self._evaluation.split == "train" else data.test

    def results(self) -> dict[str, Any]:
        """What lies in results.json."""
        path = self.folder / "results.json"
        return read_json(path) if path.exists() else {}

    def write(self, results: dict[str, Any]) -> None:
        """Adds to results.json."""
        if results:
            write_json(self.folder / "results.json", {**self.results(), **results})

    def tasks(self, restored: Restored) -> list[Task]:
        """What is to be measured of a checkpoint, after a pilot chose what is left to choose."""
        experiment, how, choice = self.experiment, self._evaluation.estimators, None
        if self._evaluation.exact and how.pilot:
            print("choosing the solver's nodes on a few images", flush=True)
            choice = self._choose(experiment.model.model(restored.tree.ema))
            how = replace(how, solver=choice.solver)
            print(choice, flush=True)
        return list(_tasks(experiment, how, self.flow is not None, choice))

    def _choose(self, model: ScoreModel) -> Choice:
        """The solver's nodes, and levels for the mean, by a few images of the other split."""
        evaluation, seed = self._evaluation, self.experiment.seed
        data = self.experiment.data
        others = data.test if evaluation.split == "train" else data.train
        chosen = permutation(len(others), seed, PILOT)[:PILOT_IMAGES]
        pilot = model.pilot_on(
            others[chosen], divergence=evaluation.estimators.divergence, seed=seed ^ PILOT
        )
        return choose_for_mean(
            pilot, images=len(self.images), passes=evaluation.repeats,
            tolerance=evaluation.tolerance,
        )  # fmt: skip

    def judge(self, measured: list[Measured], checkpoint: int) -> None:
        """Says whether what must hold between the estimators of one checkpoint does."""
        found = verdicts({each.kind: each.values for each in measured})
        print("\n".join(map(str, found)), flush=True)
        name = self._name("checks", checkpoint)
        self.write({name: [asdict(verdict) for verdict in found]})

    def measure(self, task: Task, restored: Restored) -> Measured:
        """Evaluates one task on one checkpoint, and writes all about it."""
        name, facts = self._name(task.name, restored.number), self._facts_of(task, restored)
        measuring = self._measuring(task, restored, name, facts)
        values, seconds = measuring(task.metric, self.images, self._evaluation.repeats)
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
        if task.levels is not None:
            result |= correct(
                task, self.images, values, result, measuring,
                seed=self.experiment.seed, tolerance=self._evaluation.tolerance,
            )  # fmt: skip
        if task.log_snr_edges is not None:
            result["profile"] = statistics.profile(values, task.log_snr_edges)
            pictures.write_profile(self.folder / f"{name}_profile.png", result["profile"], name)
        self.write({name: result})
        if "probe_bias" in values:
            _warn_of_optimism(name, result)
        means = values[task.column].mean(axis=0)
        self._write_extremes(name, result["unit"], means)
        return Measured(name, task.name, means)

    def _name(self, kind: str, checkpoint: int) -> str:
        return f"{kind}_{self._evaluation.split}_ckpt_{checkpoint}"

    def _measuring(self, task: Task, restored: Restored, name: str, facts: Facts) -> Measure:
        """Measures images by metrics that take what the task prepares."""
        # Each fact may change a value. The number of passes is not among them, and so another pass
        # is added to those there are.
        parts = self.folder / "parts" / f"{name}_{fingerprint(facts)}"
        flow = self.flow.tree.ema if self.flow and task.flow else None
        prepared = task.prepare(Weights(restored.tree.ema, flow), parts)

        def measure(
            metric: metrics.Metric, images: np.ndarray, repeats: int, apart: str = ""
        ) -> tuple[statistics.Values, float]:
            return metrics.evaluate(
                metric if task.on_host else jax.jit(metric),
                prepared,
                images,
                batch_size=min(self._evaluation.batch_size, len(images)),
                repeats=repeats,
                seed=self.experiment.seed ^ (DIFFERENCES if apart else 0),
                parts=parts / apart,
                label=f"{name} {apart}".strip(),
            )

        return measure

    def _facts_of(self, task: Task, restored: Restored) -> Facts:
        facts = {"kind": task.name, **self._facts, **task.facts, **_checkpoint_facts(restored)}
        if self.flow and task.flow:
            facts |= {f"dequantizer_{k}": v for k, v in _checkpoint_facts(self.flow).items()}
        if task.on_host:  # the published solver's norm mixes the images of a batch
            facts["batch_size"] = self._evaluation.batch_size
        return facts

    @cached_property
    def _facts(self) -> Facts:
        data, model = self.experiment.data, self.experiment.model
        return {
            "dataset": data.name,
            "levels": data.levels,
            **data.facts,
            "split": self._evaluation.split,
            "data_hash": content_hash(self.images),
            "full_pass": len(self.images) == len(self._split),
            "augmentation": "horizontal flip" if data.random_flip else "none",
            "sde": model.sde.describe(),
            "eps": model.eps,
            "precision": model.precision,
            "seed": self.experiment.seed,
            "version": scoremle.__version__,
        }

    def _check_finite(self, task: Task, values: statistics.Values, name: str) -> None:
        bad = np.flatnonzero(~np.isfinite(values[task.column]).all(axis=0))
        if len(bad):
            raise UserError(
                f"{task.column} is not finite for {len(bad)} images (first: number {bad[0]});"
                f" their values are in {self.folder / name}.npz{task.hint}"
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
            pictures.write_captioned(path, parts, self.experiment.data.levels, 8)


def _warn_of_optimism(name: str, result: dict[str, Any]) -> None:
    bias, stderr = result["mean_probe_bias"], result["stderr"] or 0.0  # bias: below zero
    if bias is None:
        logger.warning(
            "%s: one random probe can't tell by how much its noise makes the bound too low; "
            "set --config.eval.probes=2 or more",
            name,
        )
    elif -bias > min(MAX_BIAS, MAX_BIAS_SHARE * stderr):
        logger.warning(
            "%s: the noise of the probes makes the bound too low by about %.4f bits/dim "
            "(standard error %.4f); raise --config.eval.probes",
            name, -bias, stderr,
        )  # fmt: skip


def _checkpoint_facts(restored: Restored) -> Facts:
    return {
        "checkpoint": restored.number,
        "step": int(restored.meta["step"]),
        "ema_hash": tree_hash(restored.tree.ema)[:HASH_LENGTH],
    }
