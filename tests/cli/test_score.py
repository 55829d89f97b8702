"""The command that scores one's own images: the library's values, in a table and on a page."""

import csv
import dataclasses
import io
import json
import math
import os
import shlex
import shutil
import threading
from contextlib import redirect_stdout

import jax
import numpy as np
import pytest
from helpers import printed
from helpers.printed import assert_printed
from helpers.reported import result
from helpers.stops import StoppedOnce
from PIL import Image
from scipy import stats

import scoremle
from scoremle.cli import main as cli
from scoremle.cli import score_words
from scoremle.cli.commands import parser_of
from scoremle.core.divergence import FixedProbe, Orthogonal
from scoremle.data.readers.base import ImageReport, in_levels
from scoremle.errors import UserError
from scoremle.evaluation import baselines
from scoremle.experiment import defaults, score_table
from scoremle.experiment.measurement import Measurement
from scoremle.experiment.models import load_to_score
from scoremle.experiment.own_images import images_of_arrays
from scoremle.experiment.reference import ReferenceScores, how_to_get, reference_of
from scoremle.experiment.results import add_results
from scoremle.experiment.score_table import ScoreRow
from scoremle.experiment.shipped import FOLDER
from scoremle.experiment.workdir import Workdir
from scoremle.files import write_npz, write_sealed
from scoremle.likelihood import score_images
from scoremle.model import Origin
from scoremle.weights.flows import ByLogProb

IMAGES = scoremle.data.load("digits").test[:5]


def score(capfd, *arguments):
    """Exit code, and what is printed on either side."""
    code = cli.main(["score", *map(str, arguments)])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def model(tiny):
    """The model, whose config says how many steps to take: no pilot chooses."""
    return scoremle.load(tiny.workdir)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def column(path, name):
    return np.array([float(row[name]) for row in rows(path)])


def spread(image):
    """17 levels, as 256."""
    return np.round(image[..., 0] * (255 / 16)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Five digits as PNG."""
    place = tmp_path / "pictures"
    place.mkdir()
    for i, image in enumerate(IMAGES):
        Image.fromarray(spread(image)).save(place / f"digit{i}.png")
    return place


def test_an_array(tiny, model, tmp_path, capfd):
    np.save(tmp_path / "x.npy", IMAGES)
    out = tmp_path / "mine.csv"
    code, told, _ = score(
        capfd, tiny.workdir, tmp_path / "x.npy", f"--out={out}", "--repeats=2", "--seed=3"
    )
    assert code == 0 and f"written to {out}" in told
    expected = model.score(IMAGES, seed=3, passes=2)
    assert [row["file"] for row in rows(out)] == ["0", "1", "2", "3", "4"]
    error, png = column(out, "error"), baselines.png_bpd(IMAGES)
    expected_columns = {name: v for name, v in vars(expected).items() if np.ndim(v)}
    for name, values in (expected_columns | {"png_bpd": png}).items():
        unit = 64 * math.log(2) if name == "log_prob" else 1
        half = 10 ** (np.floor(np.log10(unit * error)) - 1) / 2  # of the error's second digit
        assert (abs(column(out, name) - values) <= 1.01 * half).all(), name
    rounded = 10 ** (np.floor(np.log10(error)) - 1) / 2
    assert (error >= expected.solver_error / 2 - rounded).all()  # so few steps have a large one
    assert {row["estimator"] for row in rows(out)} == {
        "exact by the ODE, uniform dequantization; 2 passes of 7 network evaluations"
    }
    stderr = expected.bpd.std(ddof=1) / np.sqrt(5)
    assert f"mean {expected.bpd.mean():.4f} +- {stderr:.4f} (over images) bits/dim" in told
    lines = [line for line in told.splitlines() if not line.startswith("scores, 2 passes of 5  ")]
    assert len(lines) == 5  # the verdict, the mean, two ends, the file
    beside = json.loads((tmp_path / "mine.csv.json").read_text())
    assert beside["mean"] == pytest.approx(expected.bpd.mean(), 1e-5)
    assert beside["facts"][1] in told
    cost = "each image: 2 passes of 7 network evaluations; the median standard error is"
    assert beside["facts"][2].startswith(f"{cost} {np.median(error):.2g};")


def test_a_table_among_the_pictures_is_no_bad_picture(tiny, folder, capfd, monkeypatch):
    """The command is given again; but a table of another command has no score."""
    monkeypatch.chdir(folder)
    words = tiny.workdir, ".", "--repeats=1", "--page=p.html"
    assert score(capfd, *words)[0] == 0
    before = (folder / "scores.csv").read_text()
    assert score(capfd, *words, "--force")[0] == 0
    assert (folder / "scores.csv").read_text() == before and before.count(".png") == 5
    code, _, told = score(capfd, *words, "--force", "--out=other.csv")
    assert code == 2 and "2 of 7" in told and "p.html" not in told


def test_pictures(tiny, model, folder, tmp_path, capfd):
    out = tmp_path / "s.csv"
    flags = f"--out={out}", "--repeats=1", "--json"
    code, told, said = score(capfd, tiny.workdir, folder, *flags)
    assert code == 0 and said == ""
    expected, summary = model.score(IMAGES), json.loads(told)
    assert summary["mean"] == pytest.approx(expected.bpd.mean(), 1e-5)
    assert "one pass has no spread" in summary["facts"][2]
    assert [row["file"] for row in rows(out)] == [f"digit{i}.png" for i in range(5)]
    assert_printed(printed.column(out), expected.bpd)
    assert {row["stderr"] for row in rows(out)} == {"nan"}  # one pass can't tell

    line = (tiny.workdir, folder / "digit2.png", f"--out={out}", "--json", "--force")
    code, told, _ = score(capfd, *line)
    (row,) = rows(out)
    assert code == 0 and row["file"] == "digit2.png" and float(row["error"]) > 0
    summary = json.loads(told)
    assert (summary["images"], summary["stderr"], summary["left_out"]) == (1, None, 0)
    assert summary["mean"] == pytest.approx(float(row["bpd"]), abs=0.51)


def test_stopped_between_files_it_says_how_to_go_on(tiny, folder, tmp_path, capfd, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    out, page = tmp_path / "s.csv", tmp_path / "p.html"
    line = tiny.workdir, folder, f"--out={out}", f"--page={page}", "--repeats=1"
    with monkeypatch.context() as patched:
        patched.setattr("scoremle.report.scores.write_page", stopped)
        code, _, said = score(capfd, *line)
    assert code == 130 and "--force if" in said and out.exists() and not page.exists()
    assert score(capfd, *line)[0] == 2
    assert score(capfd, *line, "--force")[0] == 0 and len(rows(out)) == 5 and page.exists()


@pytest.mark.long
def test_profiles_are_in_columns_and_on_the_page(tiny, model, tmp_path, capfd):
    np.save(tmp_path / "x.npy", IMAGES[:3])
    out, page = tmp_path / "s.csv", tmp_path / "p.html"
    flags = "--profile", "--repeats=1", "--seed=5", f"--out={out}", f"--page={page}"
    assert score(capfd, tiny.workdir, tmp_path / "x.npy", *flags)[0] == 0
    expected = model.profile(IMAGES[:3], seed=5)
    beside = json.loads((tmp_path / "s.csv.json").read_text())
    np.testing.assert_allclose(beside["log_snr_edges"], expected.log_snr_edges)
    for name, values, errors in (
        ("bits", expected.bits, expected.bits_stderr),
        ("flipd", expected.flipd, expected.trace_stderr),
        ("norm", expected.norms, 1e-4 * expected.norms),
    ):
        found = np.stack([column(out, f"{name}_{i + 1}") for i in range(values.shape[1])], axis=1)
        assert (np.abs(found - values) <= 0.1 * errors + 1e-6).all(), name
    assert page.read_text().count('class="strip"') == 3


def test_a_file_that_is_no_picture_is_named_once(tiny, tmp_path, capfd):
    (tmp_path / "x.txt").write_text("text")
    code, _, told = score(capfd, tiny.workdir, tmp_path / "x.txt")
    assert code == 2 and told.count("x.txt") == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.npy", np.zeros((2, 8, 8, 1)), "is float64"),
        ("x.npy", np.zeros((0, 8, 8, 1), np.uint8), "no images"),
        ("x.npy", np.full((2, 8, 8, 1), 17, np.uint8), "x.npy has grey values to 17"),
        ("x.npy", np.zeros((2, 9, 9, 1), np.uint8), "of 9x9x1, where 8x8x1 is wanted"),
        ("x.npy", np.zeros((2, 8, 8, 3), np.uint8), "of 8x8x3, where 8x8x1 is wanted"),
        ("x.npz", {"train": IMAGES, "test": IMAGES[:, 1:], "levels": 17}, "of 7x8x1, where"),
        ("missing", None, "folder or file"),
        ("a/x.txt", b"text", "of a picture"),
        ("x.npz", {"x": IMAGES, "levels": "many"}, "levels is many"),
        ("x.npz", {"x": IMAGES, "levels": 25}, "25 grey levels"),
        ("x.npz", {"x": IMAGES, "levels": 256}, "256 grey levels"),
        ("a/x.png", b"text", "be decoded"),
    ],
)
def test_mistakes_are_one_line(name, content, words, tiny, tmp_path, capfd):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
        path = path.parent
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        np.save(path, content)
    code, _, told = score(capfd, tiny.workdir, path, f"--out={tmp_path / 'scores.csv'}")
    assert code == 2 and words in told and told.count("\n") == 1
    assert not (tmp_path / "scores.csv").exists()


@pytest.mark.parametrize("levels", [17, 34, 250])
def test_the_conversion_that_is_named_is_that_of_pictures(levels, tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.save(tmp_path / "x.npy", grey)
    with pytest.raises(UserError, match="grey values to") as error:
        images_of_arrays(tmp_path / "x.npy", None, levels)
    found = eval(str(error.value).partition("save ")[2], {"np": np, "array": grey})
    np.testing.assert_array_equal(found, in_levels(grey, levels))


def messy(folder):
    """Beside the digits, what can't be scored."""
    Image.fromarray(np.zeros((9, 20), np.uint8)).save(folder / "wide.bmp")
    (folder / "a.jpg").write_bytes(b"\xff\xd8 broken")
    (folder / "notes.txt").write_text("text")
    return folder


def test_all_that_cannot_be_scored_is_listed_and_refused(tiny, folder, tmp_path, capfd):
    out, elsewhere = tmp_path / "s.csv", tmp_path / "elsewhere.png"
    elsewhere.write_bytes((folder / "digit0.png").read_bytes())
    (folder / "b").mkdir()
    (folder / "b" / "out.png").symlink_to(elsewhere)
    code, told, error = score(capfd, tiny.workdir, messy(folder), f"--out={out}")
    assert code == 2 and not out.exists() and "written to" not in told
    *listed, last = error.splitlines()
    assert [line.split(": ")[2] for line in listed] == [
        "b/out.png", "a.jpg", "notes.txt", "wide.bmp"
    ]  # fmt: skip
    assert "a link that is not followed" in listed[0]
    assert listed[3] == "scoremle: warning: wide.bmp: 9x20, not 8x8"
    assert "4 of 9" in last
    assert "--fit=crop, resize" in last


def test_what_is_skipped_is_a_row_with_a_reason(tiny, model, folder, tmp_path, capfd):
    out = tmp_path / "s.csv"
    options = f"--out={out}", "--skip-bad", "--fit=pad", "--json"
    code, told, said = score(capfd, tiny.workdir, messy(folder), *options)
    summary = json.loads(told)
    assert code == 3 and summary["left_out"] == 2
    assert [line.split(": ")[2] for line in said.splitlines()] == ["a.jpg", "notes.txt"]
    found = rows(out)
    names = ["a.jpg", *(f"digit{i}.png" for i in range(5)), "notes.txt", "wide.bmp"]
    assert [row["file"] for row in found] == names
    for row in (found[0], found[6]):
        assert row["note"].startswith("not scored: ") and row["bpd"] == row["error"] == ""
    assert found[7]["note"] == "shrunk; padded with black" and found[1]["note"] == ""
    images = np.concatenate([IMAGES, np.zeros((1, 8, 8, 1), np.uint8)])  # the wide one is black
    expected = model.score(images, passes=4).bpd
    assert_printed(printed.column(out), expected)
    assert summary["mean"] == pytest.approx(expected.mean(), 1e-5)


def test_nothing_that_can_be_scored(tiny, tmp_path, capfd):
    (tmp_path / "a").mkdir()
    for name in ("x.txt", "test.npy", "train.npy"):
        (tmp_path / "a" / name).write_text("text")
    code, listed, told = score(capfd, tiny.workdir, tmp_path / "a", "--skip-bad")
    assert code == 2 and "no picture" in told
    assert "pictures that are read: PNG, JPEG" in listed
    assert f"give {tmp_path / 'a' / 'test.npy'}" in listed.replace("\n", "")


def test_what_is_there_is_not_written_over(tiny, folder, tmp_path, capfd):
    out, page = tmp_path / "s.csv", tmp_path / "p.html"
    for place, flags in ((out, []), (page, [f"--page={page}"])):
        place.write_text("kept")
        code, _, told = score(capfd, "no-model", folder, f"--out={out}", *flags)
        assert code == 2 and f"{place} is there" in told
        assert place.read_text() == "kept"
        place.unlink()


def test_a_table_that_another_process_wrote_meanwhile_stays(tiny, tmp_path, capfd, monkeypatch):
    """And with --force the same command goes on from all of its batches."""
    out, found_of = tmp_path / "s.csv", score_images.to_numpy
    np.save(tmp_path / "x.npy", IMAGES)

    def meanwhile(*arguments):
        out.write_text("another's")
        return found_of(*arguments)

    options = tiny.workdir, tmp_path / "x.npy", f"--out={out}", "--repeats=1"
    with monkeypatch.context() as patch:
        patch.setattr(score_images, "to_numpy", meanwhile)
        code, _, told = score(capfd, *options)
    assert code == 2 and "--force writes" in told and out.read_text() == "another's"
    monkeypatch.setattr(score_images, "to_numpy", lambda *arguments: pytest.fail("scored again"))
    assert score(capfd, *options, "--force")[0] == 0
    assert len(rows(out)) == len(IMAGES)


def test_a_run_that_was_stopped_goes_on(tiny, model, folder, tmp_path, capfd, monkeypatch):
    """With the batches that were finished, also among the pictures; none is left in the end."""
    out, values_of_batches = folder / "s.csv", StoppedOnce(score_images.to_numpy, 5)
    monkeypatch.setattr(score_images, "BATCH_IMAGES", 2)
    monkeypatch.setattr(score_images, "to_numpy", values_of_batches)
    options = tiny.workdir, folder, f"--out={out}", "--repeats=2"
    code, _, told = score(capfd, *options)
    assert code == 130 and f"are in {folder}/.s.csv.parts: the same command resumes" in told
    assert not out.exists()
    code, told, _ = score(capfd, *options, "--json")
    assert code == 0 and values_of_batches.calls == 5 + 2  # three batches a pass
    monkeypatch.undo()
    expected = model.score(IMAGES, passes=2).bpd.mean()
    assert json.loads(told)["mean"] == pytest.approx(expected, 1e-5)
    pictures = {f"digit{i}.png" for i in range(len(IMAGES))}
    assert {path.name for path in folder.iterdir()} == {*pictures, "s.csv", "s.csv.json"}


def test_parts_are_those_of_the_same_work(tiny, tmp_path):
    found = Measurement(scoremle.load("digits"), scoremle.ByOde())
    places = {
        prepared.parts(tmp_path, *work)
        for prepared, *work in (
            (found, "digits", IMAGES, 0), (found, "digits", IMAGES, 1),
            (found, "digits", 16 - IMAGES, 0), (found, "other", IMAGES, 0),
            (Measurement(scoremle.load(tiny.workdir), found.estimator), "digits", IMAGES, 0),
            (Measurement(found.model, scoremle.ByElbo()), "digits", IMAGES, 0),
        )
    }  # fmt: skip
    assert len(places) == 6
    assert found.parts(tmp_path, "digits", IMAGES, 0) in places


def test_a_value_that_is_not_finite(tiny, folder, tmp_path, capfd, monkeypatch):
    """Of one image, which is refused after the others are measured, or a row."""
    found_of = score_images.to_numpy

    def failing(*arguments):
        found = found_of(*arguments)
        return found | {"bpd": np.where(np.arange(len(found["bpd"])) == 1, np.nan, found["bpd"])}

    monkeypatch.setattr(score_images, "to_numpy", failing)
    out = tmp_path / "s.csv"
    code, _, told = score(capfd, tiny.workdir, folder, f"--out={out}")
    assert code == 2 and "digit1.png: its bits/dim" in told
    assert not out.exists()
    code, told, _ = score(capfd, tiny.workdir, folder, f"--out={out}", "--skip-bad", "--json")
    summary = json.loads(told)
    assert code == 3 and summary["images"] == 4 and math.isfinite(summary["mean"])
    assert rows(out)[1]["note"] == "not scored: its bits/dim are not a finite number"


def test_a_share_tells_that_files_are_left_out(tiny, folder, tmp_path, capfd):
    (folder / "notes.txt").touch()
    flags = f"--out={tmp_path / 's.csv'}", "--repeats=1", "--shard=5/5", "--skip-bad", "--json"
    code, told, _ = score(capfd, tiny.workdir, folder, *flags)
    assert code == 3 and json.loads(told)["left_out"] == 1


@pytest.fixture(scope="module")
def by_digits(tmp_path_factory):
    """What the shipped model says of digits, a black picture, and inverted digits."""
    place = tmp_path_factory.mktemp("shipped")
    images = np.concatenate([IMAGES, np.zeros((1, 8, 8, 1), np.uint8), 16 - IMAGES[:2]])
    np.save(place / "x.npy", images)
    names = [f"--{what}={place / name}" for what, name in (("out", "s.csv"), ("page", "p.html"))]
    told = io.StringIO()
    with redirect_stdout(told):
        line = ["score", "digits", str(place / "x.npy"), *names, "--correct", "--json"]
        assert cli.main(line) == 0
    return place, json.loads(told.getvalue())


@pytest.mark.long
def test_ranks_are_among_the_models_own_test_images(by_digits):
    out = by_digits[0] / "s.csv"
    with np.load(FOLDER / "digits" / "eval" / "exact_test_ckpt_3.npz") as arrays:
        own = arrays["bpd"].mean(axis=0)
    ranks, bpd = column(out, "rank"), column(out, "bpd")
    expected = [(own < value).mean() for value in bpd]
    np.testing.assert_allclose(ranks, expected, atol=0.01)
    assert (ranks[:6] > 0).all() and (ranks[:6] < 1).all()  # black: no rank tells it apart
    assert (ranks[6:] == 1).all()
    assert (by_digits[0] / "p.html").read_text().count("; rank ") == len(ranks)


@pytest.mark.parametrize(
    ("ranks", "reference", "words"),
    [
        ((0.3, 0.9), 360, "0 of 2 images stand out: each lies within the 360 test images"),
        ((0.3, 1.0, 1.0), 360, "2 of 3 images stand out (about 0.02 expected by chance): 2 unl"),
        ((0.0,), 360, "1 of 1 image stands out (about 0.006 expected by chance): 1 likelier"),
        ((1.0,) * 5000, 360, "5,000 of 5,000 images stand out (about 28 expected by chance)"),
        ((0.0, 0.5, 1.0, 1.0), 39, "0.2 expected by chance): 1 likelier and 2 unlikelier than"),
        ((0.0, 1.0), 2, "no verdict: with 2 test images of the model, 67% of such images lie"
         " beyond all of them by chance; at least 39 are needed"),
        ((0.0, 1.0), 0, ""),
    ],
)  # fmt: skip
def test_the_verdict(ranks, reference, words):
    told = score_words.verdict([ScoreRow("a.png", rank=rank) for rank in ranks], reference)
    assert words in told and bool(words) == bool(told)


def test_as_many_images_stand_out_by_chance_as_is_said():
    """Of the kind of the test images: 2 in one more than there are."""
    rng = np.random.default_rng(0)
    for reference in (2, 39):
        values = np.sort(rng.normal(size=(20_000, reference)), axis=1)
        beyond = rng.normal(size=20_000)
        outside = (beyond < values[:, 0]) | (beyond > values[:, -1])
        assert abs(outside.mean() - 2 / (reference + 1)) < 0.015


@pytest.mark.parametrize(
    ("reference", "rank"), [(0, None), (10, "0.5"), (11, "0.54"), (360, "0.543"), (1001, "0.5432")]
)
def test_a_row_in_digits(reference, rank):
    row = ScoreRow("a", bpd=2.34567, error=0.0123, log_prob=-99.87654, rank=0.54321, png_bpd=3.0,
                   probe_stderr=0.003, solver_error=0.004)  # fmt: skip
    found = score_table.in_digits(row, 64, reference)
    assert found.pop("rank", None) == rank
    assert found == {
        "bpd": "2.346", "error": "0.012", "log_prob": "-99.88",  # of 64 dimensions, in nats
        "png_bpd": "3.000", "stderr": "nan", "probe_stderr": "0.003", "solver_error": "0.004",
    }  # fmt: skip
    one_pass = score_table.in_digits(dataclasses.replace(row, error=math.nan), 64, 0)
    assert (one_pass["bpd"], one_pass["error"]) == ("2.3457", "nan")  # by 0.005, of both parts
    bound = score_table.in_digits(dataclasses.replace(row, solver_error=0.0), 64, 0)
    assert bound["solver_error"] == "nan"


def test_a_row_has_its_note_and_its_error():
    scores = scoremle.Scores(*np.array([[-9.0, -8.0], [2.0, np.inf], [0.1, 0.2], [0.0, 0.0],
                                        [0.06, 0.08]]))  # fmt: skip
    image = np.zeros((2, 2, 1), np.uint8)
    reports = [ImageReport("a", image, ("cut", "made grey")), ImageReport("b", reason="text"),
               ImageReport("c", image)]  # fmt: skip
    a, b, c = score_table.rows(reports, np.stack([image, image]), scores, np.array([1.0, 3.0]), 2)
    factor = stats.t.ppf(0.975, 1) / 2
    assert a.error == pytest.approx(np.hypot(0.1 * factor, 0.03)) and a.rank == 0.5
    assert (a.note, a.image.shape, a.bpd, a.log_prob) == ("cut; made grey", (2, 2, 1), 2.0, -9.0)
    assert (b.note, b.image) == ("not scored: text", None) and math.isnan(b.bpd)
    assert c.note.startswith("not scored: its bits/dim") and c.rank == 1


@pytest.mark.parametrize("reference", [38, 39])
def test_by_fewer_than_39_test_images_there_is_no_verdict(reference):
    told = score_words.verdict([ScoreRow("a.png", rank=0.0)], reference)
    assert told.startswith("no verdict") == (reference == 38)


@pytest.mark.parametrize(
    ("count", "likely", "unlikely"),
    [(0, "", ""), (1, "a", ""), (3, "abc", ""), (4, "abc", "d"), (6, "abc", "fed"),
     (9, "abc", "ihg")],
)  # fmt: skip
def test_three_of_either_end_are_shown_the_outermost_first(count, likely, unlikely):
    ends = {"likeliest": likely, "unlikeliest": unlikely}
    expected = [f"{word}: {', '.join(shown)}" for word, shown in ends.items() if shown]
    assert [*score_words.both_ends("abcdefghi"[:count])] == expected


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps=5"], "--steps"), (["--steps=5", "--estimator=bound"], "--steps"),
        (["--profile", "--label=all"], "--profile"),
        (["--correct", "--estimator=bound"], "--correct"),
        (["--correct", "--label=all"], "--correct"),
        (["--workers=2"], "--workers"), (["--address=ray://x"], "--address"),
        (["--page=s.csv"], "two files"), (["--page=s.csv.json"], "two files"),
        (["--out=x.npy", "--force"], "two files"), (["--page=x.npy", "--force"], "two files"),
        (["--page=there"], "there is there"), (["--out=there"], "there is there"),
        (["--out=also"], "also.json is there"), (["--page=folder"], "folder"),
        (["--merge", "--shard=1/2"], "not allowed with"),
    ],
)  # fmt: skip
def test_flags_that_cannot_be_had_are_refused_at_once(flags, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x.npy", "there", "also.json", "model.pt"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    parser, line = parser_of("score"), ["model.pt", "x.npy"]
    with pytest.raises(UserError, match=words):
        parser.checked([*line, "--out=s.csv", *flags])
    for fine in (["--steps=5", "--estimator=steps"], ["--profile", "--label=3"],
                 ["--correct", "--label=3"], ["--page=p.html"],
                 ["--force", "--out=also", "--page=there"]):  # fmt: skip
        assert parser.checked([*line, *fine]).images.name == "x.npy"


# A Gaussian of independent pixels, whose solver a pilot chooses.
GAUSSIAN = """
import jax.numpy as jnp
import scoremle

SDE = scoremle.VP()

def noise(x, t):
    alpha, sigma = (c[:, None, None, None] for c in (SDE.alpha(t), SDE.sigma(t)))
    return sigma * x / (0.3 * jnp.square(alpha) + jnp.square(sigma))

def model():
    return scoremle.ScoreModel(noise, SDE, 1e-5, (8, 8, 1), scoremle.Pixels(256))
"""


@pytest.mark.long
def test_the_table_is_written_before_the_mean_is_corrected(folder, tmp_path, capfd, monkeypatch):
    """And not without being asked to; what was stopped goes on."""
    out, page = tmp_path / "s.csv", tmp_path / "p.html"

    def stopped(*_):
        assert out.exists() and page.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(score_images.Scored, "corrected", stopped)
    (tmp_path / "gaussian.py").write_text(GAUSSIAN)
    words = f"{tmp_path}/gaussian.py:model", folder, f"--out={out}", f"--page={page}"
    flags = *words, "--repeats=1"
    code, _, told = score(capfd, *flags, "--correct")
    assert code == 130 and "not corrected" in told
    before = rows(out)
    assert score(capfd, *flags, "--force")[0] == 0
    beside = json.loads((tmp_path / "s.csv.json").read_text())
    assert "correction" not in beside and "at most" in beside["facts"][1]
    assert [row["file"] for row in rows(out)] == [row["file"] for row in before]
    monkeypatch.undo()
    streams = [tmp_path / "table", tmp_path / "page"]
    for stream in streams:  # which is not written over: a second time nobody reads
        os.mkfifo(stream)
        threading.Thread(target=stream.read_bytes, daemon=True).start()
    flags = *words[:2], f"--out={streams[0]}", f"--page={streams[1]}", "--repeats=1", "--correct"
    code, _, told = score(capfd, *flags)
    assert code == 0, told


@pytest.mark.long
def test_parts_are_not_written_through_a_link(folder, tmp_path, capfd):
    (tmp_path / "gaussian.py").write_text(GAUSSIAN)
    (tmp_path / "theirs").mkdir()
    (tmp_path / ".s.csv.parts").symlink_to("theirs")
    words = f"{tmp_path}/gaussian.py:model", folder, f"--out={tmp_path / 's.csv'}", "--repeats=1"
    code, _, told = score(capfd, *words)
    assert code == 2 and "is a link" in told and not [*(tmp_path / "theirs").iterdir()]


def test_a_solver_that_states_no_error_leaves_that_of_images_unknown(folder, tmp_path, capfd):
    """And no pilot takes another solver."""
    few = ", solver=scoremle.Multistep(3), origin=scoremle.model.Origin(pilot=False))\n"
    (tmp_path / "a.py").write_text(GAUSSIAN.removesuffix(")\n") + few)
    page = tmp_path / "p.html"
    flags = folder, f"--out={tmp_path / 's.csv'}", f"--page={page}", "--repeats=2"
    code, _, _ = score(capfd, f"{tmp_path}/a.py:model", *flags)
    assert code == 0 and "not known" in page.read_text()


def test_a_mean_that_is_not_corrected_is_said(tiny, tmp_path, capfd):
    """A model whose config states the solver's steps has no pilot that chooses them."""
    np.save(tmp_path / "x.npy", IMAGES)
    flags = "--correct", "--repeats=1", f"--out={tmp_path / 's.csv'}"
    code, _, told = score(capfd, tiny.workdir, tmp_path / "x.npy", *flags)
    assert code == 0 and "not corrected" in told


def test_the_command_that_gets_ranks_is_of_the_same_checkpoint(model, tmp_path):
    place = tmp_path / "a run"
    place.mkdir()
    flags = "--config.eval.bound --config.eval.end_ckpt=1"
    told = how_to_get(str(place), model, "bound", checkpoint=1)
    assert told.startswith(f"no ranks: scoremle eval '{place}' {flags} measures")


def test_the_command_that_gets_ranks_measures_what_the_scores_are(tiny, model):
    """Of a model whose last noise hides the levels: by its decoder, as it is scored."""
    hidden = dataclasses.replace(model, eps=0.3)
    told = how_to_get(str(tiny.workdir), hidden, "ode")
    words = "--config.eval.dequantization=informed measures all of the model's own test images"
    assert words in told
    assert "informed" not in how_to_get(str(tiny.workdir), model, "ode")


def test_ranks_of_images_that_nobody_named_need_their_place(tiny, model, tmp_path):
    place = configured(tiny, tmp_path / "w")
    config = Workdir(tmp_path / "w").config()
    config.data.dataset = ""
    write_sealed(tmp_path / "w" / "config.json", json.loads(config.to_json()))
    assert "--config.data.path=IMAGES" in how_to_get(place, model, "ode")
    assert "IMAGES" not in how_to_get(str(tiny.workdir), model, "ode")


def test_references_are_compared_under_their_own_decoder(model):
    measured = ReferenceScores(np.zeros(1), 0.25).as_measured(model)
    assert measured.decoder_scale == 0.25 and measured.noise is model.noise
    assert ReferenceScores(np.zeros(1)).as_measured(model) is model


OTHERWISE = {
    "num_images": 20, "enable_bpd": False, "enable_loss": True, "dataset": "train", "bound": True,
    "dequantizer": True, "begin_ckpt": 1, "end_ckpt": 1,
}  # fmt: skip


def configured(tiny, folder, **fields):
    """A copy of the tiny model, whose evaluations have these fields."""
    shutil.copytree(tiny.workdir, folder)
    config = Workdir(folder).config()
    config.eval.update(fields)
    defaults.resolve(config)
    write_sealed(folder / "config.json", json.loads(config.to_json()))
    return str(folder)


def test_the_command_that_gets_ranks_gets_them_whatever_the_config_is(
    tiny, model, tmp_path, capfd
):
    place = configured(tiny, tmp_path / "w", **OTHERWISE)
    told = how_to_get(place, model, "ode")
    assert cli.main(shlex.split(told.split("scoremle ")[1].split(" measures ")[0])) == 0
    assert len(reference_of(place, model, "ode").values) == 360
    capfd.readouterr()


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("suite", True, "--noconfig.eval.suite"), ("bound_steps", 9, "bound_steps=0"),
        ("importance_samples", 2, "importance_samples=1"), ("num_images", 0, ""),
    ],
)  # fmt: skip
def test_the_command_that_gets_ranks_has_the_fields_that_differ(
    field, value, flag, tiny, model, tmp_path
):
    told = how_to_get(configured(tiny, tmp_path / "w", **{field: value}), model, "ode")
    assert flag in told and told.count("config.") == bool(flag)


@pytest.mark.parametrize(
    ("estimator", "kind", "flags"),
    [
        ("ode", "exact_truncated_normal",
         "--noconfig.eval.bound --config.eval.dequantization=truncated_normal"),
        ("bound", "bound_none", "--config.eval.bound --config.eval.dequantization=none"),
    ],
)  # fmt: skip
def test_ranks_of_a_model_of_the_middles_of_bins_are_by_its_own_noise(
    estimator, kind, flags, model, tmp_path
):
    middles = dataclasses.replace(model, origin=Origin(step=7, middles=True))
    told = how_to_get(str(tmp_path), middles, estimator)
    assert told.startswith(f"no ranks: scoremle eval {tmp_path} {flags} measures")
    known = {"split": "test", "step": 7, "full_pass": True, "images": 3, "eps": model.eps}
    for name in (kind.partition("_")[0], kind):
        assert not len(reference_of(str(tmp_path), middles, estimator).values)
        facts = result(name, np.ones((1, 3)), **known)
        write_npz(tmp_path / "eval" / f"{name}.npz", {"bpd": np.ones((1, 3))})
        add_results(tmp_path / "eval" / "results.json", {name: facts})
    assert len(reference_of(str(tmp_path), middles, estimator).values) == 3


@pytest.mark.parametrize(
    ("flags", "error", "known"), [({"nodes": 4}, 0.2, 0), ({"nodes": 99}, 0.05, 3), ({}, 0.2, 3)]
)
def test_ranks_are_not_among_values_of_a_coarser_solver(flags, error, known, model, tmp_path):
    values = np.array([[1.0, 2.0, 3.0]])  # with a standard deviation of 0.8
    facts = {"split": "test", "step": 7, "full_pass": True, "images": 3, "flags": flags,
             "eps": model.eps, "mean_solver_error": error}  # fmt: skip
    write_npz(tmp_path / "eval" / "exact.npz", {"bpd": values})
    add_results(tmp_path / "eval" / "results.json", {"exact": result("exact", values, **facts)})
    seventh = dataclasses.replace(model, origin=Origin(step=7))
    assert len(reference_of(str(tmp_path), seventh, "ode").values) == known


@pytest.mark.long
def test_the_mean_is_corrected_as_that_of_an_evaluation(by_digits):
    place, found = by_digits
    assert found["mean"] == pytest.approx(found["uncorrected_mean"] + found["correction"])
    assert found["uncorrected_mean"] == pytest.approx(column(place / "s.csv", "bpd").mean(), 1e-3)
    assert found["errors"].keys() == {"images", "probes", "draws", "solver", "all", "this_set",
                                      "finest_bias"}  # fmt: skip
    assert found["level_images"] == [8, 8] and 0 < abs(found["correction"]) < 0.02
    # Against four times the steps, with the same noise and probes: nothing but the solver.
    model, images = scoremle.load("digits"), np.load(place / "x.npy")
    held = FixedProbe(Orthogonal(8).draw(jax.random.key(0), images.astype(np.float32)))
    coarse, fine = (
        model.score(images, estimator=scoremle.ByOde(held, scoremle.Multistep(n)))
        for n in (found["level_nodes"][0], 4 * found["level_nodes"][0])
    )
    gap = (fine.bpd - coarse.bpd).mean()
    errors = found["errors"]
    assert abs(found["correction"] - gap) < 4 * errors["solver"] + 2 * errors["finest_bias"]


def test_names_of_any_kind(tiny, tmp_path, capfd):
    """No name is lost or does harm, and none fails when all the work is done."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = [b"=1+1.png", b"a\xff.png", b"b\x1b[2J.png", b"<b>.png"]
    for name in names:
        picture = Image.fromarray(np.zeros((8, 8), np.uint8))
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            picture.save(file, "PNG")
    out, page = tmp_path / "s.csv", tmp_path / "p.html"
    flags = f"--out={out}", "--repeats=1", f"--page={page}"
    code, told, _ = score(capfd, tiny.workdir, folder, *flags)
    assert code == 0 and "\x1b" not in told and r"b\x1b[2J.png" in told
    found = [row["file"] for row in rows(out)]
    assert found == ["<b>.png", "'=1+1.png", r"a\udcff.png", r"b\x1b[2J.png"]
    text = page.read_text()
    assert "<b>.png" not in text and "&lt;b&gt;.png" in text and r"b\x1b[2J.png" in text


def test_places_are_looked_at_first(tmp_path, capfd):
    """Before the model, which is not there."""
    np.save(tmp_path / "x.npy", IMAGES)
    (tmp_path / "file").write_text("kept")
    for images, out, words in [
        ("absent", "s.csv", "no folder or file"),
        ("x.npy", ".", "it is a folder; name a file to write"),
        ("x.npy", "file/s.csv", "file can't be written to"),
    ]:
        code, _, told = score(capfd, "no-model", tmp_path / images, f"--out={tmp_path / out}")
        assert code == 2 and words in told and told.count("\n") == 1, told


def test_what_is_changed_is_said(tiny, folder, tmp_path, capfd):
    shutil.rmtree(folder)
    folder.mkdir()
    colours = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    Image.fromarray(colours).save(folder / "colour.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "grey.png")
    out = tmp_path / "s.csv"
    flags = f"--out={out}", "--repeats=1", "--force"
    code, told, _ = score(capfd, tiny.workdir, folder, *flags)
    assert code == 0 and "1 of 2 pictures: made grey of colours\n" in told
    assert [row["note"] for row in rows(out)] == ["made grey of colours", ""]

    np.savez(tmp_path / "x.npz", train=IMAGES[:3], test=IMAGES[3:])
    code, told, _ = score(capfd, tiny.workdir, tmp_path / "x.npz", *flags)
    assert code == 0 and "one after the other: 3 of train, 2 of test\n" in told
    names = [row["file"] for row in rows(out)]
    assert names == ["train 0", "train 1", "train 2", "test 0", "test 1"]


FLOW = """
import numpy as np
from scoremle import Pixels
from scoremle.weights import from_flow

STD = 0.3

def model(**options):
    # independent pixels N(0.1, STD^2), of 8 levels on [-1, 1]
    def log_prob(x):
        each = -0.5 * ((x - 0.1) / STD) ** 2 - np.log(STD) - 0.5 * np.log(2 * np.pi)
        return each.sum(axis=(1, 2, 3))
    return from_flow(
        log_prob, shape=(2, 3, 1), **{"pixels": Pixels(8)} | options,
        inverse=lambda x: (x - 0.1) / STD, forward=lambda z: 0.1 + STD * z,
    )

def of_reals():
    return model(pixels=None)
"""


def test_a_flow_is_scored_as_every_model_is(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FLOW)
    images = np.random.default_rng(0).integers(2, 7, (5, 2, 3, 1), dtype=np.uint8)
    np.save("x.npy", images)
    given = "mine.py:model", "x.npy", "--repeats=3", "--seed=4"
    code, out, err = score(capfd, *given)
    assert (code, err) == (0, "") and "exact log-determinant, uniform dequantization" in out
    exact = load_to_score("mine.py:model").score(images, passes=3, seed=4)
    table = tmp_path / "scores.csv"
    np.testing.assert_allclose(column(table, "bpd"), exact.bpd, atol=1e-3)
    assert f"mean {exact.bpd.mean():.4f} +- " in out

    # Finished parts belong to the values of its functions, which other weights would change.
    prepared = [Measurement(load_to_score("mine.py:model"), ByLogProb())]
    (tmp_path / "mine.py").write_text(FLOW.replace("STD = 0.3", "STD = 0.31"))
    prepared += [Measurement(load_to_score("mine.py:model"), ByLogProb())]
    facts = [each.identity("mine.py:model", 0) for each in prepared]
    assert facts[0]["log_prob"] != facts[1]["log_prob"]

    for arguments, word in {
        ("score", *given, "--force", "--label=1"): "--label",
        ("score", *given, "--force", "--correct"): "--correct",
        ("score", *given, "--force", "--profile"): "--profile",
        ("score", *given, "--force", "--estimator=bound"): "--estimator=bound",
        ("score", "mine.py:of_reals", *given[1:], "--force"): "pixels",
        ("score", *given, "--force", "--page=scores.csv.json"): "two files",
        ("sample", "mine.py:model"): "is a flow",
    }.items():
        code = cli.main([*arguments])
        err = capfd.readouterr().err
        assert code == 2 and word in err and err.count("\n") == 1, err


SLOPES = """
import dataclasses
import jax.numpy as jnp
import scoremle

@scoremle.core.pytree.pytree
@dataclasses.dataclass(frozen=True)
class Slopes(scoremle.PerDimension):
    slopes: object
    def log_snr(self, t):
        return self.slopes * (0.5 - t[..., None, None, None])

def model():
    sde = scoremle.SDE("vp", Slopes(jnp.full((2, 3, 1), 9.0)), 1.0)
    pixels = scoremle.Pixels(8, -1, 1)
    return scoremle.ScoreModel(lambda x, t: x, sde, 1e-3, (2, 3, 1), pixels)
"""


def test_a_profile_where_each_pixel_has_its_log_snr_is_refused_at_once(tmp_path, capfd):
    (tmp_path / "mine.py").write_text(SLOPES)
    np.save(tmp_path / "x.npy", np.zeros((2, 2, 3, 1), np.uint8))
    out = tmp_path / "scores.csv"
    model, images = f"{tmp_path}/mine.py:model", tmp_path / "x.npy"
    code, told, err = score(capfd, model, images, "--profile", f"--out={out}")
    assert code == 2 and "--profile" in err and told == "" and err.count("\n") == 1
    assert not list(tmp_path.glob("scores*"))


MIDDLES = """
import scoremle
from scoremle.model import Origin

def model():
    sde, pixels = scoremle.VP(), scoremle.Pixels(8, -1, 1)
    return scoremle.ScoreModel(
        lambda x, t: 0.9 * x, sde, 1e-2, (2, 3, 1), pixels, origin=Origin(middles=True)
    )
"""


def test_of_a_model_of_the_middles_of_bins_the_noise_is_its_own(tmp_path, monkeypatch, capfd):
    def measured(model, estimator, images, *, dequantizer=None, **_):
        raise UserError(type(dequantizer).__name__)

    monkeypatch.setattr(score_images, "score_images", measured)
    (tmp_path / "mine.py").write_text(MIDDLES)
    np.save(tmp_path / "x.npy", np.zeros((2, 2, 3, 1), np.uint8))
    place, out = f"{tmp_path}/mine.py:model", f"--out={tmp_path}/s.csv"
    code, _, told = score(capfd, place, tmp_path / "x.npy", "--estimator=bound", out)
    assert code == 2 and "TruncatedNormal" in told
