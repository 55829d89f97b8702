"""Figures are the same wherever they are drawn, and text in them is text."""

import io
import subprocess
import sys

import pytest
from PIL import Image

from scoremle.evaluation.figures import drawn

pytest.importorskip("matplotlib")
import matplotlib


def draw(axes):
    axes.plot([1, 2], [3, 4], label="$a_b$ and $")
    axes.legend()


def test_what_others_set_counts_for_nothing():
    (plain,) = drawn(draw, "svg", title="$x$")
    before = matplotlib.rcParams["lines.linewidth"]
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "red"}):
        assert drawn(draw, "svg", title="$x$") == [plain]
        assert matplotlib.rcParams["lines.linewidth"] == 9
    assert matplotlib.rcParams["lines.linewidth"] == before
    assert b">$a_b$ and $</text>" in plain and b">$x$</text>" in plain


def test_files_of_one_drawing_are_those_of_each_alone():
    svg, png = drawn(draw, "svg", "png", title="x")
    assert drawn(draw, "png", title="x") == [png] and drawn(draw, "svg", title="x") == [svg]
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.size == (960, 540)


def test_a_matplotlibrc_of_the_working_folder_is_not_read(tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(b"\xff")  # read, it would be a traceback
    code = "from scoremle.evaluation.figures import drawn; drawn(lambda axes: None, 'svg')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
