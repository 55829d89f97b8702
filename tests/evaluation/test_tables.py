"""Pictures pixel by pixel, and what the tables say."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scoremle.evaluation import result
from scoremle.evaluation.pictures import (
    Panel,
    image_grid,
    write_grid,
    write_parts,
    write_profile,
)
from scoremle.evaluation.result import Result
from scoremle.evaluation.tables import decimals, difference_in_cells, table

WHITE = 255


def results_table(results):
    found = [Result.read(name, facts, Path()) for name, facts in results.items()]
    return result.results_table(found)


def read(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_grid_places_images_in_rows_with_lines_between():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), np.uint8)
    grid = image_grid(images, 5, columns=2)
    assert grid.shape == (3 * (2 + 1) + 1, 2 * (3 + 1) + 1, 1)
    assert grid.dtype == np.uint8
    for i, level in enumerate((0, 64, 128, 191, 255)):
        top, left = (i // 2) * 3 + 1, (i % 2) * 4 + 1
        assert (grid[top : top + 2, left : left + 3] == level).all()
    assert (grid[::3] == WHITE).all(), "lines"
    assert (grid[:, ::4] == WHITE).all(), "lines"
    assert (grid[7:9, 5:8] == WHITE).all(), "the place that no image takes"


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_grid_spreads_the_levels_over_black_to_white(levels):
    ends = np.array([0, levels - 1], np.uint8).reshape(2, 1, 1, 1)
    grid = image_grid(ends, levels, columns=2)
    assert grid[1, 1, 0] == 0
    assert grid[1, 3, 0] == WHITE


def test_grid_of_256_levels_keeps_every_value():
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(image_grid(image, 256, columns=1)[1:-1, 1:-1], image[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_picture_is_the_grid_enlarged_without_smoothing(tmp_path, channels):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 8, 8, channels), dtype=np.uint8)
    path = tmp_path / "not" / "there" / "grid.png"
    write_grid(path, images, 256)
    picture = read(path)
    grid = image_grid(images, 256, columns=3).squeeze()
    factor = picture.shape[1] // grid.shape[1]
    assert picture.shape[1] >= 480
    np.testing.assert_array_equal(picture, grid.repeat(factor, axis=0).repeat(factor, axis=1))
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]


def test_one_image_of_one_pixel_is_a_picture_too(tmp_path):
    write_grid(tmp_path / "one.png", np.full((1, 1, 1, 1), 1, np.uint8), 2)
    assert read(tmp_path / "one.png").ndim == 2


@pytest.mark.parametrize("channels", [1, 3])
def test_parts_of_a_picture_are_apart_under_their_captions(tmp_path, channels):
    black = np.zeros((8, 8, 8, channels), np.uint8)
    parts = [Panel(caption, black) for caption in ("lowest", "highest")]
    write_parts(tmp_path / "p.png", parts, 2, columns=4)
    picture = read(tmp_path / "p.png").reshape(2 * (20 + 247) + 16, 481, channels)
    for top in (0, 20 + 247 + 16):
        strip, grid = picture[top : top + 20], picture[top + 20 : top + 20 + 247]
        assert strip.min() < 100 and (strip[:, 200:] == WHITE).all(), "a short caption"
        write_parts(tmp_path / "g.png", [Panel("", black)], 2, columns=4)
        np.testing.assert_array_equal(grid.squeeze(), read(tmp_path / "g.png"))
    assert (picture[267:283] == WHITE).all(), "the gap"


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_of_a_part_is_above_its_value(tmp_path, channels):
    images = np.zeros((5, 8, 8, channels), np.uint8)
    images[1] = images[4] = 1
    parts = [Panel("two\nlines", images, ["", "2.000", "", "", "5.000"])]
    write_parts(tmp_path / "p.png", parts, 2, columns=4)
    picture = read(tmp_path / "p.png").reshape(2 * 20 + 2 * (130 + 20), 481, channels)
    for row, (image, text) in enumerate((([0, 255, 0, 0], [1]), ([255, *[WHITE] * 3], [0]))):
        top = 40 + 150 * row
        assert (picture[top + 65, 60:481:117].max(axis=-1) == image).all()
        written = picture[top + 130 : top + 150].min(axis=(0, 2))
        assert [i for i in range(4) if written[117 * i + 2 : 117 * i + 117].min() < 100] == text


def test_table_aligns_its_columns():
    text = table(("name", "value"), [("a", "1"), ("longer", "22")])
    assert text.splitlines() == ["name    value", "------  -----", "a       1", "longer  22"]


@pytest.fixture
def screen(monkeypatch):
    """Sets the width of the terminal that output goes to."""

    def of(columns):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))

    return of


def test_what_is_dropped_on_a_narrow_screen_is_said(screen):
    header, rows = ("name", "value", "spare", "other"), [("abc", "12345", "x" * 9, "y" * 9)]
    wide = table(header, rows)
    for columns, kept, note in (
        (33, header, []), (32, ("name", "value", "other"), ["no room for: spare"]),
        (21, ("name", "value"), ["no room for: spare, other"]),
        (3, ("name", "value"), ["no room for: spare, other"]),
    ):  # fmt: skip
        screen(columns)
        text = table(header, rows, spare=("spare", "other")).splitlines()
        assert tuple(text[0].split()) == kept and text[3:] == note
        assert len(text[0]) <= max(columns, 11)
        assert table(header, rows) == wide


def test_results_fit_the_screen_and_words_are_whole(exact, screen):
    results = {"exact_test_ckpt_3": exact}
    words = results_table(results).split()
    for columns, left_out in ((90, None), (80, "s/image"), (72, "s/image, NFE")):
        screen(columns)
        lines = results_table(results).splitlines()
        assert max(map(len, lines)) <= columns
        assert (f"no room for: {left_out}" in lines) == bool(left_out)
        described = " ".join(lines).split()
        start = "exact_test_ckpt_3:"
        assert described[described.index(start) :] == words[words.index(start) :]


@pytest.fixture
def exact():
    return {
        "mean": 2.34567, "stderr": 0.01234, "unit": "bits/dim", "estimator": "exact for p_eps",
        "dequantizer": "uniform", "divergence": "Hutchinson()", "probes": 2,
        "images": 360, "split": "test", "full_pass": True, "passes": 1,
        "probe_stderr_of_mean": 0.00123, "mean_solver_error": 0.00045, "mean_nfe": 33.0,
        "noise_stderr": None, "seconds_per_image": 0.012, "step": 800, "kind": "exact",
        "metric": "bpd", "checkpoint": 1, "augmentation": "none", "eps": 1e-5,
    }  # fmt: skip


def cells(line: str) -> list[str]:
    return [cell for cell in line.split("  ") if cell]


def test_results_say_the_value_its_errors_and_what_it_is(exact):
    text = results_table({"exact_test_ckpt_3": exact})
    header, _, row, what = text.splitlines()
    assert len(cells(header)) == 7
    assert max(map(len, (header, row))) <= 90
    name, value, stderr, random, solver, nfe, pace = (c.strip() for c in cells(row))
    assert (name, value, stderr) == ("exact_test_ckpt_3", "2.3457 bits/dim", "0.0123")
    assert (random, solver, nfe, pace) == ("0.00123", "0.00045", "33", "0.012")
    assert what == (
        "exact_test_ckpt_3: exact for p_eps, uniform dequantization; 2 probes; 360 test images,"
        " 1 pass; step 800"
    )
    assert "not the whole split" not in text


def test_results_say_what_a_pilot_measured_of_the_solver(exact):
    choice = {"solver_bias": -0.00221, "solver_bias_stderr": 0.00087, "images": 8}
    what = results_table({"exact": exact | {"solver_choice": choice}}).splitlines()[-1]
    told = "solver: estimate minus truth -0.0022 +- 0.0009 in the mean of 8 images"
    assert f"; 2 probes; {told}; 360" in what


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"steps": 2400, "finished": False}, "step 800 of 2400: training is not finished"),
        ({"steps": 2400, "finished": True}, "step 800 of 2400"),
        ({"steps": 800, "finished": True}, "step 800"),
    ],
)
def test_results_have_the_step_of_the_training(training, words, exact):
    what = results_table({"exact": exact | {"training": training}}).splitlines()[-1]
    assert what.endswith(f"; {words}")
    flow = {"dequantizer_step": 10, "dequantizer_training": training}
    what = results_table({"exact": exact | flow}).splitlines()[-1]
    assert ("flow at step 10 of 2400" in what) == (training["steps"] == 2400)


def test_a_corrected_mean_says_of_what_it_is_made_and_its_errors(exact):
    errors = {
        "images": 0.012, "probes": 0.00123, "draws": None, "solver": 0.0002, "all": 0.01234,
        "this_set": None, "finest_bias": 0.0001,
    }  # fmt: skip
    levels = {"level_nodes": [16, 48, 128], "level_images": [360, 200, 64]}
    more = {"uncorrected_mean": 2.347, "correction": -0.00133, "errors": errors}
    row, what, made, parts, bias = results_table({"e": exact | levels | more}).splitlines()[2:]
    assert cells(row)[4].strip() == "0.00050"  # 2 * 0.0002 + 0.0001
    assert what.startswith("e: exact for p_eps")
    assert made == (
        "e: mean over images 2.34567 = 2.34700 at 16 steps -0.00133 of correction, by differences"
        " of 16 to 48 steps on 200 images, 48 to 128 steps on 64 images"
    )
    assert parts == (
        "e: standard error of this mean by source: images 0.01200, probes 0.00123, solver 0.00020,"
        " all together 0.01234; the parts of draws can't be found from so few passes"
    )
    assert bias == "e: the solver's error with 128 steps comes on top: at most 0.00010 bits/dim"
    whole = {"errors": errors | {"draws": 0.002, "this_set": 0.003}}
    parts = results_table({"e": exact | levels | more | whole}).splitlines()[5]
    assert parts.endswith(
        "probes 0.00123, draws 0.00200, solver 0.00020, all together 0.01234, without that of the"
        " images 0.00300"
    )
    alone = {"level_nodes": [128], "level_images": [360]}
    made = results_table({"e": exact | alone | more}).splitlines()[4]
    assert made == "e: mean over images 2.34567, all at 128 steps"


def test_results_say_when_a_number_is_not_of_the_whole_split(exact):
    text = results_table({"exact": exact | {"full_pass": False, "images": 10}})
    assert "10 test images (not the whole split)" in text


def test_results_say_what_was_not_measured(exact):
    """One probe, one pass: the error of the estimate is unknown, and is not zero."""
    text = results_table({"exact": exact | {"probe_stderr_of_mean": None, "stderr": None}})
    assert text.count("not measured") == 2


@pytest.mark.parametrize("matching", ["denoising", "sliced"])
def test_a_bound_shows_its_draws_and_their_error(matching, exact):
    bound = {k: v for k, v in exact.items() if k not in ("mean_nfe", "mean_solver_error")}
    for name in ("probe_stderr_of_mean", "divergence", "probes"):
        del bound[name]
    bound |= {"mean_nfe": 72.0, "draw_stderr_of_mean": 0.00321, "estimator": "variational bound"}
    bound |= {"matching": matching, "dequantizer": "none"}
    row, what = results_table({"bound": bound}).splitlines()[-2:]
    assert "0.00321" in row
    assert " 72 " in row
    words = f"variational bound, no dequantization; {matching} score matching; "
    assert what.startswith(f"bound: {words}")


def test_the_exact_trace_and_probes_read_differently(exact):
    text = results_table({"a": exact, "b": exact | {"divergence": "Exact()", "probes": None}})
    a, b = text.splitlines()[-2:]
    assert "; 2 probes; " in a and "; exact trace; " in b


def test_a_part_that_is_larger_than_the_whole_is_an_upper_estimate(exact):
    text = results_table({"a": exact, "b": exact | {"probe_stderr_of_mean": 0.5}})
    assert "0.50000*" in text and "0.00123*" not in text
    assert text.count("* an upper estimate") == 1
    assert "upper" not in results_table({"a": exact})


def test_results_say_what_less_precision_costs(exact):
    cost = {"images": 1, "mean": -0.0123456, "stderr": None, "largest": 0.5}
    text = results_table({"x": {**exact, "precision": "bfloat16", "precision_cost": cost}})
    told = " ".join(text.split())
    assert "in bfloat16 bits/dim of 1 image are off from those in float32" in told
    assert "by -0.01235 in the mean, with a standard error of not measured," in told
    assert "by +0.50000 at most" in told
    assert "float32" not in results_table({"x": exact})


def test_a_loss_has_no_unit(exact):
    row = results_table({"loss": exact | {"unit": "loss"}}).splitlines()[2]
    assert cells(row)[1].strip() == "2.3457"


def test_profile_is_drawn_over_its_bins(tmp_path):
    pytest.importorskip("matplotlib")
    profile = {"log_snr_edges": [-4.0, 0.0, 4.0], "bits_per_dim": [0.0, 1.0], "stderr": []}
    write_profile(tmp_path / "profile.png", profile, 9, "title")
    picture = read(tmp_path / "profile.png").astype(int)
    blue = (picture[..., 2] - picture[..., 0] > 30)[90:-80, 120:-30]
    left, right = np.array_split(blue, 2, axis=1)
    assert left.mean() < 0.05
    assert right[right.shape[0] // 2 :].mean() > 0.9


def test_no_profile_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    profile = {"log_snr_edges": [0.0, 1.0], "bits_per_dim": [1.0], "stderr": []}
    write_profile(tmp_path / "profile.png", profile, 9, "title")
    assert "pip install 'scoremle[plots]'" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "places"),
    [
        (0.0999, 3), (0.1, 2), (0.25, 2), (1.0, 1), (9.9, 1), (10.0, 0), (250.0, 0), (1e-5, 6),
        (1.1e-5, 6), (2e-4, 5), (0.0, 6), (-1.0, 6), (math.nan, 6), (math.inf, 6),
    ],
)  # fmt: skip
def test_a_value_has_the_digits_of_two_of_its_error(error, places):
    assert decimals(error) == places


@pytest.mark.parametrize(
    ("mean", "stderr", "cells"),
    [
        (0.1, 0.02, ("+0.1000", "0.0200")), (-4.1e-5, 3.21e-5, ("-0.000041", "0.000032")),
        (1e-9, 2e-4, ("+0.00000", "0.00020")), (0.0, 0.0, ("+0.000000", "0.000000")),
        (1.0, math.nan, ("+1.0000", "nan")),
    ],
)  # fmt: skip
def test_a_difference_has_the_digits_of_its_error_and_those_of_a_mean(mean, stderr, cells):
    assert difference_in_cells(mean, stderr) == cells
