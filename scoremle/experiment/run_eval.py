"""Mode eval: checkpoints measured on a whole split; numbers, per-image values and pictures."""

import logging
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import scoremle
from scoremle.data import permutation
from scoremle.devices import compiled
from scoremle.errors import UserError
from scoremle.evaluation import metrics, pictures, statistics, tables
from scoremle.experiment.build import Experiment
from scoremle.experiment.chosen import chosen_checkpoints
from scoremle.experiment.consistency import Correction, suite_tasks, verdicts
from scoremle.experiment.correction import DIFFERENCES, Measure, correct
from scoremle.experiment.estimators import Facts, Task, Weights, tasks
from scoremle.experiment.evaluation import Estimators, Evaluation
from scoremle.experiment.labels import ALL
from scoremle.experiment.precision import cost_of_precision
from scoremle.experiment.results import add_results, read_results
from scoremle.experiment.run_sampling import SamplingRun, judge
from scoremle.experiment.scoring import worth_of
from scoremle.experiment.workdir import Workdir
from scoremle.files import inside, write_npz
from scoremle.likelihood.nodes import PILOT_IMAGES, Choice, choose_for_mean, choose_nodes
from scoremle.likelihood.reconstruction import Informed
from scoremle.model import ScoreModel
from scoremle.numerics import check_finite
from scoremle.processes import check_agreed, together
from scoremle.resumable import HASH_LENGTH, content_hash, fingerprint
from scoremle.terminal import say
from scoremle.training.checkpoints import Restored
from scoremle.training.checksums import tree_hash

__all__ = ["run_eval"]

logger = logging.getLogger(__name__)

EXTREMES = 32
# The precision in which nothing is lost.
FULL = "float32"
# The pilot's seed differs from that of the evaluation in this.
PILOT = 2**32 - 3
# The optimism that passes without a warning: in bits/dim, and as a share of the standard error.
MAX_BIAS = 0.005
MAX_BIAS_SHARE = 0.2


def run_eval(
    experiment: Experiment, workdir: Workdir, eval_folder: str, deq_folder: str
) -> dict[str, Facts]:
    """Evaluates every checkpoint that ``eval.begin_ckpt`` to ``eval.end_ckpt`` name.

    Gives the results by their names, as they are in results.json.
    """
    evaluation, chosen = experiment.evaluation, experiment.evaluation.checkpoints
    flow_workdir, flow = Workdir(workdir.inside(deq_folder)), None
    trained = bool(flow_workdir.snapshots.numbers())
    todo = list(_tasks(experiment, evaluation.estimators, trained))
    if not todo and not evaluation.samples:
        raise UserError(
            "nothing to evaluate: set eval.enable_bpd, eval.enable_loss or eval.enable_sampling"
        )
    judged_by = judge(experiment.sampling, experiment.data) if evaluation.samples else None
    workdir.check_evaluation(experiment)
    numbers = chosen_checkpoints(workdir.snapshots, chosen.begin, chosen.end, wait=chosen.wait)
    if any(task.flow for task in todo):
        flow = _restore_flow(experiment, flow_workdir.folder)
    folder = workdir.inside(eval_folder, writing=True)
    run = EvaluationRun(experiment, folder, workdir, flow_workdir, flow)
    sampling = SamplingRun(experiment, run.folder, judged_by)
    run.results()  # of an earlier run: better unreadable now than after hours
    names: list[str] = []
    quality: dict[str, Facts] = {}
    for number in numbers:
        restored = workdir.restore(experiment.template, number)
        check_finite(restored.tree.ema, workdir.snapshots.path(restored.number))
        _say_if_older(workdir, restored)
        measured = [run.measure(task, restored) for task in run.tasks(restored)]
        names += [found.name for found in measured]
        if evaluation.suite:
            run.judge(measured, restored.number)
        if evaluation.samples:
            found = sampling.run(restored.tree.ema, _checkpoint_facts(restored))
            found = {name: {**facts, **run.trainings(flow=False)} for name, facts in found.items()}
            run.write(found)
            quality |= found
    together("results")  # the first process alone has written them
    there = run.results()
    results = {name: there[name] for name in names}
    _report(run.folder, results, quality)
    if results:
        elsewhere = [f"--eval-folder={eval_folder}"] * (eval_folder != "eval")
        say(f"next: scoremle {shlex.join(['report', str(workdir.folder), *elsewhere])}")
    return results | quality


def _report(folder: Path, results: dict[str, Facts], quality: dict[str, Facts]) -> None:
    if results:
        say(*tables.results_table(results).splitlines())
    if quality:
        say(*tables.quality_table(quality).splitlines())
    if results or quality:
        say(f"written to {folder}: results.json, arrays and pictures beside it")


def _say_if_older(workdir: Workdir, restored: Restored) -> None:
    """Where the newest snapshot is behind the training."""
    training, step = workdir.training(), restored.meta["step"]
    newest = restored.number == workdir.snapshots.latest()
    if training and newest and step < training["newest_step"]:
        say(
            f"{workdir.snapshots.path(restored.number)} is of step {step}: the newest snapshot;"
            f" training is at step {training['newest_step']} of {training['steps']}"
        )


def _tasks(
    experiment: Experiment, how: Estimators, variational: bool, choice: Choice | None = None
) -> Iterable[Task]:
    if experiment.evaluation.suite:
        return suite_tasks(experiment, how, variational=variational, choice=choice)
    return tasks(experiment, how, choice)


def _restore_flow(experiment: Experiment, folder: Path) -> Restored:
    """The flow dequantizer that was trained in this folder."""
    place = Workdir(folder)
    store = place.snapshots
    if not store.numbers():
        raise UserError(f"no dequantizer in {store.folder}: train it with scoremle train-deq")
    place.check_flow_evaluation(experiment)
    template = experiment.flow_training.template()
    restored = place.restore(template, experiment.evaluation.checkpoints.flow)
    check_finite(restored.tree.ema, store.path(restored.number))
    return restored


class Measured(NamedTuple):
    """A result by its name, of which kind it is, and its values averaged over the passes.

    ``correction`` is what their mean takes for the solver.
    """

    name: str
    kind: str
    values: np.ndarray
    correction: Correction


def _correction(result: Facts) -> Correction:
    if "correction" not in result:
        return Correction()
    return Correction(result["correction"], result["errors"]["solver"])


@dataclass(frozen=True)
class EvaluationRun:
    """What is the same for all checkpoints; the ``flow`` dequantizer, if a task needs it."""

    experiment: Experiment
    folder: Path
    workdir: Workdir
    flow_workdir: Workdir
    flow: Restored | None = None

    @property
    def _evaluation(self) -> Evaluation:
        return self.experiment.evaluation

    @cached_property
    def images(self) -> np.ndarray:
        return self._split[: self._evaluation.num_images or None]

    @cached_property
    def _flags(self) -> Facts:
        """The fields of ``eval`` that are not as the working directory has them.

        No value depends on the size of a batch, which is left out.
        """
        if not self.workdir.config_path.exists():
            return {}
        known = self.workdir.config().eval
        fields = self.experiment.config["eval"].items()
        changed = {name: value for name, value in fields if value != known[name]}
        return {name: value for name, value in changed.items() if name != "batch_size"}

    @property
    def _split(self) -> np.ndarray:
        data = self.experiment.data
        return data.train if self._evaluation.split == "train" else data.test

    def results(self) -> dict[str, Any]:
        """What lies in results.json."""
        return read_results(inside(self.folder, "results.json"))

    def trainings(self, *, flow: bool) -> Facts:
        """How far they are now: the model's and, if it counts, the flow's. None ran: not there."""
        found = {"training": self.workdir.training()}
        if flow and self.flow:
            found["dequantizer_training"] = self.flow_workdir.training(flow=True)
        return {name: facts for name, facts in found.items() if facts}

    def write(self, results: dict[str, Any]) -> None:
        """Adds to results.json."""
        if results:
            add_results(self.folder / "results.json", results)

    def tasks(self, restored: Restored) -> list[Task]:
        """What is to be measured of a checkpoint, after a pilot chose what is left to choose."""
        experiment, how, choice = self.experiment, self._evaluation.estimators, None
        model = experiment.model.model(restored.tree.ema)
        if self._evaluation.dequantization == "informed":
            how = replace(how, decoder=self._decoder(model))
        if self._evaluation.exact and how.pilot:
            say("choosing the solver's nodes on a few images")
            choice = self._choose(model)
            how = replace(how, solver=choice.solver)
            say(*tables.wrapped(str(choice)))
        found = list(_tasks(experiment, how, self.flow is not None, choice))
        if experiment.model.precision == FULL:
            return found
        full = replace(experiment, model=experiment.model.in_float32)
        pairs = zip(found, _tasks(full, how, self.flow is not None, choice), strict=True)
        return [replace(task, in_float32=same.metric) for task, same in pairs]

    def _choose(self, model: ScoreModel) -> Choice:
        """The solver's nodes, by a few images of the other split; and levels for the mean."""
        evaluation, seed = self._evaluation, self.experiment.seed
        pilot = model.pilot_on(
            self._others, divergence=evaluation.estimators.divergence, seed=seed ^ PILOT
        )
        if evaluation.label == ALL:  # a mean of probabilities is not corrected
            return choose_nodes(pilot)
        return choose_for_mean(
            pilot, images=len(self.images), passes=evaluation.repeats,
            tolerance=evaluation.tolerance,
        )  # fmt: skip

    def _decoder(self, model: ScoreModel) -> Informed:
        """What the network says of integers, its scale fitted to the pilot's images."""
        fitted = model.fitted(self._others, seed=self.experiment.seed ^ PILOT)
        if fitted.decoder is None:
            raise UserError(
                "eval.dequantization=informed is for models whose smallest time hides the levels:"
                " this one tells them apart, so take uniform"
            )
        say(*tables.wrapped(worth_of(fitted, self._others)))
        return fitted.decoder

    @cached_property
    def _others(self) -> np.ndarray:
        """A few images of the other split."""
        data = self.experiment.data
        others = data.test if self._evaluation.split == "train" else data.train
        return others[permutation(len(others), self.experiment.seed, PILOT)[:PILOT_IMAGES]]

    def judge(self, measured: list[Measured], checkpoint: int) -> None:
        """Says whether what must hold between the estimators of one checkpoint does."""
        found = verdicts(
            {each.kind: each.values for each in measured},
            {each.kind: each.correction for each in measured},
        )
        say(*found)
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
            **self.trainings(flow=task.flow),
            **task.notes,
            "flags": self._flags,
            "seconds_per_image": seconds,
        }
        if task.levels is not None:
            result |= correct(
                task, self.images, values, result, measuring,
                seed=self.experiment.seed, tolerance=self._evaluation.tolerance,
            )  # fmt: skip
        if task.in_float32 and task.column == "bpd":
            result["precision_cost"] = cost_of_precision(
                task.metric, task.in_float32, self.images, measuring
            )
        if task.log_snr_edges is not None:
            result["profile"] = statistics.profile(values, task.log_snr_edges)
            pictures.write_profile(self.folder / f"{name}_profile.png", result["profile"], name)
        self.write({name: result})
        if "probe_bias" in values:
            _warn_of_optimism(name, result)
        means = values[task.column].mean(axis=0)
        self._write_extremes(name, result["unit"], means)
        return Measured(name, task.name, means, _correction(result))

    def _name(self, kind: str, checkpoint: int) -> str:
        return f"{kind}_{self._evaluation.split}_ckpt_{checkpoint}"

    def _measuring(self, task: Task, restored: Restored, name: str, facts: Facts) -> Measure:
        """Measures images by metrics that take what the task prepares."""
        # Each fact may change a value. The number of passes is not among them, and so another pass
        # is added to those there are.
        parts = inside(self.folder, "parts", f"{name}_{fingerprint(facts)}", writing=True)
        check_agreed(facts)
        flow = self.flow.tree.ema if self.flow and task.flow else None
        prepared = task.prepare(Weights(restored.tree.ema, flow), parts)

        def measure(
            metric: metrics.Metric, images: np.ndarray, repeats: int, apart: str = ""
        ) -> tuple[statistics.Values, float]:
            return metrics.evaluate(
                metric if task.on_host else compiled(metric),
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
