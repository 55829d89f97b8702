"""Mode eval: checkpoints measured on a whole split; numbers, per-image values and pictures."""

import logging
import os
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

import scoremle
from scoremle.errors import UserError, in_a_line
from scoremle.evaluation import pictures, statistics
from scoremle.evaluation.quality import Quality, quality_table
from scoremle.evaluation.result import Result, results_table
from scoremle.experiment.build import Experiment
from scoremle.experiment.consistency import verdicts
from scoremle.experiment.measurement import Measurement
from scoremle.experiment.measurements import PILOT, Measurements
from scoremle.experiment.record import augmentation
from scoremle.experiment.results import RESULTS, add_results, read_results
from scoremle.experiment.run_sampling import SamplingRun, judge
from scoremle.experiment.workdir import Workdir, chosen_checkpoints
from scoremle.files import inside, write_npz
from scoremle.likelihood.images import ByOde
from scoremle.likelihood.mean import CORRECTION, Mean
from scoremle.likelihood.pilot import PILOT_IMAGES
from scoremle.likelihood.score_images import DIFFERENCES, Scored, score_images
from scoremle.model import ScoreModel
from scoremle.numerics import permutation
from scoremle.processes import check_agreed, together
from scoremle.resumable import HASH_LENGTH, content_hash, fingerprint
from scoremle.terminal import say
from scoremle.training.checkpoints import Restored
from scoremle.training.checksums import tree_hash

logger = logging.getLogger(__name__)

EXTREMES = 32
# Fields on which no value depends.
OF_SPEED = ("batch_size", "on_device")
# The folder of finished parts, in that of the results.
PARTS = "parts"
# The precision in which nothing is lost; images that are measured in it, too.
FULL, IMAGES = "float32", 16
# The optimism that passes without a warning: in bits/dim, and as a share of the standard error.
MAX_BIAS = 0.005
MAX_BIAS_SHARE = 0.2


def run_eval(
    experiment: Experiment, workdir: Workdir, eval_folder: str, deq_folder: str
) -> dict[str, Any]:
    """Evaluates every checkpoint that ``eval.begin_ckpt`` to ``eval.end_ckpt`` name.

    Gives the results by their names, as they are in results.json.
    """
    evaluation = experiment.evaluation
    if not (evaluation.suite or evaluation.enable_bpd or evaluation.enable_loss
            or evaluation.enable_sampling):  # fmt: skip
        raise UserError(
            "nothing to evaluate: set eval.enable_bpd, eval.enable_loss or eval.enable_sampling"
        )
    judged_by = judge(evaluation, experiment.data) if evaluation.enable_sampling else None
    workdir.check(experiment, "evaluation")
    numbers = chosen_checkpoints(
        workdir.snapshots, evaluation.begin_ckpt, evaluation.end_ckpt, wait=evaluation.wait
    )
    flow_workdir = Workdir(workdir.inside(deq_folder))
    flow = _restore_flow(experiment, flow_workdir)
    folder = workdir.inside(eval_folder, writing=True)
    run = EvaluationRun(experiment, folder, workdir, flow_workdir, flow)
    sampling = SamplingRun(experiment, run.folder, judged_by)
    path = inside(folder, RESULTS)
    read_results(path)  # of an earlier run: better unreadable now than after hours
    results: list[Result] = []
    quality: dict[str, Quality] = {}
    for number in numbers:
        template = None if experiment.imported else experiment.training.template
        restored = workdir.restore(template, number)
        _say_if_older(workdir, restored)
        results += run.measure(restored)
        if evaluation.enable_sampling:
            found = sampling.run(restored.tree.ema, _checkpoint_facts(restored))
            found = {name: {**facts, **run.trainings(flow=False)} for name, facts in found.items()}
            if found:
                add_results(path, found)
            quality |= found
    together("results")  # the first process alone has written them
    whole = read_results(path)
    if results:
        say(*results_table(results).splitlines())
    if quality:
        say(*quality_table(quality).splitlines())
    if results or quality:
        say(f"written to {folder}: {RESULTS}, arrays and pictures beside it")
    if results:
        elsewhere = [f"--eval-folder={eval_folder}"] * (eval_folder != "eval")
        say(f"next: scoremle {shlex.join(['report', str(workdir.folder), *elsewhere])}")
    return {found.name: whole[found.name] for found in results} | quality


def _say_if_older(workdir: Workdir, restored: Restored) -> None:
    """Prints a line if the newest snapshot is behind the training."""
    training, step = workdir.training(), restored.meta["step"]
    newest = restored.number == workdir.snapshots.latest()
    if training and newest and step < training["newest_step"]:
        say(
            f"{workdir.snapshots.path(restored.number)} is of step {step}: the newest snapshot;"
            f" training is at step {training['newest_step']} of {training['steps']}"
        )


def _restore_flow(experiment: Experiment, workdir: Workdir) -> Restored | None:
    """The flow dequantizer in this folder; None where the evaluation has none.

    The suite takes it where there is one. Raises UserError where one is needed and missing.
    """
    evaluation, store = experiment.evaluation, workdir.snapshots
    trained, variational = bool(store.numbers()), evaluation.dequantization == "variational"
    needed = evaluation.enable_bpd and not evaluation.bound_steps and variational
    if not (trained if evaluation.suite else needed):
        return None
    if not trained:
        raise UserError(f"no dequantizer in {store.folder}: train it with scoremle train-deq")
    workdir.check(experiment, "evaluation of a flow")
    return workdir.restore(experiment.flow_training.template, evaluation.deq_ckpt)


@dataclass(frozen=True)
class EvaluationRun:
    """The evaluation of any checkpoint; ``flow`` is the dequantizer, if one takes part."""

    experiment: Experiment
    folder: Path
    workdir: Workdir
    flow_workdir: Workdir
    flow: Restored | None = None

    @property
    def _evaluation(self) -> Any:
        return self.experiment.evaluation

    @cached_property
    def images(self) -> np.ndarray:
        return self._splits[0][: self._evaluation.num_images or None]

    def _changed(self, section: str) -> dict[str, Any]:
        """The fields of a section that are not as the working directory has them."""
        if not self.workdir.config_path.exists():
            return {}
        known = self.workdir.config()[section]
        fields = self.experiment.config[section].items()
        return {n: value for n, value in fields if value != known[n] and n not in OF_SPEED}

    @property
    def _flow_folder(self) -> str:
        """The place of the flow in the working directory."""
        return os.path.relpath(*(w.folder.resolve() for w in (self.flow_workdir, self.workdir)))

    @cached_property
    def _data_flags(self) -> dict[str, Any]:
        """The changed fields of the data, whose place is stated from the root."""
        found = self._changed("data")
        path = found.get("path")
        return found | ({"path": str(Path(path).absolute())} if path else {})

    @property
    def _splits(self) -> tuple[np.ndarray, np.ndarray]:
        """The images of the split that is measured, and those of the other."""
        train, test = self.experiment.data.train, self.experiment.data.test
        return (train, test) if self._evaluation.dataset == "train" else (test, train)

    def trainings(self, *, flow: bool) -> dict[str, Any]:
        """The steps of the trainings so far: the model's, and the flow's if it counts."""
        found = {"training": self.workdir.training()}
        if flow and self.flow:
            found["dequantizer_training"] = self.flow_workdir.training(flow=True)
        return {name: facts for name, facts in found.items() if facts}

    def measure(self, restored: Restored) -> list[Result]:
        """Measures a checkpoint by each estimator; of a suite, says whether they agree."""
        evaluation, experiment, found = self._evaluation, self.experiment, []
        planned = Measurements(
            experiment, experiment.model_of(restored.tree.ema),
            inside(self.folder, PARTS, writing=True),
            len(self.images), self._others, self.flow and self.flow.tree.ema,
        )  # fmt: skip
        for one in planned.measurements():
            name, facts = self._name(one.kind, restored.number), self._facts_of(one, restored)
            check_agreed(facts)
            parts = self._parts(name, facts)
            scored = score_images(
                one.model, one.estimator, self.images, dequantizer=one.dequantizer,
                passes=evaluation.num_repeats, seed=experiment.seed, label=name,
                parts=parts, batch_size=min(evaluation.batch_size, len(self.images)),
            )  # fmt: skip
            found.append(self._written(one, restored, name, facts, parts, scored))
        if evaluation.suite:
            checks = verdicts({result.kind: values for result, values in found})
            say(*checks)
            content = {self._name("checks", restored.number): [asdict(each) for each in checks]}
            add_results(self.folder / RESULTS, content)
        return [result for result, _ in found]

    @cached_property
    def _others(self) -> np.ndarray:
        """A few images of the other split."""
        _, others = self._splits
        return others[permutation(len(others), self.experiment.seed, PILOT)[:PILOT_IMAGES]]

    def _written(
        self, one: Measurement, restored: Restored, name: str, facts: dict[str, Any],
        parts: Path, found: Scored,
    ) -> tuple[Result, np.ndarray]:
        """Writes all about a measurement; gives its result, and the corrected values of images."""
        experiment = self.experiment
        write_npz(self.folder / f"{name}.npz", found.values)
        self._check_finite(one, found, name)
        if one.choice:
            found = found.corrected(one.choice.levels, self._evaluation.tolerance)
        if CORRECTION in found.values:
            write_npz(self.folder / f"{name}.npz", found.values)
        mean = cast(Mean, found.mean)  # of finite values
        facts |= self.trainings(flow=one.of_flow) | {
            "metric": found.column,
            "unit": "bits/dim" if found.column == "bpd" else "loss",
            "seconds_per_image": found.seconds,
            "solver_choice": one.choice and one.choice.to_json(),
            "log_snr": None,
            "flags": self._changed("eval"),
            "data_flags": self._data_flags,
            "deq_folder": self._flow_folder if self.flow else "",
            "values_hash": tree_hash(found.values),
        }
        full, params = one.model, restored.tree.ema
        if not experiment.imported:
            facts["log_snr"] = experiment.model.log_snr(params, self.images[:IMAGES])
            full = experiment.model.in_float32.model(params)
        if experiment.precision != FULL and found.column == "bpd":
            score = partial(
                score_images, estimator=one.estimator, images=self.images[:IMAGES],
                dequantizer=one.dequantizer, seed=experiment.seed ^ DIFFERENCES,
            )  # fmt: skip
            facts["precision_cost"] = cost_of_precision(score, one.model, full, parts)
        if one.log_snr_edges is not None:
            facts["profile"] = statistics.profile(found.values, one.log_snr_edges)
            title = f"{name}, {mean.mean:.3f} bits/dim: which noise levels cost them"
            path = self.folder / f"{name}_profile.png"
            pictures.write_profile(path, facts["profile"], mean.images, title)
        result = Result.read(name, facts | mean.to_json(), self.folder)
        self._say_if_replaced(result)
        add_results(self.folder / RESULTS, {name: result.to_json()})
        if "probe_bias" in found.values:
            _warn_of_optimism(result)
        self._write_extremes(result, found.values[found.column].mean(axis=0))
        return result, found.corrected_values

    def _say_if_replaced(self, result: Result) -> None:
        """Prints a line if another number of this name is there, by whatever version."""
        before = read_results(self.folder / RESULTS).get(result.name, {})
        if before.get("mean", result.mean) != result.mean:
            say(
                f"{result.name} replaces {before['mean']:.4f} of {before.get('images', 'some')}"
                " images; another --eval-folder keeps both"
            )

    def _parts(self, name: str, facts: dict[str, Any]) -> Path:
        """The folder of finished parts. Each of the facts may change a value.

        The number of passes is not among them, and so another pass is added to those there are.
        """
        return inside(self.folder, PARTS, f"{name}_{fingerprint(facts)}", writing=True)

    def _name(self, kind: str, checkpoint: int) -> str:
        """The name of a result. One of other images than the model's own names them."""
        whole, own = self._splits[0], {**self._facts, "data_flags": self._data_flags}
        of = "" if self.workdir.has_measured(own) else f"_of_{content_hash(whole)[:8]}"
        return f"{kind}_{self._evaluation.dataset}{of}_ckpt_{checkpoint}"

    def _facts_of(self, one: Measurement, restored: Restored) -> dict[str, Any]:
        facts = {"kind": one.kind, **self._facts, **one.facts, **_checkpoint_facts(restored)}
        facts["sde"] = one.model.sde.describe()
        if self.flow and one.of_flow:
            facts |= {f"dequantizer_{k}": v for k, v in _checkpoint_facts(self.flow).items()}
        if one.estimator.on_host:  # the published solver's norm mixes the images of a batch
            facts["batch_size"] = self._evaluation.batch_size
        return facts

    @cached_property
    def _facts(self) -> dict[str, Any]:
        data, model = self.experiment.data, self.experiment.model
        return {
            "dataset": data.name,
            "levels": data.levels,
            **data.facts,
            "split": self._evaluation.dataset,
            "data_hash": content_hash(self.images),
            "full_pass": len(self.images) == len(self._splits[0]),
            "augmentation": augmentation(self.experiment.config["data"]),
            "eps": model.eps,
            "precision": self.experiment.precision,
            "seed": self.experiment.seed,
            "version": scoremle.__version__,
        }

    def _check_finite(self, one: Measurement, found: Scored, name: str) -> None:
        bad = np.flatnonzero(~found.finite)
        if len(bad):
            hint = "; try --config.eval.solver=doubling" * isinstance(one.estimator, ByOde)
            raise UserError(
                f"{found.column} is not finite for {len(bad)} images (first: number {bad[0]});"
                f" their values are in {self.folder / name}.npz{hint}"
            )

    def _write_extremes(self, result: Result, scores: np.ndarray) -> None:
        """The likeliest and the unlikeliest images, one below the other in one picture."""
        order = np.argsort(scores)
        count = min(EXTREMES, len(order) // 2)
        if not count:
            return
        model = f"{in_a_line(self.workdir.folder.absolute().name)} at step {result.step:,}"
        whole = f"{len(order):,} {result.split} images of {result.dataset}"
        lowest = f"{model}: {result.noised}\n{count} lowest {result.unit} of {whole}"
        parts = [
            pictures.Panel(caption, self.images[end], [f"{score:.3f}" for score in scores[end]])
            for caption, end in (
                (lowest, order[:count]), (f"{count} highest", order[-count:][::-1])
            )
        ]  # fmt: skip
        path = self.folder / f"{result.name}_likeliest_then_unlikeliest.png"
        pictures.write_parts(path, parts, self.experiment.data.levels, 8)


def cost_of_precision(
    score: Callable[..., Scored], lower: ScoreModel, full: ScoreModel, parts: Path
) -> dict[str, Any]:
    """Compares bits/dim with those in float32 with exact products, of the same noise.

    Args:
        score: ``score_images`` of the first ``IMAGES`` images, but for the model.
        lower: the model in the precision of the flags.
        full: the same in float32.
        parts: the folder of finished parts of both.

    Gives the mean in bits/dim, its standard error over the images, the largest difference in size,
    and the number of images.
    """
    first, second = "precision as asked", "precision float32"
    less = score(lower, parts=parts / first, label=first)
    with jax.default_matmul_precision("highest"):
        whole = score(full, parts=parts / second, label=second)
    gaps = less.values["bpd"][0] - whole.values["bpd"][0]
    error = float(gaps.std(ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else None
    largest = float(gaps[np.abs(gaps).argmax()])
    return {"mean": float(gaps.mean()), "stderr": error, "largest": largest, "images": len(gaps)}


def _warn_of_optimism(result: Result) -> None:
    bias, stderr = result.columns["mean_probe_bias"], result.stderr or 0.0  # bias: below zero
    if bias is None:
        logger.warning(
            "%s: one random probe can't show by how much its noise makes the bound too low; "
            "set --config.eval.probes=2 or more",
            result.name,
        )
    elif -bias > min(MAX_BIAS, MAX_BIAS_SHARE * stderr):
        logger.warning(
            "%s: the noise of the probes makes the bound too low by about %.4f bits/dim "
            "(standard error %.4f); raise --config.eval.probes",
            result.name, -bias, stderr,
        )  # fmt: skip


def _checkpoint_facts(restored: Restored) -> dict[str, Any]:
    return {
        "checkpoint": restored.number,
        "step": int(restored.meta["step"]),
        "ema_hash": tree_hash(restored.tree.ema)[:HASH_LENGTH],
    }
