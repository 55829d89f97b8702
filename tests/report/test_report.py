"""A report of a working directory that is made by hand, so that all it must say is known."""

import base64
import json
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from unittest.mock import Mock

import numpy as np
import pytest
from helpers.marks import some
from helpers.reported import CORRECTED, IMAGES, STEP, Reader, make, result
from PIL import Image
from scipy.stats import sem, t

from scoremle.cli.main import main
from scoremle.coding.rates import Rates
from scoremle.errors import UserError
from scoremle.evaluation import figures
from scoremle.evaluation.result import Result
from scoremle.evaluation.statistics import Difference, paired_difference
from scoremle.experiment.configs import NAMED_CONFIGS
from scoremle.experiment.workdir import Workdir
from scoremle.files import read_json, write_json, write_npz
from scoremle.report import charts, sections
from scoremle.report.page import Page
from scoremle.report.sections import _again, _samples
from scoremle.report.subject import Subject, paired, why_not_paired

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

pytest.importorskip("sklearn")

@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "<b>run</b>"
    values = make(folder)
    assert main(["report", str(folder)]) == 0
    return folder, values, (folder / "report" / "index.html").read_text()


def test_a_page_loads_nothing_from_a_server_and_escapes_names(reported):
    _, _, text = reported
    page = Reader(text)
    links = [link for name in ("src", "href", "xlink:href") for link in page.attributes[name]]
    assert links and all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert "<b>run" not in text and "&lt;b&gt;run&lt;/b&gt;" in text
    assert "exact &lt;for p_eps&gt;" in text
    assert "The mean was corrected by -0.0013, the values of single images were not." in text
    assert not re.findall(r"url\(\s*[\"']?(?!#)", text) and "@import" not in text
    names = page.attributes["id"]
    assert len(names) == len(set(names))
    for reference in (link[1:] for link in links if link.startswith("#")):
        assert reference in names


def test_it_has_the_newest_checkpoint_and_all_that_differs(reported):
    _, values, text = reported
    told = Reader(text).text
    assert f"{values.mean():.4f}" in told and f"{(values - 9).mean():.4f}" not in told
    assert f"Checkpoint 2, step {2 * STEP:,}" in told and "FAILS: a fault" in told
    assert "of before" not in told and f"exact, train {(values - 0.99).mean():.4f}" in told
    assert "2.00100 at 24 steps -0.00133 of correction, by differences of 24 to 256 steps" in told
    assert "images 0.01200, probes 0.00123, draws 0.00234, solver 0.00020, all together" in told
    steps = NAMED_CONFIGS["digits"].fields["training.n_iters"]
    assert f"training.n_iters {steps} 777" in told  # the digits config, and this one
    assert "training.snapshot_freq" not in told
    asked = "--config.eval.nodes=24 --config.eval.dequantization=truncated_normal"
    again = f"{asked} --config.eval.end_ckpt=2 --config.eval.num_images={IMAGES}"
    assert f"{again} --config.eval.num_repeats=1 --config.seed=7" in told
    assert "not the whole split" in told and "step 9" in told and "step 200" in told


def test_the_command_that_measures_again_names_the_images_and_the_dequantizer(tmp_path):
    make(tmp_path)
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    places = {"data_flags": {"path": "/my images", "fit": "crop"}, "deq_folder": "long"}
    results["exact_test_ckpt_2"] |= places
    results["bound_test_ckpt_2"] |= {"model": "SDE"}
    write_json(tmp_path / "eval" / "results.json", results)
    exact, bound, *_, report = _again(Subject(Workdir(tmp_path), "eval"))
    asked = "'--config.data.path=/my images' --config.data.fit=crop --deq-folder=long"
    assert asked in exact and asked not in bound and "eval.bound=True" in bound
    assert report == f"scoremle report {tmp_path}"


def test_a_seed_of_0_is_among_what_a_comparison_needs(tmp_path):
    make(tmp_path)
    path, page = tmp_path / "eval" / "results.json", Page("a", "b")
    results = json.loads(path.read_text())
    for name in ("exact_test_ckpt_2", "bound_test_ckpt_2", "exact_train_ckpt_2"):
        results[name] |= {"seed": 0, "precision": ""}
    write_json(path, results)
    sections._protocol(page, Subject(Workdir(tmp_path), "eval"))
    page.write(tmp_path / "a.html")
    told = Reader((tmp_path / "a.html").read_text()).text
    assert "seed 0 0 0" in told and "precision" not in told


def test_the_flags_set_a_smallest_time_of_the_result(tmp_path):
    make(tmp_path)
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    results["exact_test_ckpt_2"] |= {"eps": 0.2}
    write_json(tmp_path / "eval" / "results.json", results)
    exact, bound, *_ = _again(Subject(Workdir(tmp_path), "eval"))
    assert "--config.training.smallest_time=0.2" in exact and "smallest_time" not in bound


def test_results_of_a_replaced_snapshot_are_left_out(tmp_path):
    """A training that went on for less than the steps between snapshots wrote its number again."""
    make(tmp_path)
    path = tmp_path / "eval" / "results.json"
    results = json.loads(path.read_text())
    results["bound_test_ckpt_2"] |= {"step": 2 * STEP + 3}
    write_json(path, results)
    assert [r.kind for r in Subject(Workdir(tmp_path), "eval").results] == ["bound"]


@pytest.mark.parametrize(
    ("mean", "solver_error", "words"),
    [(4.08, 0.59, ""), (4.09, 0.59, "which takes 4.09"), (4.08, 0.61, "solver's error is larger"),
     (4.08, None, "")],
)  # fmt: skip
def test_values_that_say_little_are_named(mean, solver_error, words):
    """Values that are worse than 17 equal levels, and those that the solver has blurred."""
    facts = {"mean": mean, "stderr": 0.1, "images": 36, "solver_error": solver_error}
    found = Mock(spec=Result, **facts)
    lines = [*sections._warnings(found, 17)]
    assert len(lines) == bool(words) and words in "".join(lines)


def test_images_are_in_their_order(reported):
    _, values, text = reported
    alternatives = [a for a in Reader(text).attributes["alt"] if a.startswith("image ")]
    order = np.argsort(values)
    ends = [*order[:12], *order[-12:][::-1]]
    assert alternatives == [f"image {i}: {values[i]:.3f} bits/dim" for i in ends]


def test_charts_are_written_and_hold_their_data(reported):
    folder, values, text = reported
    names = {path.name for path in (folder / "report" / "index_charts").iterdir()}
    drawn = {"loss", "training_bpd", "grad_norm", "learning_rate", "histogram",
             "profile_1", "estimators", "solver_steps", "latents"}  # fmt: skip
    assert names == {f"{name}.{kind}" for name in drawn for kind in ("svg", "png")}
    labels = Reader(text).attributes["aria-label"]
    assert any(f"{IMAGES} images: mean {values.mean():.3f}" in label for label in labels)
    half = f"± {t(IMAGES - 1).ppf(0.975) * sem(values):.4f}"
    means = f"exact {values.mean():.4f} {half}; ", f"; bound {values.mean() + 0.01:.4f} {half}."
    assert any(all(mean in label for mean in means) for label in labels)  # of the test images
    assert any("12 steps 0.1; 24 steps 0.004; chosen were 24." in label for label in labels)
    assert any(f"75% of {IMAGES} latents" in label and "mean square is 1.250" in label
               for label in labels)  # fmt: skip
    assert any("2.500 ± " in label for label in labels)  # the row of 30 bits is left out
    assert "#1f2328" not in text.split("</style>")[1]  # ink is the page's


@pytest.mark.parametrize(("windows", "rows"), [(80.0, 11), (11.0, 11), (2.5, 2.5), (None, 1)])
def test_the_band_is_the_error_of_the_mean_of_the_rows(windows, rows):
    """As many as are on other images, of the ten before the last and of the last."""
    row = {"eval_bpd": 2.0, "eval_bpd_stderr": 0.1, "eval_windows": windows}
    words = charts.training_bpd([{"step": i, **row} for i in range(80)], uniform=4.0).alt
    assert words.endswith(f"2.000 ± {1.96 * 0.1 / np.sqrt(rows):.3f} at last.")


def test_rows_after_the_first_that_beats_a_uniform_distribution_stay():
    values = [9.0, 3.0, 9.0, 9.0]  # of which the last would be left out alone
    rows = [{"step": i, "eval_bpd": v, "eval_bpd_stderr": 0.1} for i, v in enumerate(values)]
    assert "9.000 ± " in charts.training_bpd(rows, uniform=4.0).alt


def test_a_reconstruction_term_above_zero_gives_nothing_back():
    profile = {"log_snr_edges": [-1, 0, 2], "bits_per_dim": [1.0, 1.0], "stderr": [0.01, 0.02]}
    captions = [charts.profile_chart(1, "bound", profile, mean, 9).caption for mean in (2.9, 3.1)]
    assert ["gives back 0.100" in caption for caption in captions] == [True, False]


def test_a_chart_of_nothing_says_so():
    rows = [{"step": i, "eval_bpd": 9.0, "eval_bpd_stderr": 0.1} for i in range(3)]
    words = "no row beats a uniform distribution yet"
    assert words in charts.training_bpd(rows, uniform=4.0).svg()
    assert words not in charts.training_bpd(rows, uniform=10.0).svg()


@pytest.mark.parametrize("rows", [
    [{"step": 1, "loss": 1.0, "eval_bpd": 30.0, "eval_bpd_stderr": 0.1}],  # none beats uniform
    [{"step": 1, "loss": 1.0, "grad_norm": 2.0, "eval_bpd": 2.0, "eval_bpd_stderr": 0.1}],
    [{"step": i, "loss": None} for i in range(9)],
])  # fmt: skip
def test_a_training_that_has_just_begun(rows, tmp_path):
    """And one image, whose standard error nothing tells."""
    make(tmp_path / "run")
    folder = tmp_path / "run" / "eval"
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    one = result("exact", np.full((1, 2), 2.5)) | {"stderr": None, "images": 1}
    write_json(folder / "results.json", {"exact_test_ckpt_1": one})
    write_npz(folder / "exact_test_ckpt_1.npz", {"bpd": np.full((1, 1), 2.5)})
    coded = Rates(1, 9, 3.621, gross=4, drawn=3.6, stated=3.604, stderr=None, plain=0, size=9,
                  checkpoint=1)  # fmt: skip
    write_json(tmp_path / "run" / "coded.json", asdict(coded))
    assert main(["report", str(tmp_path / "run")]) == 0
    page = Reader((tmp_path / "run" / "report" / "index.html").read_text())
    assert all(words in page.text for words in ("over 1 image)", "; 1 test image", "1 pass"))
    told, optim = page.text, Workdir(tmp_path / "run").config().optim
    assert "2.5000" in told and "nan" not in told
    rate = optim.lr * rows[-1]["step"] / optim.warmup
    assert any(f"{rate:.2g} at last" in label for label in page.attributes["aria-label"])
    assert "coded: 3.621 bits/dim, stated 3.604 (the bound" in told


@pytest.mark.parametrize(("checkpoint", "imported", "told"), [
    (1, None, False), (2, None, True), (None, None, False), (None, "its one", True),
])  # fmt: skip
def test_rates_are_those_of_the_checkpoint_of_the_page(
    checkpoint, imported, told, tmp_path, monkeypatch
):
    """In a file of before nothing says which that is, and that of an import has no number."""
    make(tmp_path)
    monkeypatch.setattr(Workdir, "imported", imported)
    rates = asdict(Rates(1, 9, 3.6, 4, 3.6, 3.6, None, 0, 9, checkpoint))
    rates.pop("checkpoint") if checkpoint is None else None
    write_json(tmp_path / "coded.json", rates)
    assert bool(Subject(Workdir(tmp_path), "eval").coded) == told


def test_paired_differences(tmp_path):
    first, second = np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 4.7])
    found = []
    for name, values in (("a", first), ("b", second)):
        write_npz(tmp_path / f"{name}.npz", {"bpd": values[None]})
        found.append(Result.read(name, result("exact", values, images=3), tmp_path))
    gap = second - first
    expected = Difference(gap.mean(), gap.std(ddof=1) / np.sqrt(3), 3)
    assert paired(*found) == expected
    added, corrected = np.array([3.0, 1.0, 2.0]), []
    for each, values, sign in zip(found, (first, second), (1, -1), strict=True):
        path = tmp_path / f"corrected_{each.name}.npz"
        write_npz(path, {"bpd": values[None], "correction": sign * added[None]})
        corrected.append(replace(each, name=path.stem, correction=sign * 2.0))
    gap = gap - 2 * added
    expected = gap.mean(), np.sqrt(gap.var(ddof=1) / 3), 3
    assert paired(*corrected) == pytest.approx(expected)
    with pytest.raises(UserError, match="evaluate again"):
        paired(found[0], replace(found[1], correction=2.0))
    other = Result.read("b", result("exact", second, images=3, seed=43), tmp_path)
    assert paired(found[0], other) is None


def test_a_difference_is_of_numbers_of_any_type_and_of_the_same_images(unchecked):
    found = paired_difference([1.0, 2.0, 4.0], np.uint8([0, 4, 4]))
    assert found == pytest.approx((1 / 3, np.std([-1, 2, 0], ddof=1) / np.sqrt(3), 3))
    for wrong in (np.ones((3, 1)), np.ones(1), []):
        with pytest.raises(UserError, match="same images"):
            paired_difference(wrong, np.ones(3))


def compared_with_the_first(shift):
    """The difference and half its interval, where values are shifted and corrections enlarged."""
    gap = shift * (1 + CORRECTED["correction"])
    half = shift * t(IMAGES - 1).ppf(0.975) * CORRECTED["errors"]["solver"]
    return f"{gap:+.5f} ± {half:.5f}"


def test_several_are_compared_with_the_first(tmp_path, capsys):
    for name, shift in (("one", 0.0), ("two", 0.25)):
        make(tmp_path / name, shift=shift)
    out = tmp_path / "page.html"
    main(["report", str(tmp_path / "one"), str(tmp_path / "two"), f"--out={out}"])
    assert str(out) in capsys.readouterr().out
    labels = Reader(out.read_text()).attributes["aria-label"]
    assert labels == [f"Paired differences of bits/dim: two {compared_with_the_first(0.25)}."]


def test_what_can_not_be_compared_image_by_image_is_said(tmp_path):
    for name in ("one", "two"):
        make(tmp_path / name)
    shutil.rmtree(tmp_path / "two" / "eval")
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "one"), str(tmp_path / "two"), f"--out={out}"]) == 0
    page = Reader(out.read_text())
    assert "has no likelihood" in page.text
    assert "aria-label" not in page.attributes


def test_samples_of_the_evaluated_checkpoint_are_on_the_page(tmp_path):
    make(tmp_path)
    page, picture = Page("a", "b"), tmp_path / "eval" / "samples_ckpt_2.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(picture)
    _samples(page, Subject(Workdir(tmp_path), "eval"))
    page.write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "evaluated: samples_ckpt_2.png" in text and "of the evaluated checkpoint" in text
    assert base64.b64encode(picture.read_bytes()).decode() in text


def test_a_page_is_not_written_in_place_of_a_link_or_a_folder(tmp_path, capsys):
    make(tmp_path / "run")
    link, target = tmp_path / "link.html", tmp_path / "page.html"
    link.symlink_to(target)
    for out, words in ((link, "is a link"), (tmp_path, "is a folder")):
        assert main(["report", str(tmp_path / "run"), f"--out={out}"]) == 2
        assert words in capsys.readouterr().err
    assert link.is_symlink() and not target.exists()


def with_quality(folder, measures, *checkpoints):
    facts = {
        "kind": "quality", "measures": measures, "features": "Inception", "step": STEP,
        "reference": {"path": "x.npz", "origin": "unknown"},
    }  # fmt: skip
    path = folder / "eval" / "results.json"
    found = {f"quality_ckpt_{n}": facts | {"checkpoint": n} for n in checkpoints}
    write_json(path, read_json(path) | found)
    return Subject(Workdir(folder), "eval")


def test_the_quality_of_samples_is_on_the_page(tmp_path):
    """Those of the evaluated checkpoint, with the digits of their errors; without it, none."""
    make(tmp_path)
    sizes = {"samples": 50, "reference_images": 60}
    measures = {"FID": {"value": 3.14159, "stderr": 0.21, **sizes},
                "IS": {"value": 9.87654321, "stderr": None, **sizes}}  # fmt: skip
    assert with_quality(tmp_path, measures, 1, 7).quality is None
    page = Page("a", "b")
    _samples(page, with_quality(tmp_path, measures, 1, 2))
    page.write(tmp_path / "page.html")
    text = Reader((tmp_path / "page.html").read_text()).text
    assert "FID 3.14 0.21 50 60 IS 9.8765 50 60" in text
    assert "features: Inception; reference: x.npz, origin unknown; step 1200" in text
    wrong = with_quality(tmp_path, {"FID": {"value": 3.0, "stderr": -1.0, **sizes}}, 2)
    with pytest.raises(UserError, match="stderr must be"):
        assert wrong.quality is None


def test_the_course_of_a_learned_schedule_and_that_of_numbers():
    course = {"t": [0.0, 0.5, 1.0], "learned": [6.0, 1.0, -6.0], "fixed": [6.0, 0.0, -6.0]}
    of_numbers = course | {"least": [5.0, 0.0, -6.5], "most": [7.0, 2.25, -5.5]}
    alone, several = map(charts.course, (course, of_numbers))
    assert "2.25 apart" in several.alt and "numbers" not in alone.alt
    assert "at most 1.00 apart" in alone.alt
    for chart, bands in ((alone, 0), (several, 1)):
        axes = Figure().gca()
        chart.draw(axes)
        values = [line.get_ydata().tolist() for line in axes.get_lines()]
        assert values == [course["learned"], course["fixed"]] and len(axes.collections) == bands


def test_folders_of_one_name_are_told_apart(tmp_path):
    """By the shortest ends of their paths: each has its row and its comparison."""
    names = "one", "a/run", "b/run"
    for i, name in enumerate(names):
        make(tmp_path / name, shift=i / 4)
    out = tmp_path / "page.html"
    assert main(["report", *(str(tmp_path / name) for name in names), f"--out={out}"]) == 0
    page = Reader(out.read_text())
    (label,) = page.attributes["aria-label"]
    first, second = map(compared_with_the_first, (0.25, 0.5))
    assert label.endswith(f": a/run {first}; b/run {second}.")
    assert "Comparison of one (digits), a/run (digits), b/run (digits)" in page.text


def test_a_folder_without_results_and_one_without_anything(tmp_path, capsys):
    make(tmp_path / "a run", field={})
    shutil.rmtree(tmp_path / "a run" / "eval")
    assert main(["report", str(tmp_path / "a run")]) == 0
    told = Reader((tmp_path / "a run" / "report" / "index.html").read_text()).text
    command = f"scoremle eval '{tmp_path / 'a run'}'"
    assert f"No likelihood was evaluated yet: {command}" in told
    assert "No field differs from it" in told
    assert main(["report", str(tmp_path)]) == 2
    assert "not a working directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("eval/results.json", '"unit"', '"until"', "lacks unit"),
        ("eval/results.json", '"mean": ', '"mean": "2", "x": ', "mean must"),
        ("eval/results.json", '"kind"', '"seal": "0", "kind"', "was written"),
        ("metrics.jsonl", "{", "[", "row of numbers"),
        ("metrics.jsonl", '"step"', '"stop"', "row of numbers"),
        ("metrics.jsonl", '"step": ', '"step": null, "x": ', "row of numbers"),
        ("metrics.jsonl", "1.0", "Infinity", "row of numbers"),
        ("metrics.jsonl", "1.0", '"1.0"', "row of numbers"),
    ],
)
def test_records_that_were_altered_are_a_line(file, old, new, words, tmp_path, capsys):
    make(tmp_path / "run")
    path = tmp_path / "run" / file
    path.write_text(path.read_text().replace(old, new, 1))
    (tmp_path / "run/samples/step_x.png").touch()  # no step: it is left out
    assert main(["report", str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err
    assert words in line and line.count("\n") == 1


@pytest.mark.long
def test_images_that_are_not_here_are_no_end(tmp_path):
    make(tmp_path / "run", field={"data.dataset": "cifar10", "data.path": str(tmp_path / "no")})
    assert isinstance(Subject(Workdir(tmp_path / "run"), "eval").data, str)
    assert main(["report", str(tmp_path / "run")]) == 0
    told = Reader((tmp_path / "run" / "report" / "index.html").read_text()).text
    assert "The images can't be shown here: " in told and "exact" in told


def test_images_of_another_data_set_are_not_shown_as_those_that_were_measured(tmp_path):
    make(tmp_path / "run", field={"data.dataset": "synthetic"})
    results = Subject(Workdir(tmp_path / "run"), "eval")
    assert len(results.data.test) > IMAGES
    assert "others" in results.images(results.main_result)


def test_samples_are_those_of_the_checkpoint_of_the_page(tmp_path):
    make(tmp_path)
    subject = Subject(Workdir(tmp_path), "eval")
    for number in (1, 3, 10):
        (tmp_path / "eval" / f"samples_ckpt_{number}.png").touch()
    assert subject.final_samples() is None
    (tmp_path / "eval" / "samples_ckpt_2.png").touch()
    assert subject.final_samples().name == "samples_ckpt_2.png"
    (tmp_path / "eval" / "results.json").unlink()
    assert Subject(subject.workdir, "eval").final_samples().name == "samples_ckpt_10.png"


def test_a_histogram_names_lines_that_it_has():
    captions = [charts.histogram("a", np.ones(9), lines).caption for lines in ({}, {"b": 2.0})]
    assert ["Dashed" in caption for caption in captions] == [False, True]


@pytest.mark.parametrize(
    ("field", "value"), [("data_hash", "other"), ("seed", 43), ("kind", "bound"), ("images", 2)]
)
def test_what_differs_in_its_images_or_noise_is_not_compared(field, value, tmp_path):
    for name in "ab":
        write_npz(tmp_path / f"{name}.npz", {"bpd": np.array([[1.0, 2.0, 4.0]])})
    facts = result("exact", np.array([1.0, 2.0, 4.0]), images=3)
    first = Result.read("a", facts, tmp_path)
    assert paired(first, Result.read("b", facts, tmp_path)).mean == 0
    write_npz(tmp_path / "b.npz", {"bpd": np.array([[1.0, 2.0, 4.0][: 2 if value == 2 else 3]])})
    other = Result.read("b", facts | {field: value}, tmp_path)
    assert paired(first, other) is None
    why = "2 images, and the first 3" if field == "images" else "same noise"
    assert why in why_not_paired(first, other)
    write_npz(tmp_path / "c.npz", {"bpd": np.array([[1.0]])})
    one = Result.read("c", facts | {"images": 1}, tmp_path)
    assert paired(one, one) is None
    assert "1 image, and" in why_not_paired(first, one) and "no spread" in why_not_paired(one, one)
    gone = Result.read("d", facts, tmp_path)
    assert paired(first, gone) is None and "are gone" in why_not_paired(first, gone)
    assert "evaluate it" in why_not_paired(first, None)


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(0, []), (1, [0]), (6, [0, 1, 2, 3, 4, 5]), (7, [0, 1, 2, 3, 4, 6]),
     (11, [0, 2, 4, 6, 8, 10])],
)  # fmt: skip
def test_six_grids_of_a_training_are_shown_the_first_and_the_last_among_them(
    count, chosen, tmp_path, unchecked
):
    paths = [tmp_path / f"step_{i}.png" for i in range(count)]
    for path in paths:
        path.write_bytes(b"png")
    shown, subject = Mock(), Mock(final_samples=lambda: None, quality=None)
    subject.sample_pictures = lambda: [(1000 * i, path) for i, path in enumerate(paths)]
    sections._samples(shown, subject)
    found = [call.args[0] for call in shown.pictures.call_args_list]
    steps = [f"step {1000 * i:,}" for i in chosen]
    assert [[picture.caption for picture in each] for each in found] == [steps] * bool(chosen)


@pytest.mark.parametrize(("side", "known"), [(32, 3), (33, 1)])
def test_densities_of_more_than_1024_pixels_are_not_fitted(side, known, monkeypatch, unchecked):
    for name in ("histogram_bpd", "gaussian_bpd"):
        monkeypatch.setattr(sections.baselines, name, lambda *_: np.full(2, 3.0))
    subject = Mock(workdir=Mock(levels=lambda: 16))
    images = np.zeros((2, side, 32, 1), np.uint8)
    found = sections._baselines(subject, images)
    densities = {"uniform": 4.0, "independent pixels": 3.0, "Gaussian": 3.0}
    assert found == dict([*densities.items()][:known])
    subject.data = "not here"
    assert sections._baselines(subject, images[:, :32]) == {"uniform": 4.0}


@pytest.mark.parametrize(
    ("row", "drawn"),
    [
        ({"loss": 1.0}, ["loss"]), ({"loss": None}, []),
        ({"loss": 1.0, "grad_norm": 2.0}, ["loss", "grad_norm"]),
        ({"eval_bpd": 2.0, "eval_bpd_stderr": 0.1}, ["training_bpd"]), ({"eval_bpd": 2.0}, []),
    ],
)  # fmt: skip
def test_a_curve_is_drawn_of_what_was_logged(row, drawn, unchecked):
    optim = Mock(lr=0.5, warmup=4)
    subject = Mock(log=[{"step": 2} | row], config=Mock(optim=optim))
    subject.workdir.levels = lambda: 256
    found = [*sections._curves(subject)]
    assert [chart.name for chart in found] == [*drawn, "learning_rate"]
    assert found[-1].alt.endswith("0.25 at last.")
    optim.warmup = 0
    *_, found = sections._curves(subject)
    assert_line(*lines(drawn_on_axes(found)), np.linspace(0, 2, 200), 0.5)


# What charts draw -------------------------------------------------------------------------------

STEPS = np.arange(1, 41)
LOGGED = [{"step": int(i), "loss": float(i), "eval_loss": 2.0 * i, "eval_bpd": 2 + i / 100,
           "eval_bpd_stderr": 0.1, "eval_windows": 40.0} for i in STEPS]  # fmt: skip
NOISE = {"log_snr_edges": [-1, 0, 2], "bits_per_dim": [1.0, 3.0], "stderr": [0.01, 0.02]}
LEARNED = {"t": [0, 0.5, 1], "learned": [9, 0, -9], "fixed": [8, 1, -8]}
AT = np.array([1.0, 2.0])
# Of each chart: what it is of, the texts of its axes, and of its legend.
CHARTS = {
    "columns": (
        charts.columns("loss", "Loss", LOGGED, {"loss": "training", "eval_loss": "test images"}),
        ("step", "loss"), ["training", "test images"],
    ),
    "training_bpd": (charts.training_bpd(LOGGED, 4.0), ("step", "bits/dim"), []),
    "learning_rate": (charts.learning_rate(lambda i: i / 4, 8), ("step", "learning rate"), []),
    "histogram": (
        charts.histogram("exact", np.arange(50.0), {"uniform": 8.0, "Gaussian": 9.0}),
        ("bits/dim", "images"),
        ["model, mean 24.500", "uniform, mean 8.000", "Gaussian, mean 9.000"],
    ),
    "profile": (
        charts.profile_chart(1, "bound", NOISE, 6.0, 3),
        ("log signal-to-noise ratio", "bits/dim for each unit of log-SNR"),
        ["predicting no noise"],
    ),
    "course": (
        charts.course(LEARNED), ("time t: data on the left", "log-SNR"), ["learned", "fixed"],
    ),
    "course of numbers": (
        charts.course(LEARNED | {"least": [8, -1, -9], "most": [10, 0.5, -9]}),
        ("time t: data on the left", "log-SNR"), ["all numbers", "learned, mean", "fixed"],
    ),
    "solver_steps": (
        charts.solver_steps([[12, 0.1], [24, 0.004]], 24, 8),
        ("steps", "error of an image"), ["chosen: 24 steps"],
    ),
    "latents": (
        charts.latents(AT, AT / 100, (4, 4, 1)),
        ("mean square", "correlation of neighbours"), ["white noise: 95 % either way"],
    ),
    "estimators": (
        charts.estimators({"exact": (2.0, 0.1, False), "bound": (2.5, 0.2, True)}),
        ("bits/dim", ""), [],
    ),
    "differences": (
        charts.differences({"b": Difference(0.25, 0.01, 9), "c": Difference(-0.5, 0.1, 9)}),
        ("difference, bits/dim", ""), [],
    ),
}  # fmt: skip


def drawn_on_axes(chart):
    with figures._style() as figure_of:
        axes = figure_of(figsize=figures.SIZE).subplots()
        chart.draw(axes)
    return axes


@pytest.fixture(scope="module")
def shown():
    return {name: drawn_on_axes(chart) for name, (chart, *_) in CHARTS.items()}


@pytest.mark.parametrize("name", CHARTS)
def test_axes_and_lines_of_a_chart_say_what_they_are(name, shown):
    _, (below, beside), legend = CHARTS[name]
    axes = shown[name]
    assert axes.get_xlabel().startswith(below) and axes.get_ylabel().startswith(beside)
    found = axes.get_legend()
    assert [text.get_text() for text in found.get_texts()] == legend if found else not legend
    if found:  # above the axes, where it covers nothing
        assert (found._loc, found._ncols) == (3, min(2, len(legend)))
        assert found.get_bbox_to_anchor().y0 == pytest.approx(axes.bbox.y1)


def lines(axes):
    """x, y and style of each line."""
    return [(*np.asarray(line.get_data(), float), line.get_linestyle(), line.get_color())
            for line in axes.get_lines()]  # fmt: skip


def assert_line(found, x, y, style="-", colour=0):
    np.testing.assert_allclose(found[0], x)
    np.testing.assert_allclose(found[1], y)
    assert found[2] == style
    assert found[3] == (charts.INK if colour is None else charts.COLOURS[colour])


def test_a_chart_of_the_log_has_points_and_means_of_eleven_of_them(shown):
    """Of forty rows five on each side are averaged: one more for eight rows, at most ten."""
    points, means, others, of_others = lines(shown["columns"])
    assert_line(points, STEPS, STEPS, "None")
    middle = slice(5, -5)
    assert_line([means[0][middle], means[1][middle], *means[2:]], STEPS[middle], STEPS[middle])
    np.testing.assert_allclose(means[1][[0, 1, -1]], [3.5, 4, 37.5])
    assert_line(others, STEPS, 2 * STEPS, "None", 1)
    assert of_others[2:] == ("--", charts.COLOURS[1])
    assert shown["columns"].get_yscale() == "linear"
    axes = drawn_on_axes(charts.columns("x", "X", LOGGED, {"loss": "a"}, log=True))
    assert axes.get_yscale() == "log" and axes.yaxis.get_major_formatter()(100.0, 0) == "100"
    for count, length in ((7, 1), (8, 3), (79, 19), (80, 21), (1000, 21)):
        assert len(charts._window(count)) == length


def test_the_chart_of_test_images_has_a_band(shown):
    band = shown["training_bpd"].collections[0].get_paths()[0].vertices
    mean, points = lines(shown["training_bpd"])
    assert_line(points, STEPS, 2 + STEPS / 100, "None")
    assert mean[2] == "-" and shown["training_bpd"].get_lines()[0].get_marker() == "None"
    at_20 = band[band[:, 0] == 20][:, 1]
    half = 1.96 * 0.1 / np.sqrt(11)
    np.testing.assert_allclose([at_20.min(), at_20.max()], [2.2 - half, 2.2 + half])
    few, *_ = drawn_on_axes(charts.training_bpd(LOGGED[:9], 4.0)).get_lines()
    many, *_ = drawn_on_axes(charts.training_bpd(LOGGED[:10], 4.0)).get_lines()
    assert (few.get_marker(), many.get_marker()) == ("o", "None")
    none = drawn_on_axes(charts.training_bpd(LOGGED, 2.0))
    assert "no row beats" in none.texts[0].get_text() and not len(none.get_xticks())


def test_other_charts_have_their_numbers(shown):
    (rate,) = lines(shown["learning_rate"])
    assert_line(rate, np.linspace(0, 8, 200), np.linspace(0, 2, 200))
    assert shown["learning_rate"].get_ylim()[0] == 0
    bars = shown["histogram"].patches
    assert len(bars) == 10 and sum(bar.get_height() for bar in bars) == 50
    means = lines(shown["histogram"])
    for found, value, style, colour in zip(
        means, (24.5, 8, 9), ("-", "--", ":"), (0, None, None), strict=True
    ):
        assert_line(found, [value, value], [0, 1], style, colour)
    for count, bins in ((5, 5), (29, 5), (30, 6), (199, 39), (200, 40), (1000, 40)):
        chart = charts.histogram("x", np.arange(float(count)), {})
        assert len(drawn_on_axes(chart).patches) == bins
    learned, fixed = lines(shown["course"])
    assert_line(learned, LEARNED["t"], LEARNED["learned"])
    assert_line(fixed, LEARNED["t"], LEARNED["fixed"], "--", None)
    assert not shown["course"].collections and len(shown["course of numbers"].collections) == 1
    assert "at most 2.00 apart" in CHARTS["course of numbers"][0].alt
    errors, chosen = lines(shown["solver_steps"])
    assert_line(errors, [12, 24], [0.1, 0.004])
    assert_line(chosen, [24, 24], [0, 1], "--", 1)
    axes = shown["solver_steps"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["12", "24"]
    np.testing.assert_allclose(axes.get_yticks(), [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2])
    assert not len(axes.get_xticks(minor=True)) and axes.get_xscale() == "log"


def test_few_points_are_marked_and_images_are_counted_in_whole_ones():
    axes = Figure().subplots()
    rows = [{"step": step, "loss": 1.0, "eval_loss": None} for step in range(20)]
    rows[5]["eval_loss"] = 1.0
    charts.columns("loss", "Loss", rows, {"loss": "training", "eval_loss": "test"}).draw(axes)
    assert [line.get_marker() for line in axes.lines] == [".", "None", ".", "o"]
    axes = Figure().subplots()
    charts.histogram("exact", np.array([1.0, 2.0, 2.1]), {}).draw(axes)
    assert all(tick == int(tick) for tick in axes.get_yticks())


def test_the_box_of_white_noise_has_its_sides(shown):
    """The mean square of 16 numbers has a variance of 2/16, the correlation of 24 pairs 1/24.

    The correlation is the mean product over the mean square.
    """
    points, box = lines(shown["latents"])
    assert_line(points, AT, np.full(len(AT), 0.01), "None")
    x, y = 1.96 * np.sqrt(2 / 16), 1.96 / np.sqrt(24)
    assert_line(box, [1 - x, 1 + x, 1 + x, 1 - x, 1 - x], [-y, -y, y, y, -y], "--", 1)
    assert CHARTS["latents"][0].alt.startswith("50% of 2 latents")
    square = np.full(9, 1 + x - 1e-6)
    inside = charts.latents(square, square * (y - 1e-6), (4, 4, 1)).alt
    outside = charts.latents(square, square * (-y - 1e-6), (4, 4, 1)).alt
    assert inside.startswith("100%") and outside.startswith("0%")


def test_intervals_are_of_95_percent_and_bounds_are_triangles(shown):
    axes = shown["estimators"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["exact", "bound"]
    assert axes.get_ylim() == (1.5, -0.5)
    for i, (bar, mean, half, mark) in enumerate(
        zip(axes.containers, (2.0, 2.5), (0.1, 0.2), "o<", strict=True)
    ):
        point, _, (interval,) = bar
        (segment,) = interval.get_segments()
        assert point.get_marker() == mark and point.get_color() == charts.COLOURS[i]
        np.testing.assert_allclose(segment, [[mean - half, i], [mean + half, i]])
    axes = shown["differences"]
    assert [bar[0].get_marker() for bar in axes.containers] == ["o", "o"]
    ends = [bar[2][0].get_segments()[0][:, 0] for bar in axes.containers]
    halves = t(9 - 1).ppf(0.975) * np.array([0.01, 0.1])
    np.testing.assert_allclose(np.diff(ends)[:, 0] / 2, halves)
    assert_line(lines(axes)[-1], [0, 0], [0, 1], "--", None)


def test_a_profile_has_an_interval_for_each_level_of_noise(shown):
    axes = shown["profile"]
    assert axes.get_xlim() == (-1, 2)
    assert axes.patches[0].get_data().values.tolist() == [1, 3]
    _, _, (intervals,) = axes.containers[0]
    expected = [[[x, y - t(2).ppf(0.975) * e], [x, y + t(2).ppf(0.975) * e]] for x, y, e in
                ((-0.5, 1, 0.01), (1, 3, 0.02))]  # fmt: skip
    np.testing.assert_allclose(intervals.get_segments(), expected)
    assert_line(lines(axes)[-1], [0, 1], [0.5 / np.log(2)] * 2, "--", None)
    chart = charts.profile_chart(3, "bound", NOISE | {"stderr": []}, 6.0, 1)
    assert chart.name == "profile_3" and "7.000 bits/dim" in chart.caption
    assert "most at log-SNR 1.0" in chart.alt and "gives back 1.000" in chart.caption
    assert not drawn_on_axes(chart).containers


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(not BROWSER, reason="needs the browser chromium")
@some("width", [400, 1200], quick=[400])
def test_a_browser_shows_it(reported, tmp_path, width):
    """Charts are drawn in their colours, and nothing is wider than the page."""
    folder, _, _ = reported
    picture = tmp_path / "page.png"
    subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},6000",
         f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}", "--hide-scrollbars",
         (folder / "report" / "index.html").as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    shown = np.asarray(Image.open(picture).convert("RGB"))
    assert shown.shape == (6000, width, 3)
    for colour in charts.COLOURS[:2]:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(shown.astype(int) - rgb).max(axis=2) < 8).sum() > 100
    margin = shown[:, -4:].reshape(-1, 3)
    assert (margin == margin[0]).all()


def test_the_checks_are_those_of_the_images_of_the_main_result(tmp_path):
    make(tmp_path)
    path = tmp_path / "eval" / "results.json"
    results = read_json(path)
    for kind in ("exact", "checks"):
        results[f"{kind}_test_of_12345678_ckpt_3"] = results[f"{kind}_test_ckpt_2"]
    results["exact_test_of_12345678_ckpt_3"]["checkpoint"] = 3
    results["checks_test_ckpt_3"] = results["checks_test_ckpt_1"]
    write_json(path, results)
    (check,) = Subject(Workdir(tmp_path), "eval").checks
    assert check["words"] == "exact <= bound"
