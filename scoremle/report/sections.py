"""The sections of a report: which question each answers, and from what."""

import math
import platform
import shlex
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import UInt8

import scoremle
from scoremle.bounded import MAX_PICTURE
from scoremle.evaluation import baselines
from scoremle.evaluation.pictures import as_png
from scoremle.evaluation.quality import MEASURES, measured_with, measures_in_cells
from scoremle.evaluation.result import Result
from scoremle.evaluation.statistics import half_interval
from scoremle.evaluation.tables import difference_in_cells
from scoremle.files import read_bytes
from scoremle.report import charts
from scoremle.report.charts import Chart
from scoremle.report.page import Page, Picture
from scoremle.report.subject import Subject, names_of, paired, why_not_paired
from scoremle.terminal import counted
from scoremle.zoo.families import FAMILIES

# Images of either end; grids of samples over the training.
ENDS, GRIDS = 12, 6
# A Gaussian of more dimensions takes minutes to fit.
MOST_DIMS = 1024
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")
# Facts of a result by which another can be compared with it.
IDENTITY = (
    "dataset", "data_hash", "ema_hash", "checkpoint", "step", "precision", "seed", "version",
)  # fmt: skip
COMPARED = (
    "working directory", "bits/dim", "std. error", "difference", "NFE", "what it is", "images",
)  # fmt: skip
# The cells of a working directory without results.
NOT_EVALUATED = ("not evaluated", "", "", "", "", "")
# Fields of an evaluation that end_ckpt and dataset replace.
NOT_AGAIN = ("begin_ckpt", "bpd_dataset")
CITATION = """@inproceedings{song2021maximum,
  title     = {Maximum Likelihood Training of Score-Based Diffusion Models},
  author    = {Song, Yang and Durkan, Conor and Murray, Iain and Ermon, Stefano},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {34},
  year      = {2021}
}"""


def describe_one(page: Page, subject: Subject) -> list[Chart]:
    """Writes the sections of one working directory; gives the charts that were drawn."""
    drawn: list[Chart] = []
    for section in (_results, _images, _samples, _training, _protocol, _config):
        drawn += section(page, subject) or []
    return drawn


def compare(page: Page, subjects: Sequence[Subject]) -> list[Chart]:
    """Several working directories beside each other, the later ones against the first."""
    page.section("Side by side")
    found = list(zip(names_of(subjects), (s.main_result for s in subjects), strict=True))
    (_, first), *others = found
    gaps = {n: gap for n, r in others if first and r and (gap := paired(first, r)) is not None}
    in_words = {
        name: " ± ".join(difference_in_cells(gap.mean, gap.stderr)) for name, gap in gaps.items()
    }
    page.table(
        COMPARED, ((name, *_compared(r, in_words.get(name, ""))) for name, r in found),
        "The first likelihood of each one's newest evaluated checkpoint, or else its first bound."
        " Difference: from the first working directory, the mean over images ± its standard error."
        " NFE: evaluations of the network for an image.",
    )  # fmt: skip
    page.text(*(
        f"{name}: no comparison image by image, since {why_not_paired(first, result)}."
        for name, result in others if name not in gaps
    ))  # fmt: skip
    chart = [charts.differences(gaps)] if gaps else []
    page.charts(chart)
    page.text("Each of them has a report of its own:")
    page.code(*(shlex.join(["scoremle", "report", str(s.workdir.folder)]) for s in subjects))
    return chart


def _compared(result: Result | None, difference: str) -> tuple[str, ...]:
    """The cells of a working directory beside others."""
    if result is None:
        return NOT_EVALUATED
    mean, error, evaluations, _ = result.in_cells()
    return mean, error, difference, evaluations, result.noised, result.images_in_words


def _results(page: Page, subject: Subject) -> list[Chart]:
    page.section("Results")
    folder = subject.workdir.folder
    if not subject.results:
        page.text(
            f"No likelihood was evaluated yet: scoremle {shlex.join(['eval', str(folder)])}"
            f" (looked for {folder / subject.eval_folder / 'results.json'})."
        )
        return []
    page.table(
        ("result", "value", "std. error", "NFE", "solver's error", "unit"),
        ((r.kind_in_words, *r.in_cells(), r.unit) for r in subject.results),
        f"Checkpoint {subject.results[0].checkpoint}, step {subject.results[0].step:,}. The"
        " standard error is over images. The solver's error is the mean over images of the error"
        " of each. More images do not make it smaller.",
    )
    levels = subject.workdir.data_facts().get("levels")
    for each in subject.results:
        lines = [*_warnings(each, levels), *each.breakdown()]
        page.text(*(f"{each.kind_in_words}: {line}." for line in lines))
    if coded := subject.coded:
        page.text(f"Compressed without loss, {coded.line}.")
    if subject.checks:
        page.table(
            ("what must hold", "does it?", "difference, bits/dim"),
            ((check["words"], "holds" if check["holds"] else f"FAILS: {check['meaning']}",
              " ± ".join(difference_in_cells(check["difference"], check["stderr"])))
             for check in subject.checks),
            "Relations between the estimators, image by image.",
        )  # fmt: skip
    drawn, main = list[Chart](), subject.main_result
    same = [r for r in subject.in_bits if main and r.data_hash == main.data_hash]
    if len(same) > 1:
        drawn.append(charts.estimators(
            {r.kind: (r.mean, half_interval(r.stderr or np.nan, r.images), r.is_bound)
             for r in same}
        ))  # fmt: skip
    profiles = [
        (r.kind_in_words, cast(Any, r.profile), r.mean, r.images)
        for r in subject.in_bits if r.profile
    ]  # fmt: skip
    drawn += [charts.profile_chart(i, *each) for i, each in enumerate(profiles, 1)]
    if main:
        drawn += [charts.course(cast(Any, main.log_snr))] if main.log_snr else []
        drawn += _of_the_ode(subject, main)
    page.charts(drawn)
    return drawn


def _warnings(result: Result, levels: int | None) -> Iterator[str]:
    """Lines on bits/dim that say little about the images."""
    if result.is_bpd and levels and result.mean > np.log2(levels):
        yield (
            f"worse than a uniform distribution, which takes {np.log2(levels):.3g} bits/dim: the"
            " model is trained too little, or for other images"
        )
    spread = (result.stderr or np.nan) * math.sqrt(result.images)
    if (result.solver_error or 0) > spread:
        yield (
            "the solver's error is larger than the images differ: its steps are too few for this"
            " model"
        )


def _of_the_ode(subject: Subject, result: Result) -> Iterator[Chart]:
    """Charts of how well it was solved, and of what it makes of the images."""
    if choice := result.solver_choice:
        tried = [(n, e) for n, e in choice.get("tried", ()) if n > 0 and 0 < e < np.inf]
        if tried:
            yield charts.solver_steps(tried, choice["nodes"], choice["images"])
    found = [result.column(f"latent_{name}") for name in ("square", "neighbours")]
    square, neighbours = (None if each is None else each[0] for each in found)
    if square is not None and neighbours is not None:
        size, channels = subject.config.data.image_size, subject.config.data.num_channels
        yield charts.latents(square, neighbours, (size, size, channels))


def _images(page: Page, subject: Subject) -> list[Chart]:
    result = subject.main_result
    if result is None or result.values is None:
        return []
    page.section(
        "Images",
        f"By the result {result.kind_in_words}. A likely image is not always a typical one: simple"
        " and smooth pictures are likely whatever they show. So both ends are worth a look."
        + (f" The mean was corrected by {result.correction:+.4f}, the values of single images were"
           " not." if result.correction else ""),
    )  # fmt: skip
    images = subject.images(result)
    if isinstance(images, str):
        page.text(f"The images can't be shown here: {images}")
        chart = charts.histogram(result.kind_in_words, result.values, {})
    else:
        chart = charts.histogram(result.kind_in_words, result.values, _baselines(subject, images))
    page.charts([chart])
    if not isinstance(images, str):
        levels = subject.workdir.levels()
        order, count = np.argsort(result.values), min(ENDS, len(images) // 2)
        for title, chosen in (
            ("Likeliest", order[:count]), ("Unlikeliest", order[len(order) - count :][::-1])
        ):  # fmt: skip
            page.text(f"{title}, bits/dim below each:")
            page.pictures(_pictures(images, result.values, chosen, levels), "small")
    return [chart]


def _baselines(subject: Subject, images: UInt8[np.ndarray, "n h w c"]) -> dict[str, float]:
    """Means of simple densities on these images."""
    found = {"uniform": float(np.log2(subject.workdir.levels()))}
    if images[0].size <= MOST_DIMS and not isinstance(subject.data, str):
        train = subject.data.train
        histogram = baselines.histogram_bpd(train, images, subject.workdir.levels())
        found["independent pixels"] = float(histogram.mean())
        found["Gaussian"] = float(baselines.gaussian_bpd(train, images).mean())
    return found


def _pictures(
    images: UInt8[np.ndarray, "n h w c"], values: np.ndarray, chosen: np.ndarray, levels: int
) -> Iterable[Picture]:
    for i in chosen:
        value = f"{values[i]:.3f}"
        yield Picture(as_png(images[i], levels), value, f"image {i}: {value} bits/dim")


def _samples(page: Page, subject: Subject) -> None:
    over_time = subject.sample_pictures()
    places = np.unique(np.linspace(0, len(over_time) - 1, min(GRIDS, len(over_time))).astype(int))
    pictures = [
        Picture(
            read_bytes(path, MAX_PICTURE), f"step {step:,}", f"a grid of samples at step {step:,}"
        )
        for step, path in (over_time[i] for i in places)
    ]
    if final := subject.final_samples():
        pictures.append(Picture(read_bytes(final, MAX_PICTURE), f"evaluated: {final.name}",
                                "a grid of samples of the evaluated checkpoint"))  # fmt: skip
    if pictures or subject.quality:
        page.section("Samples", "Those of the training start from the same noise at each step.")
        page.pictures(pictures, "large")
    if quality := subject.quality:
        words = f"Of the evaluated checkpoint; {measured_with(quality)}."
        page.table(MEASURES, measures_in_cells(quality), words)


def _training(page: Page, subject: Subject) -> list[Chart]:
    if not subject.log:
        return []
    page.section("Training", f"{counted(len(subject.log), 'row')} of metrics.jsonl.")
    drawn = list(_curves(subject))
    page.charts(drawn)
    return drawn


def _curves(subject: Subject) -> Iterator[Chart]:
    """Charts of what was logged."""
    log, optim = subject.log, subject.config.optim
    logged = {name for row in log for name, value in row.items() if value is not None}
    if "loss" in logged:
        yield charts.columns("loss", "Loss", log, {"loss": "training", "eval_loss": "test images"})
    if "eval_bpd_stderr" in logged:
        yield charts.training_bpd(log, float(np.log2(subject.workdir.levels())))
    if "grad_norm" in logged:
        norm = {"grad_norm": "training"}
        yield charts.columns("grad_norm", "Norm of the gradient", log, norm, log=True)
    yield charts.learning_rate(
        lambda i: optim.lr * np.where(i < optim.warmup, i / max(optim.warmup, 1), 1.0),
        int(log[-1]["step"] or 0),  # never None: read_log checks it
    )


def _protocol(page: Page, subject: Subject) -> None:
    page.section("What these numbers are")
    measured = subject.in_bits
    for result in measured:
        page.text(
            f"{result.kind_in_words}: {result.in_words()}; importance samples K ="
            f" {result.importance_samples or 1}; augmentation: {result.augmentation}; smallest"
            f" time {result.eps:g}."
        )
    if measured:
        rows = ((name, *(getattr(result, name) for result in measured)) for name in IDENTITY)
        cells = (["" if cell is None else str(cell) for cell in row] for row in rows)
        page.table(
            ("what", *(result.kind_in_words for result in measured)),
            (row for row in cells if any(row[1:])), "What a comparison needs.",
        )  # fmt: skip
    page.table(("what", "version"), (
        ("scoremle", scoremle.__version__), ("Python", platform.python_version()),
        *((name, version(name)) for name in LIBRARIES), ("device", jax.devices()[0].device_kind),
        ("system", platform.platform()),
    ), "Where this page was made.")  # fmt: skip
    page.text("To measure them again, and make this page:")
    page.code(*_again(subject))
    page.text("The method's paper:")
    page.code(*CITATION.splitlines())


def _again(subject: Subject) -> Iterator[str]:
    """The commands that measure each bits/dim, and make this page."""
    elsewhere = [f"--eval-folder={subject.eval_folder}"] * (subject.eval_folder != "eval")
    for result in subject.in_bits:
        arguments = ["eval", str(subject.workdir.folder), *_flags(subject, result), *elsewhere]
        yield f"scoremle {shlex.join(arguments)}"
    yield f"scoremle {shlex.join(['report', str(subject.workdir.folder), *elsewhere])}"


def _flags(subject: Subject, result: Result) -> Iterator[str]:
    """The flags of the evaluation that gave a result."""
    fields = {n: v for n, v in result.flags.items() if n not in NOT_AGAIN} | {
        "end_ckpt": result.checkpoint,
        **({} if result.full_pass else {"num_images": result.images}),
        **({} if result.split == "test" else {"dataset": result.split}),
        "num_repeats": result.passes,
        **({"bound": True} if result.model == "SDE" else {}),
        **({"label": result.label} if result.label else {}),
    }
    yield from (f"--config.eval.{name}={value}" for name, value in fields.items())
    eps = subject.config.training.smallest_time
    if not (subject.workdir.imported or math.isclose(result.eps, eps, abs_tol=1e-12)):
        yield f"--config.training.smallest_time={result.eps}"
    yield from (f"--config.data.{name}={value}" for name, value in result.data_flags.items())
    yield from [f"--deq-folder={result.deq_folder}"] * bool(result.deq_folder)
    if result.seed not in (None, subject.config.seed):
        yield f"--config.seed={result.seed}"


def _config(page: Page, subject: Subject) -> None:
    if imported := subject.workdir.imported:
        page.section("Config", "The model was imported: it is not trained by a config.")
        record = imported.record
        page.table(("what", "value"), (
            ("family", FAMILIES[record["family"]].title), ("from", record["origin"]),
            *((name, f"SHA-256 {found}") for name, found in record["files"].items()),
        ), "What was imported.")  # fmt: skip
        return
    name, different = subject.nearest_config()
    page.section("Config", f"The nearest of the package's configs is {name}.")
    if different:
        page.table(("field", f"in {name}", "here"),
                   ((field, repr(theirs), repr(ours)) for field, (theirs, ours) in
                    sorted(different.items())), "All fields that differ from it.")  # fmt: skip
    else:
        page.text("No field differs from it.")
