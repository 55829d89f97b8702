"""Words stand beside what they name: columns, titles and captions with their contents.

All numbers of a case differ, so that two that were exchanged are seen.
"""

import math
import re

import numpy as np
import pytest
from helpers.tiny_runs import TINY
from matplotlib.figure import Figure

from scoremle.cli import score_words
from scoremle.cli.commands import compare, parser_of
from scoremle.evaluation import pictures
from scoremle.evaluation.quality import quality_table
from scoremle.evaluation.result import Result, results_table
from scoremle.evaluation.statistics import Difference
from scoremle.experiment import card
from scoremle.experiment.build import build
from scoremle.experiment.run_eval import EvaluationRun
from scoremle.experiment.score_table import ScoreRow
from scoremle.experiment.workdir import Workdir
from scoremle.progress import _duration
from scoremle.report import charts, sections
from scoremle.report.page import Page
from scoremle.report.subject import Subject

FACTS = {
    "kind": "exact", "metric": "bpd", "unit": "bits/dim", "estimator": "exact for p_eps",
    "mean": 2.34567, "stderr": 0.01234, "mean_nfe": 33.0, "mean_solver_error": 0.0045,
    "probe_stderr_of_mean": 0.00123, "noise_stderr": None, "seconds_per_image": 0.067,
    "dequantizer": "uniform", "images": 360, "split": "test", "full_pass": True, "passes": 2,
    "probes": 2, "divergence": "Hutchinson()", "step": 800, "checkpoint": 3, "data_hash": "a",
    "seed": 0, "eps": 1e-5, "augmentation": "none",
}  # fmt: skip


class Told(Page):
    """A page that keeps the kind and the content of its parts."""

    def __init__(self):
        super().__init__("", "")
        self.all = []

    def text(self, *texts):
        self.all += [("text", text) for text in texts if text]

    def table(self, header, rows, caption):
        self.all.append(("table", (tuple(header), [tuple(row) for row in rows])))

    def pictures(self, pictures, size):
        self.all.append(("pictures", [picture.caption for picture in pictures]))


def of_lines(text):
    """The header and the first row of an aligned table."""
    header, _, row, *_ = (re.split(r"  +", line.strip()) for line in text.splitlines())
    return header, row


def in_a_report(tmp_path, monkeypatch, capsys):
    result, page = Result.read("exact_test_ckpt_3", FACTS, tmp_path), Told()
    monkeypatch.setattr(Subject, "results", [result])
    monkeypatch.setattr(Subject, "checks", [])
    sections._results(page, Subject(Workdir(tmp_path), "eval"))
    return next((header, rows[0]) for kind, (header, rows) in page.all if kind == "table")


def side_by_side(tmp_path, monkeypatch, capsys):
    page = Told()
    monkeypatch.setattr(Subject, "main_result", Result.read("exact_test_ckpt_3", FACTS, tmp_path))
    sections.compare(page, [Subject(Workdir(tmp_path / "runs"), "eval")])
    return next((header, rows[0]) for kind, (header, rows) in page.all if kind == "table")


def on_a_card(tmp_path, monkeypatch, capsys):
    lines = card._results([Result.read("a", FACTS, tmp_path)])
    header, _, row = (line.strip("| ").split(" | ") for line in lines)
    return header, row


def of_two_results(tmp_path, monkeypatch, capsys):
    a, b = (compare.ComparedMeasurement(np.array(bpd), None, error)
            for bpd, error in (([1.0, 4.0], 0.01), ([3.0, 5.0], 0.02)))  # fmt: skip
    return compare.HEADER, ("exact", *compare._in_words(compare._compared("exact", a, b)))


QUALITY = {
    "measures": {"FID": {"value": 12.3456, "stderr": 0.21, "samples": 50, "reference_images": 60}},
    "features": "a", "reference": {"path": "b", "origin": "c"}, "step": 1,
}  # fmt: skip
COLUMNS = {
    "results": (
        lambda path, *_: of_lines(
            results_table([Result.read("exact_test_ckpt_3", FACTS, path)])
        ),
        {"result": "exact_test_ckpt_3", "value": "2.3457 bits/dim", "std. error": "0.0123",
         "probe/draw": "0.00123", "solver, 95%": "0.00450", "NFE": "33", "s/image": "0.067"},
    ),
    "quality": (
        lambda *_: of_lines(quality_table({"samples": QUALITY})),
        {"result": "samples", "measure": "FID", "value": "12.35", "std. error": "0.21",
         "samples": "50", "reference images": "60"},
    ),
    "report": (
        in_a_report,
        {"result": "exact", "value": "2.3457", "std. error": "0.0123", "NFE": "33",
         "solver's error": "0.0045", "unit": "bits/dim"},
    ),
    "side by side": (
        side_by_side,
        {"working directory": "runs", "bits/dim": "2.3457", "std. error": "0.0123",
         "difference": "", "NFE": "33", "what it is": "exact for p_eps, uniform dequantization",
         "images": "360 test images, 2 passes"},
    ),
    "card": (
        on_a_card,
        {"what": r"exact for p\_eps, uniform dequantization", "value": "2.3457 bits/dim",
         "std. error over images": "0.0123", "solver's error": "0.0045",
         "protocol": "360 test images, 2 passes"},
    ),
    "compare": (
        of_two_results,
        {"measured": "exact", "A": "2.5000", "B": "4.0000", "B - A": "+1.5000",
         "std. error": "0.5000", "images": "2", "solver, A": "0.01000", "solver, B": "0.02000"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_hold_what_their_heads_say(name, tmp_path, monkeypatch, capsys):
    table, expected = COLUMNS[name]
    header, row = table(tmp_path, monkeypatch, capsys)
    assert dict(zip(header, row, strict=True)) == expected


@pytest.mark.parametrize(("shape", "pairs"), [((2, 3, 1), 7), ((3, 2, 2), 14), ((1, 1, 1), 1)])
def test_latents_of_white_noise_lie_in_a_box_of_the_shape(shape, pairs):
    ends = np.array([0.99, 1.01, -0.99, -1.01])
    square, neighbours = 1.96 * np.sqrt(2 / math.prod(shape)), 1.96 / np.sqrt(pairs)
    for found in (
        charts.latents(1 + square * ends, 0 * ends, shape),
        charts.latents(1 + 0 * ends, neighbours * ends, shape),
    ):
        assert found.alt.startswith("50% of 4 latents lie where")


def test_the_ends_of_a_list_are_the_likeliest_and_the_unlikeliest():
    black = np.zeros((8, 8, 1), np.uint8)
    rows = [ScoreRow(f"{i}.png", "", (), black, bpd, error=0.25, rank=i / 4)
            for i, bpd in enumerate((3.0, 2.0, 4.0, 5.0), 1)]  # fmt: skip
    assert list(score_words.both_ends([*score_words.in_order(rows, 64, 360)])) == [
        "likeliest: 2.png 2.00 +- 0.25, 1.png 3.00 +- 0.25, 3.png 4.00 +- 0.25",
        "unlikeliest: 4.png 5.00 +- 0.25",
    ]


STEPS = [{"step": i, "loss": 5.0 - i, "grad_norm": 2.0**i, "eval_bpd": 6.0 - i,
          "eval_bpd_stderr": 0.1} for i in range(4)]  # fmt: skip
SQUARE, NEIGHBOURS = np.array([1.0, 1.0, 1.0, 3.0]), np.array([0.0, 0.0, 0.04, 0.0])
CHARTS = {
    "loss": (lambda: charts.columns("loss", "Loss", STEPS, {"loss": "a", "eval_loss": "b"}),
             "; 5 at first, 2 at last."),
    "bits/dim": (lambda: charts.training_bpd(STEPS, 4.5), ": 3.000 ± 0.196 at last."),
    "column": (lambda: charts.columns("grad_norm", "Norm", STEPS, {"grad_norm": "a"}, log=True),
               "; 1 at first, 8 at last."),
    "rate": (lambda: charts.learning_rate(lambda i: i / 10, 50), "over 50 steps, 5 at last."),
    "histogram": (
        lambda: charts.histogram("a", np.array([1.0, 2.0, 6.0]), {"uniform": 4.0}),
        "of 3 images: mean 3.000, from 1.000 to 6.000; uniform 4.000.",
    ),
    "profile": (
        lambda: charts.profile_chart(0, "a", {"log_snr_edges": [-4, 0, 2], "bits_per_dim": [1, 3],
                                     "stderr": []}, 2.0, 9),
        "most at log-SNR 1.0.",
    ),
    "steps": (
        lambda: charts.solver_steps([[8, 0.2], [16, 0.1]], 16, 9),
        ": 8 steps 0.2; 16 steps 0.1; chosen were 16.",
    ),
    "latents": (
        lambda: charts.latents(SQUARE, NEIGHBOURS, (8, 8, 1)),
        "75% of 4 latents lie where 90 % of white noise does; their mean square is 1.500, of"
        " white noise 1; the correlation of neighbours +0.010, of white noise 0.",
    ),
    "estimators": (
        lambda: charts.estimators({"exact": (2.0, 0.1, False), "bound": (2.5, 0.2, True)}),
        "exact 2.0000 ± 0.1000; bound 2.5000 ± 0.2000.",
    ),
    "differences": (
        lambda: charts.differences({"b": Difference(-0.5, 0.1, 9)}), "b -0.5000 ± 0.2306.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHARTS)
def test_charts_say_in_words_what_they_show(name):
    chart, words = CHARTS[name]
    assert chart().alt.endswith(words)


AXES = {
    "loss": ("step", "loss"),
    "bits/dim": ("step", "bits/dim"),
    "column": ("step", "norm"),
    "rate": ("step", "learning rate"),
    "histogram": ("bits/dim", "images"),
    "profile": ("log signal-to-noise ratio: noise on the left, data on the right",
                "bits/dim for each unit of log-SNR"),
    "steps": ("steps", "error of an image, bits/dim"),
    "latents": ("mean square of the latent", "correlation of neighbours"),
    "estimators": ("bits/dim", ""),
    "differences": ("difference, bits/dim", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", CHARTS)
def test_axes_are_of_what_they_show(name):
    axes = Figure().subplots()
    CHARTS[name][0]().draw(axes)
    (drawn,) = axes.figure.axes
    assert (drawn.get_xlabel(), drawn.get_ylabel()) == AXES[name]


def test_ticks_of_the_solvers_steps_are_plain_numbers():
    axes = Figure().subplots()
    CHARTS["steps"][0]().draw(axes)
    ticks = [axis.get_majorticklabels() for axis in (axes.xaxis, axes.yaxis)]
    errors = ["0.05", "0.1", "0.2"]
    assert [[tick.get_text() for tick in each] for each in ticks] == [["8", "16"], errors]


def test_the_newest_samples_of_an_evaluation_are_shown(tmp_path):
    for name in ("eval/samples_ckpt_11", "own/samples_ckpt_9", "own/samples_ckpt_10"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").touch()
    found = Subject(Workdir(tmp_path), "own").final_samples()
    assert found == tmp_path / "own/samples_ckpt_10.png"


BPD = np.array([2.5, 1.0, 4.0, 3.0, 2.0])
PIXELS = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)


def test_both_ends_of_a_report_are_below_their_titles(tmp_path, monkeypatch):
    page, result = Told(), Result.read("exact", FACTS, tmp_path)
    monkeypatch.setattr(Result, "values", BPD)
    monkeypatch.setattr(Subject, "main_result", result)
    monkeypatch.setattr(Subject, "images", lambda *_: PIXELS)
    monkeypatch.setattr(Workdir, "levels", lambda place: 17)
    monkeypatch.setattr(Subject, "data", "not here")
    monkeypatch.setattr(page, "charts", lambda charts: None)
    sections._images(page, Subject(Workdir(tmp_path), "eval"))
    told = [what for _, what in page.all][-4:]
    assert [told[0].partition(",")[0], told[1]] == ["Likeliest", ["1.000", "2.000"]]
    assert [told[2].partition(",")[0], told[3]] == ["Unlikeliest", ["4.000", "3.000"]]


def test_both_ends_of_an_evaluation_are_below_their_captions(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "write_parts", lambda *arguments: drawn.append(arguments))
    monkeypatch.setattr(EvaluationRun, "images", PIXELS)
    experiment = build(parser_of("").checked([*TINY, "--workdir=w", "--mode=train"]).config)
    workdir = Workdir(tmp_path)
    result = Result.read("a", FACTS | {"dataset": "digits"}, tmp_path)
    EvaluationRun(experiment, tmp_path, workdir, workdir)._write_extremes(result, BPD)
    ((path, parts, levels, _),) = drawn
    assert path.name == "a_likeliest_then_unlikeliest.png" and levels == 17
    assert [part.caption.splitlines() for part in parts] == [
        [f"{tmp_path.name} at step 800: exact for p_eps, uniform dequantization",
         "2 lowest bits/dim of 5 test images of digits"], ["2 highest"],
    ]  # fmt: skip
    assert [part.images[:, 0, 0, 0].tolist() for part in parts] == [[1, 4], [2, 3]]
    assert [part.values for part in parts] == [["1.000", "2.000"], ["4.000", "3.000"]]


@pytest.mark.parametrize(
    ("kind", "facts", "bound"),
    [
        ("exact", {}, False),
        ("exact", {"importance_samples": 1}, False),
        ("exact_iw10", {"importance_samples": 10}, True),
        ("bound", {}, True),
        ("ode_bound", {}, True),
    ],
)
def test_a_bound_is_shown_as_one(kind, facts, bound, tmp_path, monkeypatch):
    """And is the main result only where there is no likelihood."""
    found = Result.read("a", {**FACTS, "kind": kind, **facts}, tmp_path)
    exact = Result.read("b", FACTS, tmp_path)
    assert found.is_bound == bound
    monkeypatch.setattr(Subject, "results", [found, exact])
    assert Subject(Workdir(tmp_path), "eval").main_result is (exact if bound else found)
    monkeypatch.setattr(Subject, "results", [found])
    assert Subject(Workdir(tmp_path), "eval").main_result is found


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0s"), (59, "59s"), (60, "1m00s"), (65, "1m05s"), (3599.6, "1h00m"), (3900, "1h05m"),
     (36_061, "10h01m")],
)  # fmt: skip
def test_durations_in_words(seconds, words):
    assert _duration(seconds) == words
